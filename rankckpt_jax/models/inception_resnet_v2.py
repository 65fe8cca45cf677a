"""Inception-ResNet v2 (Szegedy et al. 2016, arXiv 1602.07261), from TF-Slim."""

from __future__ import annotations

import functools

from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.inception import (
    AvgPool,
    Conv,
    Inception,
    MaxPool,
    Mixed,
    Repeat,
    Residual,
)

# Branches of the residual blocks, named after their side in pixels in training.
_BLOCK_35 = (
    (Conv("Conv2d_1x1", 32),),
    (Conv("Conv2d_0a_1x1", 32), Conv("Conv2d_0b_3x3", 32)),
    (
        Conv("Conv2d_0a_1x1", 32),
        Conv("Conv2d_0b_3x3", 48),
        Conv("Conv2d_0c_3x3", 64),
    ),
)
_BLOCK_17 = (
    (Conv("Conv2d_1x1", 192),),
    (
        Conv("Conv2d_0a_1x1", 128),
        Conv("Conv2d_0b_1x7", 160),
        Conv("Conv2d_0c_7x1", 192),
    ),
)
_BLOCK_8 = (
    (Conv("Conv2d_1x1", 192),),
    (
        Conv("Conv2d_0a_1x1", 192),
        Conv("Conv2d_0b_1x3", 224),
        Conv("Conv2d_0c_3x1", 256),
    ),
)

_STEPS = (
    Conv("Conv2d_1a_3x3", 32, 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64),
    MaxPool("MaxPool_3a_3x3", 2, "VALID"),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, 1, "VALID"),
    MaxPool("MaxPool_5a_3x3", 2, "VALID"),
    Mixed(
        "Mixed_5b",
        (
            (Conv("Conv2d_1x1", 96),),
            (Conv("Conv2d_0a_1x1", 48), Conv("Conv2d_0b_5x5", 64)),
            (
                Conv("Conv2d_0a_1x1", 64),
                Conv("Conv2d_0b_3x3", 96),
                Conv("Conv2d_0c_3x3", 96),
            ),
            (AvgPool(), Conv("Conv2d_0b_1x1", 64)),
        ),
    ),
    Repeat("Repeat", 10, Residual("block35_{}", _BLOCK_35, scale=0.17)),
    Mixed(
        "Mixed_6a",
        (
            (Conv("Conv2d_1a_3x3", 384, 2, "VALID"),),
            (
                Conv("Conv2d_0a_1x1", 256),
                Conv("Conv2d_0b_3x3", 256),
                Conv("Conv2d_1a_3x3", 384, 2, "VALID"),
            ),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    Repeat(
        "Repeat_1",
        20,
        Residual("block17_{}", _BLOCK_17, scale=0.1),
        endpoint="PreAuxLogits",
    ),
    Mixed(
        "Mixed_7a",
        (
            (Conv("Conv2d_0a_1x1", 256), Conv("Conv2d_1a_3x3", 384, 2, "VALID")),
            (Conv("Conv2d_0a_1x1", 256), Conv("Conv2d_1a_3x3", 288, 2, "VALID")),
            (
                Conv("Conv2d_0a_1x1", 256),
                Conv("Conv2d_0b_3x3", 288),
                Conv("Conv2d_1a_3x3", 320, 2, "VALID"),
            ),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    Repeat("Repeat_2", 9, Residual("block8_{}", _BLOCK_8, scale=0.2)),
    Residual("Block8", _BLOCK_8, scale=1.0, activate=False),
    Conv("Conv2d_7b_1x1", 1536),
)

register(
    Architecture(
        name="inception_resnet_v2",
        build=functools.partial(Inception, steps=_STEPS),
        feature_dim=1536,
        scope="InceptionResnetV2",
        classifier="Logits/Logits",
        classifier_is_dense=True,
        image_size=299,
        minimum_image_size=75,
    )
)

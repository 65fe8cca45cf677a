"""Inception v4 (Szegedy et al. 2016, arXiv 1602.07261), from TF-Slim."""

from __future__ import annotations

import functools

from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.inception import (
    AvgPool,
    Conv,
    Fork,
    Inception,
    MaxPool,
    Mixed,
    Step,
)

# The branches of the paper's figures 4, 5 and 6.
_A = (
    (Conv("Conv2d_0a_1x1", 96),),
    (Conv("Conv2d_0a_1x1", 64), Conv("Conv2d_0b_3x3", 96)),
    (
        Conv("Conv2d_0a_1x1", 64),
        Conv("Conv2d_0b_3x3", 96),
        Conv("Conv2d_0c_3x3", 96),
    ),
    (AvgPool(), Conv("Conv2d_0b_1x1", 96)),
)
_B = (
    (Conv("Conv2d_0a_1x1", 384),),
    (
        Conv("Conv2d_0a_1x1", 192),
        Conv("Conv2d_0b_1x7", 224),
        Conv("Conv2d_0c_7x1", 256),
    ),
    (
        Conv("Conv2d_0a_1x1", 192),
        Conv("Conv2d_0b_7x1", 192),
        Conv("Conv2d_0c_1x7", 224),
        Conv("Conv2d_0d_7x1", 224),
        Conv("Conv2d_0e_1x7", 256),
    ),
    (AvgPool(), Conv("Conv2d_0b_1x1", 128)),
)
_C = (
    (Conv("Conv2d_0a_1x1", 256),),
    (
        Conv("Conv2d_0a_1x1", 384),
        Fork((Conv("Conv2d_0b_1x3", 256), Conv("Conv2d_0c_3x1", 256))),
    ),
    (
        Conv("Conv2d_0a_1x1", 384),
        Conv("Conv2d_0b_3x1", 448),
        Conv("Conv2d_0c_1x3", 512),
        Fork((Conv("Conv2d_0d_1x3", 256), Conv("Conv2d_0e_3x1", 256))),
    ),
    (AvgPool(), Conv("Conv2d_0b_1x1", 256)),
)

_STEPS: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64),
    Mixed(
        "Mixed_3a",
        (
            (MaxPool("MaxPool_0a_3x3", 2, "VALID"),),
            (Conv("Conv2d_0a_3x3", 96, 2, "VALID"),),
        ),
    ),
    Mixed(
        "Mixed_4a",
        (
            (Conv("Conv2d_0a_1x1", 64), Conv("Conv2d_1a_3x3", 96, 1, "VALID")),
            (
                Conv("Conv2d_0a_1x1", 64),
                Conv("Conv2d_0b_1x7", 64),
                Conv("Conv2d_0c_7x1", 64),
                Conv("Conv2d_1a_3x3", 96, 1, "VALID"),
            ),
        ),
    ),
    Mixed(
        "Mixed_5a",
        (
            (Conv("Conv2d_1a_3x3", 192, 2, "VALID"),),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    *(Mixed(f"Mixed_5{letter}", _A) for letter in "bcde"),
    Mixed(
        "Mixed_6a",
        (
            (Conv("Conv2d_1a_3x3", 384, 2, "VALID"),),
            (
                Conv("Conv2d_0a_1x1", 192),
                Conv("Conv2d_0b_3x3", 224),
                Conv("Conv2d_1a_3x3", 256, 2, "VALID"),
            ),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    *(Mixed(f"Mixed_6{letter}", _B) for letter in "bcdefgh"),
    Mixed(
        "Mixed_7a",
        (
            (Conv("Conv2d_0a_1x1", 192), Conv("Conv2d_1a_3x3", 192, 2, "VALID")),
            (
                Conv("Conv2d_0a_1x1", 256),
                Conv("Conv2d_0b_1x7", 256),
                Conv("Conv2d_0c_7x1", 320),
                Conv("Conv2d_1a_3x3", 320, 2, "VALID"),
            ),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    *(Mixed(f"Mixed_7{letter}", _C) for letter in "bcd"),
)

register(
    Architecture(
        name="inception_v4",
        build=functools.partial(Inception, steps=_STEPS),
        feature_dim=1536,
        scope="InceptionV4",
        classifier="Logits/Logits",
        classifier_is_dense=True,
        image_size=299,
        minimum_image_size=75,
    )
)

"""Inception v3 (Szegedy et al. 2015, arXiv 1512.00567), from TF-Slim."""

from __future__ import annotations

import functools

from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.inception import AvgPool, Conv, Fork, Inception, MaxPool, Mixed


def _mixed_5(
    name: str,
    pooled: int,
    wide_names: tuple[str, str] = ("Conv2d_0a_1x1", "Conv2d_0b_5x5"),
) -> Mixed:
    """Return a block of the first resolution."""
    return Mixed(
        name,
        (
            (Conv("Conv2d_0a_1x1", 64),),
            (Conv(wide_names[0], 48), Conv(wide_names[1], 64)),
            (
                Conv("Conv2d_0a_1x1", 64),
                Conv("Conv2d_0b_3x3", 96),
                Conv("Conv2d_0c_3x3", 96),
            ),
            (AvgPool(), Conv("Conv2d_0b_1x1", pooled)),
        ),
    )


def _mixed_6(name: str, width: int) -> Mixed:
    """Return a block of the second resolution, with 1x7 and 7x1 kernels."""
    return Mixed(
        name,
        (
            (Conv("Conv2d_0a_1x1", 192),),
            (
                Conv("Conv2d_0a_1x1", width),
                Conv("Conv2d_0b_1x7", width),
                Conv("Conv2d_0c_7x1", 192),
            ),
            (
                Conv("Conv2d_0a_1x1", width),
                Conv("Conv2d_0b_7x1", width),
                Conv("Conv2d_0c_1x7", width),
                Conv("Conv2d_0d_7x1", width),
                Conv("Conv2d_0e_1x7", 192),
            ),
            (AvgPool(), Conv("Conv2d_0b_1x1", 192)),
        ),
    )


def _mixed_7(name: str, tall_name: str) -> Mixed:
    """Return a block of the third resolution, with parallel 1x3 and 3x1 kernels."""
    return Mixed(
        name,
        (
            (Conv("Conv2d_0a_1x1", 320),),
            (
                Conv("Conv2d_0a_1x1", 384),
                Fork((Conv("Conv2d_0b_1x3", 384), Conv(tall_name, 384))),
            ),
            (
                Conv("Conv2d_0a_1x1", 448),
                Conv("Conv2d_0b_3x3", 384),
                Fork((Conv("Conv2d_0c_1x3", 384), Conv("Conv2d_0d_3x1", 384))),
            ),
            (AvgPool(), Conv("Conv2d_0b_1x1", 192)),
        ),
    )


_STEPS = (
    Conv("Conv2d_1a_3x3", 32, stride=2, padding="VALID"),
    Conv("Conv2d_2a_3x3", 32, padding="VALID"),
    Conv("Conv2d_2b_3x3", 64),
    MaxPool("MaxPool_3a_3x3", stride=2, padding="VALID"),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, padding="VALID"),
    MaxPool("MaxPool_5a_3x3", stride=2, padding="VALID"),
    _mixed_5("Mixed_5b", 32),
    # TF-Slim misnames some kernels here and below.
    _mixed_5("Mixed_5c", 64, wide_names=("Conv2d_0b_1x1", "Conv_1_0c_5x5")),
    _mixed_5("Mixed_5d", 64),
    Mixed(
        "Mixed_6a",
        (
            (Conv("Conv2d_1a_1x1", 384, 2, "VALID", kernel_size=(3, 3)),),
            (
                Conv("Conv2d_0a_1x1", 64),
                Conv("Conv2d_0b_3x3", 96),
                Conv("Conv2d_1a_1x1", 96, 2, "VALID", kernel_size=(3, 3)),
            ),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    _mixed_6("Mixed_6b", 128),
    _mixed_6("Mixed_6c", 160),
    _mixed_6("Mixed_6d", 160),
    _mixed_6("Mixed_6e", 192),
    Mixed(
        "Mixed_7a",
        (
            (Conv("Conv2d_0a_1x1", 192), Conv("Conv2d_1a_3x3", 320, 2, "VALID")),
            (
                Conv("Conv2d_0a_1x1", 192),
                Conv("Conv2d_0b_1x7", 192),
                Conv("Conv2d_0c_7x1", 192),
                Conv("Conv2d_1a_3x3", 192, 2, "VALID"),
            ),
            (MaxPool("MaxPool_1a_3x3", 2, "VALID"),),
        ),
    ),
    _mixed_7("Mixed_7b", tall_name="Conv2d_0b_3x1"),
    _mixed_7("Mixed_7c", tall_name="Conv2d_0c_3x1"),
)

register(
    Architecture(
        name="inception_v3",
        build=functools.partial(Inception, steps=_STEPS, pool_name="AvgPool_1a"),
        feature_dim=2048,
        scope="InceptionV3",
        classifier="Logits/Conv2d_1c_1x1",
        image_size=299,
        minimum_image_size=75,
    )
)

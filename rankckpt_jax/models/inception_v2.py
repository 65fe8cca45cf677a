"""Inception v2 (Ioffe and Szegedy 2015, arXiv 1502.03167), from TF-Slim."""

from __future__ import annotations

import functools

from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.inception import (
    AvgPool,
    Conv,
    Inception,
    MaxPool,
    Mixed,
    Separable,
)


def _mixed(
    name: str,
    direct: int,
    single: tuple[int, int],
    double: tuple[int, int],
    pooled: int,
    pool: AvgPool | MaxPool | None = None,
) -> Mixed:
    """Return a block; the numbers are the channels of its four branches."""
    return Mixed(
        name,
        (
            (Conv("Conv2d_0a_1x1", direct),),
            (Conv("Conv2d_0a_1x1", single[0]), Conv("Conv2d_0b_3x3", single[1])),
            (
                Conv("Conv2d_0a_1x1", double[0]),
                Conv("Conv2d_0b_3x3", double[1]),
                Conv("Conv2d_0c_3x3", double[1]),
            ),
            (pool or AvgPool(), Conv("Conv2d_0b_1x1", pooled)),
        ),
    )


def _reduction(name: str, single: tuple[int, int], double: tuple[int, int]) -> Mixed:
    """Return a block that halves the resolution."""
    return Mixed(
        name,
        (
            (
                Conv("Conv2d_0a_1x1", single[0]),
                Conv("Conv2d_1a_3x3", single[1], stride=2),
            ),
            (
                Conv("Conv2d_0a_1x1", double[0]),
                Conv("Conv2d_0b_3x3", double[1]),
                Conv("Conv2d_1a_3x3", double[1], stride=2),
            ),
            (MaxPool("MaxPool_1a_3x3", stride=2),),
        ),
    )


_STEPS = (
    Separable("Conv2d_1a_7x7", 64, multiplier=8, stride=2),
    MaxPool("MaxPool_2a_3x3", stride=2),
    Conv("Conv2d_2b_1x1", 64),
    Conv("Conv2d_2c_3x3", 192),
    MaxPool("MaxPool_3a_3x3", stride=2),
    _mixed("Mixed_3b", 64, (64, 64), (64, 96), 32),
    _mixed("Mixed_3c", 64, (64, 96), (64, 96), 64),
    _reduction("Mixed_4a", (128, 160), (64, 96)),
    _mixed("Mixed_4b", 224, (64, 96), (96, 128), 128),
    _mixed("Mixed_4c", 192, (96, 128), (96, 128), 128),
    _mixed("Mixed_4d", 160, (128, 160), (128, 160), 96),
    _mixed("Mixed_4e", 96, (128, 192), (160, 192), 96),
    _reduction("Mixed_5a", (128, 192), (192, 256)),
    _mixed("Mixed_5b", 352, (192, 320), (160, 224), 128),
    _mixed("Mixed_5c", 352, (192, 320), (192, 224), 128, MaxPool("MaxPool_0a_3x3")),
)

register(
    Architecture(
        name="inception_v2",
        build=functools.partial(Inception, steps=_STEPS, pool_name="AvgPool_1a"),
        feature_dim=1024,
        scope="InceptionV2",
        classifier="Logits/Conv2d_1c_1x1",
    )
)

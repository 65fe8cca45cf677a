"""Inception v1, "GoogLeNet" (Szegedy et al. 2014, arXiv 1409.4842), from TF-Slim."""

from __future__ import annotations

import functools

from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.inception import Conv, Inception, MaxPool, Mixed


def _mixed(
    name: str,
    direct: int,
    middle: tuple[int, int],
    wide: tuple[int, int],
    pooled: int,
    wide_name: str = "Conv2d_0b_3x3",
) -> Mixed:
    """Return a block; the numbers are channels, as in the paper's table 1.

    TF-Slim has 3x3 kernels instead of the 5x5 kernels of the paper's widest branch.
    """
    return Mixed(
        name,
        (
            (Conv("Conv2d_0a_1x1", direct),),
            (Conv("Conv2d_0a_1x1", middle[0]), Conv("Conv2d_0b_3x3", middle[1])),
            (Conv("Conv2d_0a_1x1", wide[0]), Conv(wide_name, wide[1])),
            (MaxPool("MaxPool_0a_3x3"), Conv("Conv2d_0b_1x1", pooled)),
        ),
    )


_STEPS = (
    Conv("Conv2d_1a_7x7", 64, stride=2),
    MaxPool("MaxPool_2a_3x3", stride=2),
    Conv("Conv2d_2b_1x1", 64),
    Conv("Conv2d_2c_3x3", 192),
    MaxPool("MaxPool_3a_3x3", stride=2),
    _mixed("Mixed_3b", 64, (96, 128), (16, 32), 32),
    _mixed("Mixed_3c", 128, (128, 192), (32, 96), 64),
    MaxPool("MaxPool_4a_3x3", stride=2),
    _mixed("Mixed_4b", 192, (96, 208), (16, 48), 64),
    _mixed("Mixed_4c", 160, (112, 224), (24, 64), 64),
    _mixed("Mixed_4d", 128, (128, 256), (24, 64), 64),
    _mixed("Mixed_4e", 112, (144, 288), (32, 64), 64),
    _mixed("Mixed_4f", 256, (160, 320), (32, 128), 128),
    MaxPool("MaxPool_5a_2x2", stride=2, window=2),
    # TF-Slim misnames one kernel of this block.
    _mixed("Mixed_5b", 256, (160, 320), (32, 128), 128, wide_name="Conv2d_0a_3x3"),
    _mixed("Mixed_5c", 384, (192, 384), (48, 128), 128),
)

register(
    Architecture(
        name="inception_v1",
        build=functools.partial(Inception, steps=_STEPS, pool_name="AvgPool_0a_7x7"),
        feature_dim=1024,
        scope="InceptionV1",
        classifier="Logits/Conv2d_0c_1x1",
    )
)

"""TF-Slim's Inception networks.

v1, "GoogLeNet": Szegedy et al. 2014, arXiv 1409.4842. v2: Ioffe and Szegedy 2015, arXiv
1502.03167. v3: Szegedy et al. 2015, arXiv 1512.00567. v4 and Inception-ResNet v2:
Szegedy et al. 2016, arXiv 1602.07261.
"""

from __future__ import annotations

import functools
from typing import Any

from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.inception import (
    AvgPool,
    Conv,
    Fork,
    Inception,
    MaxPool,
    Mixed,
    Residual,
    Scope,
    Separable,
    Step,
)

Steps = tuple[Step, ...]


def _mixed(name: str, *branches: Steps) -> Mixed:
    return Mixed(name, branches)


def _chain(*convs: tuple[str, int]) -> Steps:
    """Return convolutions of (kernel size, channels), named as in most branches."""
    return tuple(
        Conv(f"Conv2d_0{letter}_{size}", features)
        for letter, (size, features) in zip("abcde", convs, strict=False)
    )


def _halve(features: int, padding: str = "VALID") -> Conv:
    """Return the convolution at the end of a branch that halves the resolution."""
    return Conv("Conv2d_1a_3x3", features, 2, padding)


def _pool(features: int) -> Steps:
    """Return a branch with average pooling."""
    return AvgPool(), Conv("Conv2d_0b_1x1", features)


_HALVING_POOL = (MaxPool("MaxPool_1a_3x3", 2, "VALID"),)


# --------------------------------------------------------------------- version 1


def _v1_mixed(
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
    return _mixed(
        name,
        _chain(("1x1", direct)),
        _chain(("1x1", middle[0]), ("3x3", middle[1])),
        (Conv("Conv2d_0a_1x1", wide[0]), Conv(wide_name, wide[1])),
        (MaxPool("MaxPool_0a_3x3"), Conv("Conv2d_0b_1x1", pooled)),
    )


_V1 = (
    Conv("Conv2d_1a_7x7", 64, stride=2),
    MaxPool("MaxPool_2a_3x3", stride=2),
    Conv("Conv2d_2b_1x1", 64),
    Conv("Conv2d_2c_3x3", 192),
    MaxPool("MaxPool_3a_3x3", stride=2),
    _v1_mixed("Mixed_3b", 64, (96, 128), (16, 32), 32),
    _v1_mixed("Mixed_3c", 128, (128, 192), (32, 96), 64),
    MaxPool("MaxPool_4a_3x3", stride=2),
    _v1_mixed("Mixed_4b", 192, (96, 208), (16, 48), 64),
    _v1_mixed("Mixed_4c", 160, (112, 224), (24, 64), 64),
    _v1_mixed("Mixed_4d", 128, (128, 256), (24, 64), 64),
    _v1_mixed("Mixed_4e", 112, (144, 288), (32, 64), 64),
    _v1_mixed("Mixed_4f", 256, (160, 320), (32, 128), 128),
    MaxPool("MaxPool_5a_2x2", stride=2, window=2),
    # TF-Slim misnames one kernel of this block.
    _v1_mixed("Mixed_5b", 256, (160, 320), (32, 128), 128, wide_name="Conv2d_0a_3x3"),
    _v1_mixed("Mixed_5c", 384, (192, 384), (48, 128), 128),
)


# --------------------------------------------------------------------- version 2


def _v2_mixed(
    name: str,
    direct: int,
    single: tuple[int, int],
    double: tuple[int, int],
    pooled: int,
    pool: Step | None = None,
) -> Mixed:
    """Return a block; the numbers are the channels of its four branches."""
    return _mixed(
        name,
        _chain(("1x1", direct)),
        _chain(("1x1", single[0]), ("3x3", single[1])),
        _chain(("1x1", double[0]), ("3x3", double[1]), ("3x3", double[1])),
        (pool or AvgPool(), Conv("Conv2d_0b_1x1", pooled)),
    )


def _v2_reduction(name: str, single: tuple[int, int], double: tuple[int, int]) -> Mixed:
    """Return a block that halves the resolution."""
    return _mixed(
        name,
        (*_chain(("1x1", single[0])), _halve(single[1], "SAME")),
        (*_chain(("1x1", double[0]), ("3x3", double[1])), _halve(double[1], "SAME")),
        (MaxPool("MaxPool_1a_3x3", stride=2),),
    )


_V2 = (
    Separable("Conv2d_1a_7x7", 64, multiplier=8, stride=2),
    MaxPool("MaxPool_2a_3x3", stride=2),
    Conv("Conv2d_2b_1x1", 64),
    Conv("Conv2d_2c_3x3", 192),
    MaxPool("MaxPool_3a_3x3", stride=2),
    _v2_mixed("Mixed_3b", 64, (64, 64), (64, 96), 32),
    _v2_mixed("Mixed_3c", 64, (64, 96), (64, 96), 64),
    _v2_reduction("Mixed_4a", (128, 160), (64, 96)),
    _v2_mixed("Mixed_4b", 224, (64, 96), (96, 128), 128),
    _v2_mixed("Mixed_4c", 192, (96, 128), (96, 128), 128),
    _v2_mixed("Mixed_4d", 160, (128, 160), (128, 160), 96),
    _v2_mixed("Mixed_4e", 96, (128, 192), (160, 192), 96),
    _v2_reduction("Mixed_5a", (128, 192), (192, 256)),
    _v2_mixed("Mixed_5b", 352, (192, 320), (160, 224), 128),
    _v2_mixed("Mixed_5c", 352, (192, 320), (192, 224), 128, MaxPool("MaxPool_0a_3x3")),
)


# --------------------------------------------------------------------- version 3


def _v3_mixed_5(
    name: str,
    pooled: int,
    wide_names: tuple[str, str] = ("Conv2d_0a_1x1", "Conv2d_0b_5x5"),
) -> Mixed:
    """Return a block of the first resolution."""
    return _mixed(
        name,
        _chain(("1x1", 64)),
        (Conv(wide_names[0], 48), Conv(wide_names[1], 64)),
        _chain(("1x1", 64), ("3x3", 96), ("3x3", 96)),
        _pool(pooled),
    )


def _v3_mixed_6(name: str, width: int) -> Mixed:
    """Return a block of the second resolution, with 1x7 and 7x1 kernels."""
    return _mixed(
        name,
        _chain(("1x1", 192)),
        _chain(("1x1", width), ("1x7", width), ("7x1", 192)),
        _chain(
            ("1x1", width), ("7x1", width), ("1x7", width), ("7x1", width), ("1x7", 192)
        ),
        _pool(192),
    )


def _v3_mixed_7(name: str, tall_name: str) -> Mixed:
    """Return a block of the third resolution, with parallel 1x3 and 3x1 kernels."""
    double = Fork((Conv("Conv2d_0c_1x3", 384), Conv("Conv2d_0d_3x1", 384)))
    return _mixed(
        name,
        _chain(("1x1", 320)),
        (
            *_chain(("1x1", 384)),
            Fork((Conv("Conv2d_0b_1x3", 384), Conv(tall_name, 384))),
        ),
        (*_chain(("1x1", 448), ("3x3", 384)), double),
        _pool(192),
    )


# Shared with Inception-ResNet.
_STEM = (
    Conv("Conv2d_1a_3x3", 32, stride=2, padding="VALID"),
    Conv("Conv2d_2a_3x3", 32, padding="VALID"),
    Conv("Conv2d_2b_3x3", 64),
    MaxPool("MaxPool_3a_3x3", stride=2, padding="VALID"),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, padding="VALID"),
    MaxPool("MaxPool_5a_3x3", stride=2, padding="VALID"),
)

_V3 = (
    *_STEM,
    _v3_mixed_5("Mixed_5b", 32),
    # TF-Slim misnames some kernels here and below.
    _v3_mixed_5("Mixed_5c", 64, wide_names=("Conv2d_0b_1x1", "Conv_1_0c_5x5")),
    _v3_mixed_5("Mixed_5d", 64),
    _mixed(
        "Mixed_6a",
        (Conv("Conv2d_1a_1x1", 384, 2, "VALID", kernel_size=(3, 3)),),
        (
            *_chain(("1x1", 64), ("3x3", 96)),
            Conv("Conv2d_1a_1x1", 96, 2, "VALID", kernel_size=(3, 3)),
        ),
        _HALVING_POOL,
    ),
    _v3_mixed_6("Mixed_6b", 128),
    _v3_mixed_6("Mixed_6c", 160),
    _v3_mixed_6("Mixed_6d", 160),
    _v3_mixed_6("Mixed_6e", 192),
    _mixed(
        "Mixed_7a",
        (*_chain(("1x1", 192)), _halve(320)),
        (*_chain(("1x1", 192), ("1x7", 192), ("7x1", 192)), _halve(192)),
        _HALVING_POOL,
    ),
    _v3_mixed_7("Mixed_7b", tall_name="Conv2d_0b_3x1"),
    _v3_mixed_7("Mixed_7c", tall_name="Conv2d_0c_3x1"),
)


# --------------------------------------------------------------------- version 4

# The branches of the paper's figures 4, 5 and 6.
_V4_A = (
    _chain(("1x1", 96)),
    _chain(("1x1", 64), ("3x3", 96)),
    _chain(("1x1", 64), ("3x3", 96), ("3x3", 96)),
    _pool(96),
)
_V4_B = (
    _chain(("1x1", 384)),
    _chain(("1x1", 192), ("1x7", 224), ("7x1", 256)),
    _chain(("1x1", 192), ("7x1", 192), ("1x7", 224), ("7x1", 224), ("1x7", 256)),
    _pool(128),
)
_V4_C = (
    _chain(("1x1", 256)),
    (
        *_chain(("1x1", 384)),
        Fork((Conv("Conv2d_0b_1x3", 256), Conv("Conv2d_0c_3x1", 256))),
    ),
    (
        *_chain(("1x1", 384), ("3x1", 448), ("1x3", 512)),
        Fork((Conv("Conv2d_0d_1x3", 256), Conv("Conv2d_0e_3x1", 256))),
    ),
    _pool(256),
)

_V4: Steps = (
    Conv("Conv2d_1a_3x3", 32, 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64),
    _mixed(
        "Mixed_3a",
        (MaxPool("MaxPool_0a_3x3", 2, "VALID"),),
        (Conv("Conv2d_0a_3x3", 96, 2, "VALID"),),
    ),
    _mixed(
        "Mixed_4a",
        (*_chain(("1x1", 64)), Conv("Conv2d_1a_3x3", 96, 1, "VALID")),
        (
            *_chain(("1x1", 64), ("1x7", 64), ("7x1", 64)),
            Conv("Conv2d_1a_3x3", 96, 1, "VALID"),
        ),
    ),
    _mixed("Mixed_5a", (_halve(192),), _HALVING_POOL),
    *(Mixed(f"Mixed_5{letter}", _V4_A) for letter in "bcde"),
    _mixed(
        "Mixed_6a",
        (_halve(384),),
        (*_chain(("1x1", 192), ("3x3", 224)), _halve(256)),
        _HALVING_POOL,
    ),
    *(Mixed(f"Mixed_6{letter}", _V4_B) for letter in "bcdefgh"),
    _mixed(
        "Mixed_7a",
        (*_chain(("1x1", 192)), _halve(192)),
        (*_chain(("1x1", 256), ("1x7", 256), ("7x1", 320)), _halve(320)),
        _HALVING_POOL,
    ),
    *(Mixed(f"Mixed_7{letter}", _V4_C) for letter in "bcd"),
)


# ---------------------------------------------------------- Inception-ResNet v2

# Branches of the residual blocks, named after their side in pixels in training.
_BLOCK_35 = (
    (Conv("Conv2d_1x1", 32),),
    _chain(("1x1", 32), ("3x3", 32)),
    _chain(("1x1", 32), ("3x3", 48), ("3x3", 64)),
)
_BLOCK_17 = (
    (Conv("Conv2d_1x1", 192),),
    _chain(("1x1", 128), ("1x7", 160), ("7x1", 192)),
)
_BLOCK_8 = (
    (Conv("Conv2d_1x1", 192),),
    _chain(("1x1", 192), ("1x3", 224), ("3x1", 256)),
)


def _repeat(
    name: str,
    block: str,
    count: int,
    branches: tuple[Steps, ...],
    scale: float,
    endpoint: str = "",
) -> Scope:
    """Return `count` equal residual blocks, named BLOCK_1 and so on."""
    numbers = range(1, count + 1)
    blocks = tuple(Residual(f"{block}_{i}", branches, scale) for i in numbers)
    return Scope(name, blocks, endpoint)


_RESNET_V2: Steps = (
    *_STEM,
    _mixed(
        "Mixed_5b",
        (Conv("Conv2d_1x1", 96),),
        _chain(("1x1", 48), ("5x5", 64)),
        _chain(("1x1", 64), ("3x3", 96), ("3x3", 96)),
        _pool(64),
    ),
    _repeat("Repeat", "block35", 10, _BLOCK_35, scale=0.17, endpoint="block35_10"),
    _mixed(
        "Mixed_6a",
        (_halve(384),),
        (*_chain(("1x1", 256), ("3x3", 256)), _halve(384)),
        _HALVING_POOL,
    ),
    _repeat("Repeat_1", "block17", 20, _BLOCK_17, scale=0.1, endpoint="PreAuxLogits"),
    _mixed(
        "Mixed_7a",
        (*_chain(("1x1", 256)), _halve(384)),
        (*_chain(("1x1", 256)), _halve(288)),
        (*_chain(("1x1", 256), ("3x3", 288)), _halve(320)),
        _HALVING_POOL,
    ),
    _repeat("Repeat_2", "block8", 9, _BLOCK_8, scale=0.2),
    Residual("Block8", _BLOCK_8, scale=1.0, activate=False),
    Conv("Conv2d_7b_1x1", 1536),
)


_LARGE: dict[str, Any] = {"image_size": 299, "minimum_image_size": 75}

register(
    Architecture(
        name="inception_resnet_v2",
        build=functools.partial(Inception, steps=_RESNET_V2),
        feature_dim=1536,
        scope="InceptionResnetV2",
        classifier="Logits/Logits",
        classifier_is_dense=True,
        blocks=("block35_10", "PreAuxLogits", "Conv2d_7b_1x1"),
        **_LARGE,
    ),
    Architecture(
        name="inception_v1",
        build=functools.partial(Inception, steps=_V1, pool_name="AvgPool_0a_7x7"),
        feature_dim=1024,
        scope="InceptionV1",
        classifier="Logits/Conv2d_0c_1x1",
        blocks=("Mixed_3c", "Mixed_4f", "Mixed_5c"),
    ),
    Architecture(
        name="inception_v2",
        build=functools.partial(Inception, steps=_V2, pool_name="AvgPool_1a"),
        feature_dim=1024,
        scope="InceptionV2",
        classifier="Logits/Conv2d_1c_1x1",
        blocks=("Mixed_3c", "Mixed_4e", "Mixed_5c"),
    ),
    Architecture(
        name="inception_v3",
        build=functools.partial(Inception, steps=_V3, pool_name="AvgPool_1a"),
        feature_dim=2048,
        scope="InceptionV3",
        classifier="Logits/Conv2d_1c_1x1",
        blocks=("Mixed_5d", "Mixed_6e", "Mixed_7c"),
        **_LARGE,
    ),
    Architecture(
        name="inception_v4",
        build=functools.partial(Inception, steps=_V4),
        feature_dim=1536,
        scope="InceptionV4",
        classifier="Logits/Logits",
        classifier_is_dense=True,
        blocks=("Mixed_5e", "Mixed_6h", "Mixed_7d"),
        **_LARGE,
    ),
)

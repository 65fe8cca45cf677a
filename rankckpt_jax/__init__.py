"""Ranks pre-trained checkpoints for an image classification task, in JAX.

    from rankckpt_jax import rank
    print(rank(data="path/to/images", checkpoints="path/to/checkpoints"))

`rank` and `rank_features` are those of `rankckpt_jax.api`, imported when first used: a
program that only shows its help must not wait for JAX.
"""

import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankckpt_jax.api import rank, rank_features

__all__ = ["rank", "rank_features"]

__version__ = "0.1.0"

# `configs/` stands at the top of a checkout and inside the package once installed.
# Looking for submodules in both makes `rankckpt_jax.configs` mean the same folder.
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "configs" / "default.py").is_file():
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str) -> Any:
    if name in __all__:
        from rankckpt_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Ranks pre-trained checkpoints for an image classification task, in JAX.

    from rankckpt_jax import rank
    print(rank(data="path/to/images", checkpoints="path/to/checkpoints"))

Public names are imported when they are first used, so that `--help` does not wait for
JAX.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankckpt_jax.api import load_model, predict, rank, rank_features
    from rankckpt_jax.errors import InputError
    from rankckpt_jax.results.ranking import Ranking

__all__ = [
    "InputError",
    "Ranking",
    "load_model",
    "predict",
    "rank",
    "rank_features",
]

__version__ = "0.8.0"

_MODULES = {
    "InputError": "errors",
    "Ranking": "results.ranking",
    "load_model": "api",
    "predict": "api",
    "rank": "api",
    "rank_features": "api",
}

# In a checkout, `configs/` is at the top; in an installation it is inside the package.
# With both directories on the path, `rankckpt_jax.configs` works in both.
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "configs" / "default.py").is_file():
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

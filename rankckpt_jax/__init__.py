"""Ranks pre-trained checkpoints for an image classification task, in JAX."""

import pathlib

__version__ = "0.1.0"

# `configs/` stands at the top of a checkout and inside the package once installed.
# Looking for submodules in both makes `rankckpt_jax.configs` mean the same folder.
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "configs" / "default.py").is_file():
    __path__.append(str(_CHECKOUT))

"""TensorFlow, on the CPU and only once it is needed.

It reads checkpoints and decodes images. Importing it takes seconds, and left alone it
would reserve the accelerator's memory that JAX needs; `tensorflow()` is the only way
this package reaches it.
"""

from __future__ import annotations

import functools
import os
from typing import Any


@functools.cache
def tensorflow() -> Any:
    """Imports TensorFlow with every accelerator hidden from it.

    Returns:
      The module `tensorflow`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf

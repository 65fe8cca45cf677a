"""TensorFlow, on the CPU and only once it is needed.

It reads checkpoints and decodes images. Importing it takes seconds, and left alone it
would reserve the accelerator's memory that JAX needs; `tensorflow()` is the only way
this package reaches it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any


@functools.cache
def tensorflow() -> Any:
    """Imports TensorFlow with every accelerator hidden from it.

    Returns:
      The module `tensorflow`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silenced_stderr():
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
    return tf


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Holds back what native code writes to standard error, unless an error follows.

    TensorFlow reports there, whatever the log level and before its log is set up,
    that it found no CUDA driver, which on a laptop reads like a failure of ours.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(original, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)

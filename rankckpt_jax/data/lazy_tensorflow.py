"""TensorFlow, imported on first use and restricted to the CPU.

TensorFlow reads TFDS data sets and some kinds of checkpoints. Importing it takes
seconds, and by default it would reserve the accelerator memory that JAX needs. All code
of this package gets it from `tensorflow()`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from rankckpt_jax.devices import progress
from rankckpt_jax.errors import InputError


@functools.cache
def tensorflow() -> Any:
    """Return the module `tensorflow`, with all accelerators hidden from it.

    Raises:
      InputError: There is no directory for temporary files, which it needs.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(
            "There is no directory for temporary files",
            where="the variable TMPDIR",
            expected="a directory that this user may write, with free space",
            found=error.strerror or str(error),
            fix="set TMPDIR to such a directory",
        ) from error
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with progress.step("TensorFlow", "loading"), _silenced_stderr():
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
    hide_triton()
    return tf


def hide_triton() -> None:
    """Let PyTorch do without Triton once TensorFlow is loaded.

    Both contain LLVM, and loading Triton second ends the process with a segmentation
    fault. PyTorch imports it where it is installed, and needs it for nothing here.
    """
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Discard what native code writes to standard error, unless an error follows.

    Whatever the log level, TensorFlow writes that it found no CUDA driver. On a laptop
    that looks like a failure of this package.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with (
        tempfile.TemporaryFile() as held,
        os.fdopen(os.dup(original), "w") as visible,
        progress.writing_to(visible),
    ):
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

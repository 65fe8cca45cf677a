import importlib
import sys
import types

import pytest

from rankckpt_jax.data import lazy_tensorflow
from rankckpt_jax.errors import InputError


def test_tensorflow_raises_without_a_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/no/such/tmp"])
    with pytest.raises(InputError, match="No usable temporary directory") as error:
        lazy_tensorflow.tensorflow.__wrapped__()
    assert "set TMPDIR" in str(error.value)


def test_hide_triton_lets_pytorch_be_imported_after_tensorflow(monkeypatch):
    """Loading Triton second would end the process."""
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    del sys.modules["triton"]
    lazy_tensorflow.hide_triton()
    with pytest.raises(ImportError):
        importlib.import_module("triton")

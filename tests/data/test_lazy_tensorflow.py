import pytest

from rankckpt_jax.data import lazy_tensorflow
from rankckpt_jax.errors import InputError


def test_tensorflow_raises_without_a_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/no/such/tmp"])
    with pytest.raises(InputError, match="No usable temporary directory") as error:
        lazy_tensorflow.tensorflow.__wrapped__()
    assert "set TMPDIR" in str(error.value)

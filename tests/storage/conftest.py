"""Fixtures of the storage tests."""

import pytest
from etils.epath import backend, gpath

BUCKET = "gs://bucket"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Return the local folder to which `epath` operations on gs://bucket go."""
    root = tmp_path / "bucket"
    root.mkdir()

    def local(argument):
        if isinstance(argument, str) and argument.startswith(BUCKET):
            return str(root) + argument.removeprefix(BUCKET)
        return argument

    def redirected(name):
        original = getattr(backend.os_backend, name)

        def call(self, *arguments, **options):
            result = original(*map(local, arguments), **options)
            if name == "glob":
                return [BUCKET + path.removeprefix(str(root)) for path in result]
            return result

        return call

    names = "open exists isdir listdir glob makedirs mkdir rmtree remove rename replace"
    methods = {name: redirected(name) for name in [*names.split(), "copy", "stat"]}
    local_backend = type("LocalBackend", (type(backend.os_backend),), methods)()
    # `epath` uses whichever of the two is installed.
    for name in ("tf_backend", "fsspec_backend"):
        monkeypatch.setattr(backend, name, local_backend)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", (local_backend,))
    return root

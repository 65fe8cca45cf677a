"""Files of weights in formats that are not read, and what to do with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from etils import epath

from rankckpt_jax.errors import some

_SAVED_MODEL = "export the network as a SavedModel"
_FLAX = "load them in Python and pass checkpoints.from_flax(module, variables, ...)"
_TORCH = (
    "save the weights with torch.save(model.state_dict(), FILE) and name "
    "FILE#model=NAME"
)

# (format, what to do) by the ending of the file.
_FORMATS = {
    ".onnx": ("ONNX", f"{_SAVED_MODEL}, or find the weights that it was made from"),
    ".tflite": ("TensorFlow Lite", _SAVED_MODEL),
    ".pb": ("a frozen TensorFlow graph", _SAVED_MODEL),
    ".pbtxt": ("a TensorFlow graph as text", _SAVED_MODEL),
    ".msgpack": ("Flax", _FLAX),
    ".orbax": ("Orbax", _FLAX),
    ".npz": (
        "NumPy",
        "load them in Python; features that were extracted elsewhere go into "
        "config.features",
    ),
    ".pkl": ("a pickle, which could run code", _TORCH),
    ".pickle": ("a pickle, which could run code", _TORCH),
    ".joblib": ("a pickle, which could run code", _TORCH),
    ".bin": ("an unknown binary format", _TORCH),
    ".pt2": ("an exported PyTorch program", _TORCH),
    ".pte": ("an exported PyTorch program", _TORCH),
    ".ptl": ("an exported PyTorch program", _TORCH),
    ".mar": ("TorchServe", _TORCH),
    ".mlmodel": ("Core ML", _SAVED_MODEL),
    ".engine": ("TensorRT", _SAVED_MODEL),
    ".plan": ("TensorRT", _SAVED_MODEL),
    ".gguf": ("GGUF", _TORCH),
    ".caffemodel": ("Caffe", _SAVED_MODEL),
    ".pdparams": ("PaddlePaddle", _SAVED_MODEL),
    ".params": ("MXNet", _SAVED_MODEL),
}

# More are not looked at.
_MOST = 10_000


def describe(places: Iterable[epath.Path]) -> tuple[str, str]:
    """Return (the files of weights in other formats, what to do); empty without any.

    Args:
      places: Files, or directories that are searched.
    """
    files = list(itertools.islice(_files(places), _MOST))
    kinds = {path.suffix: _FORMATS[path.suffix] for path in files}
    if not kinds:
        return "", ""
    formats = ", ".join(dict.fromkeys(name for name, _ in kinds.values()))
    advice = "; ".join(dict.fromkeys(text for _, text in kinds.values()))
    return f"{some((p.name for p in files), 4)} ({formats})", advice


def _files(places: Iterable[epath.Path]) -> Iterable[epath.Path]:
    for place in places:
        if place.is_dir():
            yield from _files(sorted(place.iterdir(), key=str))
        elif place.suffix in _FORMATS:
            yield place

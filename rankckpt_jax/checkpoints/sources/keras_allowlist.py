"""Refuse Keras files with anything except Keras's own computing layers.

Keras models are untrusted input. A file names the classes of its layers. It can contain
Python code (a `Lambda` layer) or name functions to call. Some of Keras's layers read
files that the description names (`StringLookup`), or load other formats with code
(`TFSMLayer`; `TorchModuleWrapper`, which unpickles). HDF5, the format of the weights,
can refer to other files. All of this is checked before Keras reads the file.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.sources import keras_config
from rankckpt_jax.errors import InputError

_LAYERS = """
Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average
AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization CenterCrop
Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose
Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout
EinsumDense ELU Embedding Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D
GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer
LayerNormalization LayerScale LeakyReLU Masking Maximum MaxPooling1D MaxPooling2D
MaxPooling3D Minimum MultiHeadAttention Multiply Normalization Permute PReLU RandomApply
RandomBrightness RandomContrast RandomCrop RandomFlip RandomHeight RandomRotation
RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
RMSNormalization SeparableConv1D SeparableConv2D Softmax SpatialDropout1D
SpatialDropout2D SpatialDropout3D SpectralNormalization StochasticDepth Subtract
ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D
ZeroPadding1D ZeroPadding2D ZeroPadding3D CustomScaleLayer
"""
_PARTS = """
Constant GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer LecunNormal
LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform
TruncatedNormal VarianceScaling Zeros L1 L1L2 L2 OrthogonalRegularizer MaxNorm
MinMaxNorm NonNeg UnitNorm DTypePolicy DTypePolicyMap FloatDTypePolicy Policy
SeedGenerator
"""
_MODELS = "Functional Model Sequential"
# Values that JSON cannot express.
_VALUES = "__keras_tensor__ __tensor__ __numpy__ __bytes__ __ellipsis__ slice"
CLASSES = frozenset(" ".join((_LAYERS, _PARTS, _MODELS, _VALUES)).split())
"""Names of classes that a description may contain."""

# Modules of these classes. All operations in keras.src.ops only compute.
_MODULES = re.compile(
    r"keras(\.src)?(\.(layers|models|initializers|regularizers|constraints|dtype_policies"
    r"|mixed_precision|random|engine|saving|applications)(\..*)?)?|builtins"
)
_OPERATIONS = re.compile(r"keras\.src\.ops\.\w+")
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
_MOST_CONFIG = 256_000_000


def read(path: epath.Path | str) -> Any:
    """Return a model's description, upgraded for Keras 3, after all checks.

    Raises:
      InputError: The file is damaged, or could do anything except compute.
    """
    description = keras_config.upgrade(*_description(path))
    refused = sorted({*refused_classes(description)})
    if refused:
        raise InputError(
            "The Keras model contains code, or classes that may do more than compute",
            where=str(path),
            expected="Keras's own layers for images",
            found=", ".join(refused),
            fix="export it as a SavedModel with model.export(DIR); nothing of this "
            "file was run",
        )
    return description


def _description(path: epath.Path | str) -> tuple[Any, str]:
    """Return (the model's description, the version of Keras that wrote it).

    The file of the weights is checked first.

    Raises:
      InputError: It cannot be read, or its parts are not those of `keras.Model.save`.
    """
    # Imported late for start-up time.
    import h5py

    place = epath.Path(path)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(place.open("rb"))
            if place.suffix != ".keras":
                weights = stack.enter_context(h5py.File(file, "r"))
                _check_links(path, weights)
                version = weights.attrs.get("keras_version", "")
                return json.loads(weights.attrs["model_config"]), _text(version)
            archive = stack.enter_context(zipfile.ZipFile(file))
            _check_members(path, archive)
            if _MEMBERS[2] in archive.namelist():
                member = stack.enter_context(archive.open(_MEMBERS[2]))
                _check_links(path, stack.enter_context(h5py.File(member, "r")))
            version = ""
            if _MEMBERS[0] in archive.namelist():
                metadata = json.loads(archive.read(_MEMBERS[0]))
                version = _text(metadata.get("keras_version", ""))
            return json.loads(archive.read("config.json")), version
    except InputError:
        raise
    except (
        *(OSError, KeyError, ValueError, RuntimeError, RecursionError),
        *(TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile),
    ) as error:
        raise InputError(
            "A Keras model cannot be read",
            where=str(path),
            expected="a file of model.save(), with architecture and weights",
            found=str(error).strip().splitlines()[0] if str(error) else "",
            fix="copy it again, or save the complete model instead of its weights",
        ) from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_members(path: epath.Path | str, archive: zipfile.ZipFile) -> None:
    """Raise `InputError` for an archive that `keras.Model.save` does not write."""
    for info in archive.infolist():
        known = info.filename in _MEMBERS
        # Keras does not compress, so that sizes are those in memory.
        stored = info.compress_type == zipfile.ZIP_STORED
        small = info.filename == _MEMBERS[2] or info.file_size <= _MOST_CONFIG
        if not (known and stored and small):
            raise InputError(
                "The Keras model has an unexpected part",
                where=str(path),
                expected=" and ".join(_MEMBERS) + ", not compressed",
                found=f"{ascii(info.filename)}, {info.file_size} bytes"
                + ("" if stored else ", compressed"),
                fix="save it again with model.save()",
            )


def _check_links(path: epath.Path | str, weights: Any) -> None:
    """Raise `InputError` for HDF5 that refers to other files or in circles."""
    link = next(_links(weights, set()), None)
    if link is not None:
        raise InputError(
            "The Keras model's weights refer to other files",
            where=str(path),
            found=link,
            fix="save it again with model.save()",
        )


def _links(group: Any, seen: set[int]) -> Iterator[str]:
    """Yield links and data outside a group; `seen` holds the addresses of objects."""
    # Imported late for start-up time.
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield f"{group.name}/{name}"
            continue
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                yield str(item.name)
            continue
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            yield f"{group.name}/{name}"
            continue
        seen.add(address)
        if isinstance(item, h5py.Group):
            yield from _links(item, seen)


def refused_classes(description: Any) -> Iterator[str]:
    """Yield the classes of a description that are not allowed."""
    if isinstance(description, list):
        for item in description:
            yield from refused_classes(item)
    if not isinstance(description, dict) or description == keras_config.HARD_SIGMOID:
        return
    name, module = description.get("class_name"), description.get("module")
    if name is not None or module is not None:
        operation = isinstance(module, str) and _OPERATIONS.fullmatch(module)
        known = module is None or (
            isinstance(module, str) and _MODULES.fullmatch(module)
        )
        if name == "function" or not (operation or (known and str(name) in CLASSES)):
            yield f"{module}.{name}" if module else str(name)
    for value in description.values():
        yield from refused_classes(value)

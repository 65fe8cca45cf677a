"""Which Keras files are loaded: those of Keras's own computing layers, and no others.

A file of Keras describes its layers by the names of classes. It can carry Python code
(a `Lambda` layer) or name functions to call; some of Keras's own layers read files that
the description names (`StringLookup`), or load other formats that carry code
(`TFSMLayer`, `TorchModuleWrapper`, which unpickles). And HDF5, in which the weights
are, can refer to other files. All of it is looked through before Keras sees the file.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from etils import epath

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
# Values in a description that JSON has no form for.
_VALUES = "__keras_tensor__ __tensor__ __numpy__ __bytes__ __ellipsis__ slice"
CLASSES = frozenset(" ".join((_LAYERS, _PARTS, _MODELS, _VALUES)).split())
"""Names of classes that a description may hold."""

# Where these classes are; of the operations, all that is there computes.
_MODULES = re.compile(
    r"keras(\.src)?(\.(layers|models|initializers|regularizers|constraints|dtype_policies"
    r"|mixed_precision|random|engine|saving|applications)(\..*)?)?|builtins"
)
_OPERATIONS = re.compile(r"keras\.src\.ops\.\w+")
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
_MOST_CONFIG = 256_000_000
# Not read for a model that is not compiled.
_TRAINING = "compile_config"


def check(path: epath.Path | str) -> None:
    """Refuses a file that could do anything but compute.

    Raises:
      InputError: It is damaged, or says what it holds.
    """
    found = sorted({*_foreign(_description(path))})
    if found:
        raise InputError(
            "The Keras model holds code, or classes that are not known to only compute",
            where=str(path),
            found=", ".join(found),
            fix="build it of Keras's layers for images, or export it as a SavedModel "
            "with model.export(DIR); nothing of this file was run",
        )


def _description(path: epath.Path | str) -> Any:
    """The model's description, which lists its layers; its weights are looked through.

    Raises:
      InputError: It cannot be read.
    """
    import h5py

    place = epath.Path(path)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(place.open("rb"))
            if place.suffix != ".keras":
                weights = stack.enter_context(h5py.File(file, "r"))
                _check_links(path, weights)
                return json.loads(weights.attrs["model_config"])
            archive = stack.enter_context(zipfile.ZipFile(file))
            _check_members(path, archive)
            if _MEMBERS[2] in archive.namelist():
                member = stack.enter_context(archive.open(_MEMBERS[2]))
                _check_links(path, stack.enter_context(h5py.File(member, "r")))
            return json.loads(archive.read("config.json"))
    except InputError:
        raise
    except (
        *(OSError, KeyError, ValueError, RuntimeError, RecursionError),
        *(NotImplementedError, zipfile.BadZipFile),
    ) as error:
        raise InputError(
            "A Keras model cannot be read",
            where=str(path),
            expected="a file of model.save(), which has the architecture too",
            found=str(error).strip().splitlines()[0] if str(error) else "",
            fix="copy it again, or save the whole model and not its weights alone",
        ) from error


def _check_members(path: epath.Path | str, archive: zipfile.ZipFile) -> None:
    """Refuses an archive that `keras.Model.save` would not have written."""
    for info in archive.infolist():
        known = info.filename in _MEMBERS
        # As Keras writes them; so nothing grows when it is read.
        stored = info.compress_type == zipfile.ZIP_STORED
        small = info.filename == _MEMBERS[2] or info.file_size <= _MOST_CONFIG
        if not (known and stored and small):
            raise InputError(
                "The Keras model has a part that is not taken",
                where=str(path),
                expected=" and ".join(_MEMBERS) + ", not compressed",
                found=f"{ascii(info.filename)}, {info.file_size} bytes"
                + ("" if stored else ", compressed"),
                fix="save it again with model.save()",
            )


def _check_links(path: epath.Path | str, weights: Any) -> None:
    """Refuses an HDF5 file that refers to other files, or in circles."""
    found = next(_links(weights, set()), None)
    if found is not None:
        raise InputError(
            "The Keras model's weights refer to other files",
            where=str(path),
            found=found,
            fix="save it again with model.save()",
        )


def _links(group: Any, seen: set[int]) -> Iterator[str]:
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


def _foreign(description: Any) -> Iterator[str]:
    """Classes of a description that are not allowed."""
    if isinstance(description, list):
        for item in description:
            yield from _foreign(item)
    if not isinstance(description, dict):
        return
    name, module = description.get("class_name"), description.get("module")
    if name is not None or module is not None:
        operation = isinstance(module, str) and _OPERATIONS.fullmatch(module)
        known = module is None or (
            isinstance(module, str) and _MODULES.fullmatch(module)
        )
        if name == "function" or not (operation or (known and name in CLASSES)):
            yield f"{module}.{name}" if module else str(name)
    for key, value in description.items():
        if key != _TRAINING:
            yield from _foreign(value)

"""TF-Hub modules, SavedModels and Keras files become `Backbone`s.

Everything becomes a pure function of images and Flax variables by way of its
TensorFlow graph and tf2jax; where the variables are those of a network that `models`
has and the two agree, the Flax network takes the graph's place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

import rankckpt_jax
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import conversion as converted_lib
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.checkpoints.fetch import uris as handles
from rankckpt_jax.checkpoints.graphs import recognize as native
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply
from rankckpt_jax.checkpoints.sources import keras as keras_files
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError, redact
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)

_MODULE_FILES = ("saved_model.pb", "tfhub_module.pb")
_LIBRARIES = ("tensorflow", "tf2jax", "keras", "jax", "flax")
_DEFAULT_SIZE = 224


def is_module(path: epath.Path | str) -> bool:
    """Whether a local path is a module's directory or a Keras file."""
    place = epath.Path(path)
    if place.name.endswith(keras_files.SUFFIXES):
        return True
    return any((place / name).exists() for name in _MODULE_FILES)


def load_hub(
    handle: epath.Path | str,
    signature: str | None = None,
    output: str | None = None,
    *,
    name: str | None = None,
    image_size: int | None = None,
    input_range: tuple[float, float] | None = None,
    input_mean: tuple[float, float, float] | None = None,
    storage: download.Storage | None = None,
    cache: epath.Path | str | None = None,
    prefer_native: bool = True,
) -> backbone_lib.Backbone:
    """Converts a TF-Hub module, a SavedModel or a Keras model.

    Args:
      handle: A directory, a `.keras` or `.h5` file, an archive, `gs://...`, or
        "https://tfhub.dev/PUBLISHER/MODULE/VERSION"; see `handles`.
      signature: Which of its functions; by default the module's call, else
        `representation`, `image_feature_vector`, `feature_vector`, `default` or
        `serving_default`, whichever there is first.
      output: Name of the output that the features are, of a Keras layer, or of a
        tensor within the graph; by default as VTAB chooses: the pooled pre-logits. Of
        [B, h, w, D] the mean over places is taken.
      name: Unique in its pool; by default after the handle.
      image_size: Side of the images in pixels; by default the module's own.
      input_range: Values that 0 and 255 become; by default TF-Hub's [0, 1], or what a
        Keras application is known to want.
      input_mean: Subtracted afterwards, per channel.
      storage: Where downloads are kept; by default the user's cache.
      cache: A directory of conversions; what it has is not converted again. By
        default nothing is kept.
      prefer_native: Take the network of `models` where the module's is one.

    Returns:
      The backbone. `apply(variables, images, train=True)` uses batch statistics if the
      module has a graph for training; otherwise batch norm stays as it is and the
      statistics come back unchanged.

    Raises:
      InputError: It cannot be fetched or read, is unsafe, its features cannot be told,
        or an operation has no counterpart in JAX.
    """
    place = handles.resolve(handle, storage or download.storage())
    if not is_module(place):
        raise InputError(
            "This is no module, SavedModel or Keras model",
            where=str(handle),
            expected="a directory with saved_model.pb, or a .keras or .h5 file",
            found="nothing" if not place.exists() else str(place),
        )
    fingerprint = _fingerprint(place)
    request = {
        "fingerprint": fingerprint,
        "signature": signature,
        "output": output,
        "image_size": image_size,
        "input_range": input_range and list(input_range),
        "input_mean": input_mean and list(input_mean),
        "prefer_native": prefer_native,
        "rankckpt_jax": rankckpt_jax.__version__,
    }
    key = files.digest(fingerprint, repr((signature, output, image_size)))[:16]
    directory = epath.Path(cache) / key if cache is not None else None
    found = converted_lib.load(directory, request) if directory is not None else None
    title = name or handles.name(str(handle)).strip("/").replace("/", "_")
    if found is None:
        found, facts = _convert(
            place,
            redact(str(handle)),
            fingerprint,
            signature,
            output,
            image_size=image_size,
            input_range=input_range,
            input_mean=input_mean,
            prefer_native=prefer_native,
        )
        if directory is not None and processes.is_main_process():
            converted_lib.save(directory, request, found, facts)
    return dataclasses.replace(found, name=title, source=redact(str(handle)))


def _convert(
    place: epath.Path,
    handle: str,
    fingerprint: str,
    signature: str | None,
    output: str | None,
    *,
    image_size: int | None,
    input_range: tuple[float, float] | None,
    input_mean: tuple[float, float, float] | None,
    prefer_native: bool,
) -> tuple[backbone_lib.Backbone, dict[str, Any]]:
    # Late: all of them need TensorFlow.
    from rankckpt_jax.checkpoints.graphs import network as network_lib
    from rankckpt_jax.checkpoints.graphs import saved_models

    if place.name.endswith(keras_files.SUFFIXES):
        network = keras_files.read(place, output, image_size)
        converted = network_lib.convert(network, None)
    else:
        network = saved_models.read(place, signature)
        converted = network_lib.convert(network, output)
    fixed = network.image_size if _is_fixed(network.evaluation.image_shape) else None
    if fixed and image_size and image_size != fixed:
        raise InputError(
            f"The network takes images of {fixed} x {fixed} pixels only",
            where=handle,
            found=f"{image_size} x {image_size}",
            fix="leave config.image_size at 0 for this checkpoint",
        )
    size = image_size or network.image_size
    if size is None:
        size = _DEFAULT_SIZE
        _log.warning("%s does not say how large its images are: %d", handle, size)
    if network.kind == "SavedModel" and input_range is None:
        _log.info(
            "%s does not say what its pixels range over: TF-Hub's [0, 1] is taken, and "
            "#input_range=LOW:HIGH after its name sets another",
            handle,
        )
    if converted.graphs.training is None:
        _log.warning(
            "%s has no graph for training: fine-tuning leaves its batch norm as it is",
            handle,
        )
    apply = GraphApply(converted.graphs)
    variables = converted.variables
    feature_dim = _feature_dim(apply, variables, size, handle)
    headless, head = backbone_lib.split_head(variables)
    graph_backbone = backbone_lib.Backbone(
        name="",
        architecture=network.architecture
        or f"graph_{converted.graphs.evaluation.digest[:8]}",
        variables=variables,
        apply=apply,
        image_size=size,
        input_range=input_range or network.input_range,
        input_mean=input_mean or network.input_mean,
        feature_dim=feature_dim,
        num_source_classes=0 if head is None else head["bias"].shape[-1],
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(headless["params"])),
        fingerprint=_identity(fingerprint, signature, output),
        source=handle,
    )
    facts: dict[str, Any] = {
        "handle": handle,
        "fingerprint": fingerprint,
        "kind": network.kind,
        "output": converted.output,
        "versions": _versions(),
    }
    known = native.recognize(converted.values, head) if prefer_native else None
    agreed = native.backbone(known, graph_backbone) if known is not None else None
    if agreed is None:
        return graph_backbone, facts
    chosen, difference = agreed
    _log.info(
        "%s is %s (its graph agrees to %.1g)", handle, chosen.architecture, difference
    )
    facts["largest difference from its graph"] = difference
    return chosen, facts


def _is_fixed(shape: Any) -> bool:
    return shape is not None and None not in shape[1:3]


def _feature_dim(apply: GraphApply, variables: Any, size: int, handle: str) -> int:
    """Width of the features, having traced both modes: what fails, fails here."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    try:
        output = jax.eval_shape(apply, variables, images)
        if not apply.graphs.batch_size:
            jax.eval_shape(
                lambda variables, images: apply(variables, images, train=True),
                variables,
                images,
            )
    except InputError:
        raise
    except Exception as error:  # tf2jax and JAX raise whatever an operation does.
        lines = str(error).strip().splitlines()
        raise InputError(
            "The graph cannot be computed in JAX",
            where=handle,
            found=f"{type(error).__name__}: {lines[0] if lines else ''}",
            fix="name an earlier output, or another image size",
        ) from error
    shape = output.features.shape
    if len(shape) != 2:
        raise InputError(
            "The output cannot be taken for features",
            where=handle,
            expected="[B, D] or [B, h, w, D]",
            found=str(list(shape)),
            fix="name another one: output=NAME",
        )
    return int(shape[1])


def _fingerprint(place: epath.Path) -> str:
    """SHA-256 over the names and bytes of all files of a module."""
    root = pathlib.Path(place)
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    parts: list[str] = []
    for file in paths:
        if file.is_file():
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            parts += [file.relative_to(root).as_posix(), digest]
    return files.digest(*parts)


def _identity(fingerprint: str, signature: str | None, output: str | None) -> str:
    """What features are told apart by: the files, and what was chosen of them."""
    if signature is None and output is None:
        return fingerprint
    return files.digest(fingerprint, repr((signature, output)))


def _versions() -> dict[str, str]:
    versions = {"rankckpt_jax": rankckpt_jax.__version__}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

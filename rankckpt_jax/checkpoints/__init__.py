"""Checkpoints of every kind become a `Backbone`.

`load` accepts any kind; `load_slim` and `load_hub` offer the options of one kind, and
`from_torch` takes a PyTorch module in memory.
`find` lists a pool; `recognize` returns the architecture of a TF-Slim checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import conversion, sources
from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.discovery import find
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.checkpoints.flax_modules import from_flax
from rankckpt_jax.checkpoints.keras_models import from_keras
from rankckpt_jax.checkpoints.sources import Options, hub, keras, slim
from rankckpt_jax.checkpoints.sources.slim import CheckpointInfo, recognize, save_slim
from rankckpt_jax.checkpoints.torch_modules.convert import from_torch
from rankckpt_jax.errors import InputError, redact
from rankckpt_jax.storage import files

__all__ = [
    "Backbone",
    "Options",
    "CheckpointInfo",
    "download",
    "find",
    "from_flax",
    "from_keras",
    "from_torch",
    "identify",
    "load",
    "load_hub",
    "load_slim",
    "recognize",
    "save_slim",
]


def load(
    path: epath.Path | str,
    *,
    name: str = "",
    image_size: int = 0,
    preferred_image_size: int = 0,
    use_moving_averages: bool = False,
    torch_engine: str = "auto",
    with_blocks: bool = False,
    storage: download.Storage | None = None,
    cache: epath.Path | str | None = None,
) -> Backbone:
    """Load a checkpoint of any kind and architecture.

    Args:
      path: A directory, file, archive, address or handle, see `fetch.uris`, or
        "SCHEME:NAME", such as "timm:resnet50.a1_in1k". Options may follow after "#".
      name: Unique in its pool. By default the name of the folder or handle.
      image_size: Side of the images in pixels. 0 means the checkpoint's own, else the
        architecture's default.
      preferred_image_size: The same, but a network of a fixed size keeps its own.
      use_moving_averages: Whether to load exponential moving averages of the weights.
        Applies to TF-Slim and PyTorch only.
      torch_engine: What computes a PyTorch network: "jax", or "torch" for extraction by
        PyTorch itself. "auto" is "jax".
      with_blocks: Whether to find the last blocks of a PyTorch network, which takes one
        more forward pass of two images. Those of TF-Slim's networks are known.
      storage: Where downloads are kept.
      cache: Where conversions are kept. None keeps nothing.

    Raises:
      InputError: It cannot be fetched, read or recognized.
    """
    spec, text = uris.split_options(str(path))
    fields: dict[str, Any] = {"image_size": image_size, **uris.options(text)}
    if not fields["image_size"] and preferred_image_size:
        fields |= {"image_size": preferred_image_size, "is_size_preferred": True}
    options = Options(
        handle=redact(spec),
        name=name,
        use_moving_averages=use_moving_averages,
        torch_engine="jax" if torch_engine == "auto" else torch_engine,
        with_blocks=with_blocks,
        **fields,
    )
    if (named := sources.split_name(spec)) is not None:
        return _load_named(*named, options, cache)
    place = uris.resolve(spec, storage or download.storage())
    return _load(sources.get(place), place, spec, options, cache)


def identify(path: epath.Path | str) -> str:
    """Return a digest that changes with a checkpoint, without loading or copying it.

    Files on this machine count by their contents, files in a bucket by their sizes and
    times. A handle or address counts by itself, because its first download is kept. A
    name such as "timm:resnet50" counts by its weights, and is "" before its download.

    Args:
      path: As for `load`. It need not exist.
    """
    spec, _ = uris.split_options(str(path))
    if (named := sources.split_name(spec)) is not None:
        source, name = named
        return source.identify(name)
    outer, _ = uris.split_archive(spec)
    if uris.is_remote(outer):
        return files.digest(spec)
    place = files.to_path(outer)
    try:
        if files.is_on_bucket(place):
            return uris.bucket_version(place)
        parts = [place] if place.exists() else uris.prefix_files(place)
        return files.digest(*map(_fingerprint, parts))
    except (OSError, InputError):
        return ""


def _fingerprint(path: epath.Path) -> str:
    if path.is_dir():
        return sources.fingerprint(path, Options())
    return _fingerprint_file(path, *files.size_and_time(path))


@functools.lru_cache(maxsize=64)
def _fingerprint_file(path: epath.Path, size: int, changed: float) -> str:
    """Return the digest of a file, read once for all checkpoints of an archive."""
    return sources.fingerprint(path, Options())


def load_slim(
    architecture: str,
    path: epath.Path | str,
    image_size: int | None = None,
    name: str | None = None,
    *,
    use_moving_averages: bool = False,
    input_range: tuple[float, float] | None = None,
    input_mean: tuple[float, float, float] | None = None,
) -> Backbone:
    """Load a TF-Slim checkpoint of a named architecture.

    Args:
      architecture: A name that `models.create` accepts.
      path: The prefix "DIR/model.ckpt", its ".index" file, or a directory with one,
        local or in a bucket.
      image_size: Side of the images in pixels; see `sources.slim.load`.
      name: Unique in its pool. By default the folder's name.
      use_moving_averages: Whether to load exponential moving averages of the weights.
      input_range: Values that the pixels 0 and 255 become.
      input_mean: Mean per channel that is subtracted afterwards.

    Raises:
      InputError: The file cannot be read, or its variables are not exactly those of
        the architecture; the message lists the names.
    """
    options = Options(
        handle=redact(str(path)),
        name=name or "",
        image_size=image_size or 0,
        input_range=input_range,
        input_mean=input_mean,
        architecture=architecture,
        use_moving_averages=use_moving_averages,
    )
    return slim.load(uris.resolve(path, download.storage()), options)


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
) -> Backbone:
    """Load a TF-Hub module, a SavedModel or a Keras model.

    Args:
      handle: A directory, a `.keras` or `.h5` file, an archive, `gs://...`, or
        "https://tfhub.dev/PUBLISHER/MODULE/VERSION"; see `fetch.uris`.
      signature: Name of a function. By default the module's call, else the first of
        `representation`, `image_feature_vector`, `feature_vector`, `default` and
        `serving_default`.
      output: Name of the features' output, of a Keras layer, or of a tensor in the
        graph. By default the pooled pre-logits, as in VTAB. [B, h, w, D] is averaged
        over h and w.
      name: Unique in its pool. By default the handle's name.
      image_size: Side of the images in pixels. By default the module's own.
      input_range: Values that the pixels 0 and 255 become. By default [0, 1] as in
        TF-Hub, or the range of a known Keras application.
      input_mean: Mean per channel that is subtracted afterwards.
      storage: Where downloads are kept.
      cache: Where conversions are kept. None keeps nothing.

    Returns:
      The backbone. `apply(variables, images, train=True)` uses batch statistics if the
      module has a graph for training; otherwise the statistics come back unchanged.

    Raises:
      InputError: It cannot be fetched or read, is unsafe, has no unambiguous features,
        or has an operation without a counterpart in JAX.
    """
    place = uris.resolve(handle, storage or download.storage())
    source = next((s for s in (hub, keras) if s.matches(place)), None)
    if source is None:
        raise InputError(
            "Not a TF-Hub module, SavedModel or Keras model",
            where=redact(str(handle)),
            expected="a directory with saved_model.pb, or a .keras or .h5 file",
            found=str(place) if place.exists() else "nothing",
        )
    options = Options(
        handle=redact(str(handle)),
        name=name or "",
        image_size=image_size or 0,
        signature=signature or "",
        output=output or "",
        input_range=input_range,
        input_mean=input_mean,
    )
    return _load(source, place, str(handle), options, cache)


def _load_named(
    source: Any, name: str, options: Options, cache: epath.Path | str | None
) -> Backbone:
    """Load a checkpoint by name, or its kept conversion."""
    if cache is not None and getattr(source, "KEEP_CONVERSION", False):
        backbone = conversion.load_or_convert(
            source.load_named, name, options, cache, source.identify(name)
        )
    else:
        backbone = source.load_named(name, options)
    return dataclasses.replace(
        backbone, name=options.name or files.directory_name(name), source=options.handle
    )


def _load(
    source: Any,
    path: epath.Path,
    spec: str,
    options: Options,
    cache: epath.Path | str | None,
) -> Backbone:
    """Load a local checkpoint, or its kept conversion; name it by its spec."""
    if cache is not None and getattr(source, "KEEP_CONVERSION", False):
        backbone = conversion.load_or_convert(source.load, path, options, cache)
    else:
        backbone = source.load(path, options)
    return dataclasses.replace(
        backbone,
        name=options.name
        or backbone.name
        or uris.name(spec).strip("/").replace("/", "_"),
        source=backbone.source or options.handle,
    )

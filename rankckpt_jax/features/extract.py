"""Applies a backbone to a split's images and stores the features.

The forward pass is compiled once per architecture and image size, however many
checkpoints there are. Weights are arguments of the compiled function. The classifier is
applied separately, because its width differs between pre-training sets.
"""

from __future__ import annotations

import collections
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.description import Description
from rankckpt_jax.data import pipeline
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import (
    compilation,
    mapping,
    processes,
    profiling,
    progress,
    signals,
    target,
)
from rankckpt_jax.errors import InputError, Interrupted, unknown_name
from rankckpt_jax.features import blocks as blocks_lib
from rankckpt_jax.features.feature_set import FeatureSet, from_store
from rankckpt_jax.models import layers
from rankckpt_jax.storage import files, store

NUM_TRACES: collections.Counter[int] = collections.Counter()
"""Number of traces of each architecture's forward pass, by its hash. Tests assert that
it is one."""

DTYPES = ("auto", "float32", "bfloat16")
"""The values of `config.dtype`; see `compute_dtype`."""


def compute_dtype(setting: str) -> str:
    """Return the dtype that networks compute in. Features are float32 in any case.

    bfloat16 is several times as fast on a TPU or GPU, and no faster on a CPU. Its error
    was measured with tests/benchmarks/bfloat16.py. The cosine similarity with float32
    features is 0.975 to 0.999. NLEEP of real checkpoints on real images changed by at
    most 0.012, which is less than its standard deviation over random initializations.

    Args:
      setting: One of `DTYPES`. "auto" is float32 on a CPU and bfloat16 elsewhere.

    Raises:
      InputError: `setting` is not one of `DTYPES`.
    """
    if setting not in DTYPES:
        raise unknown_name("dtype", setting, DTYPES, "config.dtype")
    if setting == "auto":
        return "float32" if target.platform() == "cpu" else "bfloat16"
    return setting


def make_key(
    checkpoint: Description | backbone_lib.Backbone,
    split: Split,
    preprocess: str,
    dtype: str,
    torch_engine: str = "auto",
) -> dict[str, Any]:
    """Return everything that determines the features, as stored in their manifest."""
    # Of a PyTorch network. Its engines agree, so "auto" takes the features of either.
    engine = {"torch_engine": torch_engine} if checkpoint.engine else {}
    # Not for classes, so that features of earlier versions stay valid.
    kind = {} if split.target == "classes" else {"target": split.target}
    return {
        "checkpoint": checkpoint.fingerprint,
        "architecture": checkpoint.architecture,
        "image_size": checkpoint.image_size,
        "input_range": list(checkpoint.input_range),
        "input_mean": list(checkpoint.input_mean),
        "split": split.name,
        "images": split.fingerprint,
        "count": split.num_examples,
        "orientation": split.orientation,
        **preprocess_lib.key(preprocess),
        "forward_version": backbone_lib.FORWARD_VERSION,
        "dtype": dtype,
        **engine,
        **kind,
    }


def load(
    directory: epath.Path,
    checkpoint: Description | backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    dtype: str = "float32",
    torch_engine: str = "auto",
) -> FeatureSet | None:
    """Load the features from the store; None if they must be extracted.

    Args:
      directory: The checkpoint's `features` directory.
      checkpoint: The network, with or without its weights.
      split: Its images.
      preprocess: The preprocessing; see `preprocess.resize`.
      dtype: The dtype that the network computes in; see `compute_dtype`.
      torch_engine: As `config.torch_engine`.
    """
    key = make_key(checkpoint, split, preprocess, dtype, torch_engine)
    stored = store.load(epath.Path(directory) / split.name, key)
    return None if stored is None else from_store(key, stored)


def load_blocks(
    directory: epath.Path,
    checkpoint: Description | backbone_lib.Backbone,
    split: Split,
    settings: Mapping[str, str],
) -> blocks_lib.Blocks | None:
    """Load the outputs of the last blocks; None if they must be extracted.

    Args:
      directory: As for `load`, as are the following two.
      checkpoint: The network.
      split: Its images.
      settings: Further arguments of `make_key`.
    """
    key = make_key(checkpoint, split, **settings)
    return blocks_lib.load(blocks_lib.place(directory, split.name), key)


def extract_and_store(
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    dtype: str = "float32",
    torch_engine: str = "auto",
    batch_size: int,
    cache: ImageCache,
    description: str = "extracting",
    with_blocks: bool = False,
) -> FeatureSet:
    """Extract the features of a split and store them.

    Args:
      directory: The checkpoint's `features` directory.
      backbone: The network.
      split: Its images.
      preprocess: The preprocessing; see `preprocess.resize`.
      dtype: The dtype that the network computes in; see `compute_dtype`.
      torch_engine: As `config.torch_engine`.
      batch_size: Images per step in this process; see `pipeline.fit_batch`.
      cache: Decoded images, shared by checkpoints.
      description: Label of the progress bar.
      with_blocks: Whether to store the pooled outputs of the last blocks too. Last
        features that are stored already stay as they are.

    Returns:
      The last features.

    Raises:
      InputError: The features are not finite, or equal for all images.
      Interrupted: The run was asked to stop.
    """
    key = make_key(backbone, split, preprocess, dtype, torch_engine)
    names = backbone_lib.block_names(backbone.apply) if with_blocks else ()
    last = None
    if with_blocks:
        # Scores are stored for these very values.
        settings = {"preprocess": preprocess, "dtype": dtype}
        last = load(directory, backbone, split, torch_engine=torch_engine, **settings)
    if names:
        blocks_lib.log_size(backbone, split.num_examples, description)
    start, compiled = time.monotonic(), compilation.seconds()
    arrays = processes.sync_errors(
        lambda: extract(
            backbone,
            split,
            preprocess=preprocess,
            dtype=dtype,
            batch_size=batch_size,
            cache=cache,
            description=description,
            with_blocks=bool(names),
        )
    )
    times = {
        "seconds": time.monotonic() - start,
        "compile_seconds": compilation.seconds() - compiled,
    }
    if with_blocks:
        outputs = {name: arrays.pop(f"block_{i}") for i, name in enumerate(names, 1)}
        blocks_lib.save(blocks_lib.place(directory, split.name), key, outputs, times)
    if last is not None:
        return last
    result = {
        **_statistics(arrays["features"], backbone),
        **times,
        "images_left_out": dict(split.unreadable),
        **({"engine": backbone.engine} if backbone.engine else {}),
    }
    place = epath.Path(directory) / split.name
    return from_store(key, store.save(place, key, result, arrays))


def extract(
    backbone: backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    dtype: str = "float32",
    batch_size: int,
    cache: ImageCache,
    description: str = "extracting",
    with_blocks: bool = False,
) -> dict[str, np.ndarray]:
    """Apply a backbone to every image of a split.

    Args: as for `extract_and_store`.

    Returns:
      This process's N rows, in the split's order: "features" float32 [N, D], "labels"
      as in `Split.labels` and, if the checkpoint has a classifier, "logits" float32
      [N, V].

    Raises:
      Interrupted: The run was asked to stop.
    """
    batch_size = pipeline.fit_batch(batch_size, split.num_examples)
    variables, head = mapping.replicate(backbone_lib.split_head(backbone.variables))
    scaling = mapping.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )
    apply = backbone_lib.configure(backbone.apply, dtype, with_blocks)
    forward = _on_host(apply) if backbone_lib.is_on_host(apply) else _forward(apply)
    classify = _classify()

    batches = pipeline.batches(
        split,
        size=backbone.image_size,
        preprocess=preprocess,
        batch_size=batch_size,
        cache=cache,
    )

    def run() -> Iterator[tuple[pipeline.Batch, Any]]:
        for batch in batches:
            images = mapping.shard(batch.images)
            features, outputs = forward(variables, scaling, images)
            profiling.run_again("extract", forward, variables, scaling, images)
            logits = None if head is None else classify(head, features)
            yield batch, (features, logits, outputs)

    parts = []
    with progress.bar(description, split.num_examples, "image") as bar:
        for batch, output in mapping.delayed(run()):
            features, logits, outputs = mapping.unshard(output)
            part = {"index": batch.index, "labels": batch.labels, "features": features}
            part.update({f"block_{i}": x for i, x in enumerate(outputs, 1)})
            if logits is not None:
                part["logits"] = logits
            parts.append({name: array[batch.mask] for name, array in part.items()})
            # Other processes are at the same step.
            bar.update(int(batch.mask.sum()) * processes.process_count())
            if signals.should_stop():
                raise Interrupted(f"{description}: stopped on request")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined.pop("index"), kind="stable")
    return {name: array[order] for name, array in joined.items()}


def compile_forward(
    backbone: backbone_lib.Backbone,
    *,
    split: Split,
    dtype: str,
    batch_size: int,
    with_blocks: bool = False,
) -> None:
    """Compile the forward pass that `extract` calls, for the persistent cache.

    Args: as for `extract`.
    """
    if backbone_lib.is_on_host(backbone.apply):
        return
    batch_size = pipeline.fit_batch(batch_size, split.num_examples)
    forward, shapes = forward_program(
        backbone, dtype=dtype, batch_size=batch_size, with_blocks=with_blocks
    )
    mapping.lower(forward, *shapes).compile()


def forward_program(
    backbone: Any, *, dtype: str, batch_size: int, with_blocks: bool = False
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the forward pass that `extract` calls and the shapes of its arguments.

    Args:
      backbone: A `Backbone`. Only `apply`, `image_size` and the shapes of `variables`
        are read.
      dtype: The dtype that the network computes in; see `compute_dtype`.
      batch_size: Images per step of this process, a multiple of the local devices.
      with_blocks: Whether it returns the pooled outputs of the last blocks too.
    """
    devices, size = mapping.local_device_count(), backbone.image_size
    variables, _ = backbone_lib.split_head(backbone.variables)
    shapes = mapping.replicated_shapes((variables, preprocess_lib.scaling_shapes()))
    images = (devices, batch_size // devices, size, size, 3)
    forward = _forward(backbone_lib.configure(backbone.apply, dtype, with_blocks))
    return forward, (*shapes, jax.ShapeDtypeStruct(images, preprocess_lib.DTYPE))


@mapping.bounded_cache
def _forward(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Compile the forward pass.

    It maps images [n, b, S, S, 3] to features [n, b, D] and those of blocks.
    """

    def forward(variables: Any, scaling: Any, images: jax.Array) -> Any:
        NUM_TRACES[hash(apply)] += 1
        images = preprocess_lib.to_input_range(images, *scaling)
        output = apply(variables, images)
        return output.features, output.blocks

    return mapping.map_devices(forward, in_axes=(None, None, 0))


def _on_host(apply: Any) -> Callable[..., Any]:
    """Return a forward pass on the host with the arguments of the compiled one."""

    def forward(variables: Any, scaling: Any, images: np.ndarray) -> Any:
        devices, batch = images.shape[:2]
        scaling = map(np.asarray, scaling)
        flat: Any = images.reshape(-1, *images.shape[2:])
        output = apply(variables, preprocess_lib.to_input_range(flat, *scaling))
        features, *blocks = (
            x.reshape(devices, batch, -1) for x in (output.features, *output.blocks)
        )
        return features, tuple(blocks)

    return forward


@functools.cache
def _classify() -> Callable[..., Any]:
    return mapping.map_devices(layers.classify, in_axes=(None, 0))


def _statistics(
    features: np.ndarray, backbone: backbone_lib.Backbone
) -> dict[str, float]:
    """Return count, mean, standard deviation and maximum over all processes' rows.

    Raises:
      InputError: The features are not finite, or equal for all images.
    """
    values = features.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        local = {
            "count": len(features),
            "not_finite": int((~np.isfinite(features)).sum()),
            "sum": float(values.sum()),
            "squares": float(np.square(values).sum()),
            "largest": float(np.abs(values).max(initial=0)),
            "first_row": files.digest(features[:1].tobytes()),
            "all_equal": bool((features == features[:1]).all()),
        }
    shares = [share for share in processes.all_gather(local) if share["count"]]
    if not_finite := sum(share["not_finite"] for share in shares):
        raise InputError(
            "The checkpoint's features are not finite",
            where=backbone.source,
            expected="finite numbers",
            found=f"{not_finite} NaN or infinite values",
            fix="check that its weights are finite and that it was trained with the "
            f"input range {backbone.input_range}",
        )
    count = sum(share["count"] for share in shares)
    first_rows = {share["first_row"] for share in shares}
    all_equal = len(first_rows) == 1 and all(share["all_equal"] for share in shares)
    if count > 1 and all_equal:
        raise InputError(
            "The checkpoint has the same features for every image",
            where=backbone.source,
            expected="rows that differ",
            found=f"{count} equal rows",
            fix="check its weights (a layer of zeros gives constant features) and its "
            f"input range {backbone.input_range}",
        )
    size = count * features.shape[1]
    mean = sum(share["sum"] for share in shares) / size
    variance = sum(share["squares"] for share in shares) / size - mean**2
    return {
        "count": count,
        "mean": mean,
        "standard_deviation": math.sqrt(max(variance, 0)),
        "largest": max(share["largest"] for share in shares),
    }

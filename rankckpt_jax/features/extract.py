"""One pass of a task's images through a backbone, into the store.

The forward pass is compiled once for an architecture and image size, whatever the
number of checkpoints: weights are arguments, and a checkpoint's own classifier, whose
width differs from one pre-training set to the next, is applied apart.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.tasks import Split
from rankckpt_jax.devices import mapping, processes, progress, signals
from rankckpt_jax.errors import InputError, Interrupted, suggest
from rankckpt_jax.models import layers
from rankckpt_jax.storage import files, store

NUM_TRACES: collections.Counter[int] = collections.Counter()
"""How often each architecture's forward pass, by its hash, was traced: tests hold it to
once."""

# Batches on their way through the device at a time: enough that the host decodes the
# next while the device works, few enough that their features do not pile up there.
_IN_FLIGHT = 3


@dataclasses.dataclass(frozen=True)
class Features:
    """What the measures see of a checkpoint and a split.

    Attributes:
      features: float32 [N, D], pooled, before the classifier, in the split's order.
      labels: int32 [N].
      logits: float32 [N, source classes], or None without a classifier.
      checksum: Identity of the three in the store.
      seconds: What extraction took, when it ran.
    """

    features: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None
    checksum: str
    seconds: float


DTYPES = ("auto", "float32", "bfloat16")
"""What `compute_dtype` takes."""


def compute_dtype(setting: str) -> str:
    """The dtype that the networks compute in; pooled features are float32 in any.

    On a TPU or GPU bfloat16 is several times as fast. What it costs was measured
    (tests/benchmarks/bfloat16.py): the cosine of a network's features with those of
    float32 is above 0.997, 0.975 for MobileNet v3 large, and NLEEP of real checkpoints
    on real images moved by at most 0.006, less than half of its standard deviation over
    its own random starts. A CPU gains nothing from it.

    Args:
      setting: One of DTYPES; "auto" decides by the platform.

    Raises:
      InputError: The setting is none of DTYPES.
    """
    if setting not in DTYPES:
        raise InputError(
            f"Unknown dtype {setting!r}",
            where="config.dtype",
            expected=", ".join(DTYPES),
            found=str(setting),
            fix=suggest(setting, DTYPES),
        )
    if setting == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return setting


def request(
    backbone: backbone_lib.Backbone, split: Split, preprocess: str, dtype: str
) -> dict[str, Any]:
    """What decides the features' values, as the store's manifest records it."""
    return {
        "checkpoint": backbone.fingerprint,
        "architecture": backbone.architecture,
        "image_size": backbone.image_size,
        "input_range": list(backbone.input_range),
        "input_mean": list(backbone.input_mean),
        "split": split.name,
        "images": split.fingerprint,
        "count": split.num_examples,
        "preprocess": preprocess,
        "jpeg_decoder": preprocess_lib.JPEG_DECODER,
        "dtype": dtype,
    }


def get(
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    dtype: str = "float32",
    batch_size: int,
    cache: pipeline.ImageCache,
    description: str = "features",
    compute: bool = True,
) -> tuple[Features | None, bool]:
    """Loads the features from the store, or computes and stores them.

    Args:
      directory: The checkpoint's `features` directory.
      backbone: What to apply.
      split: What to apply it to.
      preprocess: See `preprocess.resize`.
      dtype: Name of the dtype that the network computes in; see `compute_dtype`.
      batch_size: Images a step in this process; rounded up to the local devices.
      cache: Where decoded images are kept between checkpoints.
      description: What the progress bar says.
      compute: Whether to compute what the store does not have.

    Returns:
      (the features, whether they had to be computed); (None, False) where there are
      none and they are not to be computed.

    Raises:
      InputError: The backbone's features are not finite, or equal for all images.
      Interrupted: This run has been told to end.
    """
    place = epath.Path(directory) / split.name
    wanted = request(backbone, split, preprocess, dtype)
    found = store.load(place, wanted)
    if found is None and not compute:
        return None, False
    if found is None:
        start = time.monotonic()
        arrays = processes.sync_errors(
            lambda: extract(
                backbone,
                split,
                preprocess=preprocess,
                dtype=dtype,
                batch_size=batch_size,
                cache=cache,
                description=description,
            )
        )
        facts = _facts(arrays["features"], backbone)
        facts["seconds"] = time.monotonic() - start
        facts["images_left_out"] = dict(split.unreadable)
        loaded = store.save(place, wanted, facts, arrays)
    else:
        loaded = found
    features = Features(
        features=loaded.arrays["features"],
        labels=loaded.arrays["labels"],
        logits=loaded.arrays.get("logits"),
        checksum=loaded.checksum,
        seconds=float(loaded.result["seconds"]),
    )
    return features, found is None


def extract(
    backbone: backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    dtype: str = "float32",
    batch_size: int,
    cache: pipeline.ImageCache,
    description: str = "features",
) -> dict[str, np.ndarray]:
    """Applies a backbone to every image of a split; arguments as for `get`.

    Returns:
      "features" float32 [N, D], "labels" int32 [N] and, where the checkpoint has a
      classifier, "logits" float32 [N, source classes], in the split's order. N counts
      this process's share.
    """
    batch_size = mapping.round_up_to_devices(batch_size)
    variables, head = backbone_lib.split_head(backbone.variables)
    variables, head = mapping.replicate((variables, head))
    scaling = mapping.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )
    apply = dataclasses.replace(backbone.apply, dtype=dtype)
    forward, classify = _forward(apply), _classify()
    steps = pipeline.num_steps(split.num_examples, batch_size)

    def results() -> Iterator[tuple[pipeline.Batch, Any]]:
        for batch in pipeline.batches(
            split,
            size=backbone.image_size,
            preprocess=preprocess,
            batch_size=batch_size,
            cache=cache,
        ):
            features = forward(variables, scaling, mapping.shard(batch.images))
            logits = None if head is None else classify(head, features)
            yield batch, (features, logits)

    rows = []
    with progress.bar(description, steps * batch_size, "image") as shown:
        for batch, output in _lagging(results()):
            features, logits = mapping.unshard(output)
            real = batch.mask
            part = {"index": batch.index[real], "labels": batch.labels[real]}
            part["features"] = features[real]
            if logits is not None:
                part["logits"] = logits[real]
            rows.append(part)
            shown.update(batch_size)
            if signals.should_stop():
                raise Interrupted(f"{description}: stopped, as asked")
    joined = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    order = np.argsort(joined.pop("index"), kind="stable")
    return {name: array[order] for name, array in joined.items()}


def _lagging(results: Iterator[Any]) -> Iterator[Any]:
    """Yields results a few steps late, when the device has long finished them."""
    waiting: collections.deque[Any] = collections.deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > _IN_FLIGHT:
            yield waiting.popleft()
    yield from waiting


@mapping.bounded_cache
def _forward(apply: Callable[..., Any]) -> Callable[..., Any]:
    def forward(variables: Any, scaling: Any, images: jax.Array) -> jax.Array:
        NUM_TRACES[hash(apply)] += 1
        images = preprocess_lib.to_input_range(images, *scaling)
        return apply(variables, images).features

    return mapping.map_devices(forward, in_axes=(None, None, 0))


@functools.cache
def _classify() -> Callable[..., Any]:
    return mapping.map_devices(layers.classify, in_axes=(None, 0))


def _facts(features: np.ndarray, backbone: backbone_lib.Backbone) -> dict[str, Any]:
    """Mean and spread of the features, having refused those that cannot be ranked."""
    exact = features.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mine = {
            "count": len(features),
            "broken": int((~np.isfinite(features)).sum()),
            "sum": float(exact.sum()),
            "squares": float(np.square(exact).sum()),
            "largest": float(np.abs(exact).max(initial=0)),
            # Of the rows of this process; equal rows give equal ones.
            "first": files.digest(features[:1].tobytes()),
            "equal": bool((features == features[:1]).all()),
        }
    shares = [share for share in processes.all_gather(mine) if share["count"]]
    if broken := sum(share["broken"] for share in shares):
        raise InputError(
            "The checkpoint's features are not finite",
            where=backbone.source,
            expected="finite numbers",
            found=f"{broken} NaN or infinite values",
            fix="check that its weights are finite and that its input range "
            f"{backbone.input_range} is what it was trained with",
        )
    count = sum(share["count"] for share in shares)
    same = len({share["first"] for share in shares}) == 1
    if count > 1 and same and all(share["equal"] for share in shares):
        raise InputError(
            "The checkpoint has the same features for every image",
            where=backbone.source,
            expected="rows that differ",
            found=f"{count} equal rows",
            fix="check its weights and its input range, "
            f"{backbone.input_range}; a layer without any output leaves nothing else",
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

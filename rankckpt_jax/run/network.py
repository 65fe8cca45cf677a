"""A checkpoint of the pool whose weights are read only when a result needs them.

Its description is stored in CHECKPOINT/checkpoint.json. A run whose results are all
cached therefore loads and converts nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import rankckpt_jax
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import kernels
from rankckpt_jax.checkpoints.description import Description, describe
from rankckpt_jax.checkpoints.fetch import uris
from rankckpt_jax.devices import progress
from rankckpt_jax.errors import redact
from rankckpt_jax.measures import weight_spectra
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.pool import Member
from rankckpt_jax.storage import store


@dataclasses.dataclass(frozen=True)
class Network:
    """A checkpoint without its weights.

    Attributes:
      description: Facts about it.
      load: Returns it with its weights, which are read once.
    """

    description: Description
    load: Callable[[], backbone_lib.Backbone]


def open_network(
    context: RunContext,
    member: Member,
    title: str,
    on_computed: Callable[[str, float], None],
) -> Network:
    """Return a checkpoint with its stored description, or load it to describe it.

    Args:
      context: Everything that the stages need.
      member: The checkpoint.
      title: Prefix of log lines.
      on_computed: Called with "loading" and the seconds when the weights are read.

    Raises:
      InputError: The checkpoint cannot be loaded.
    """

    @functools.cache
    def load() -> backbone_lib.Backbone:
        start = time.monotonic()
        with progress.step(title, "loading"):
            backbone = member.load()
        on_computed("loading", time.monotonic() - start)
        return backbone

    with progress.step(title, "reading", announce=False):
        identity = member.identify()
    if not identity:
        load()
        # A download has put its files into a cache.
        identity = member.identify()
    if not identity:
        return Network(describe(load()), load)
    path = context.directory / member.name / "checkpoint.json"
    place, options = uris.split_options(redact(member.spec))
    key = {
        "checkpoint": identity,
        # The names of file and folder can hold the image size. The directories above
        # do not count, so that a pool can be moved.
        "name": "/".join(place.split("/")[-2:]),
        "options": options,
        "image_size": context.config["image_size"],
        "use_moving_averages": context.config["use_moving_averages"],
        "forward_version": backbone_lib.FORWARD_VERSION,
        "version": rankckpt_jax.__version__,
    }
    stored = store.load_result(path, key)
    if stored is not None:
        return Network(_from_json(stored.result), load)
    description = describe(load())
    store.save_result(path, key, dataclasses.asdict(description))
    return Network(description, load)


def load_weight_spectra(
    context: RunContext,
    member: Member,
    network: Network,
    title: str,
    on_computed: Callable[[str, float | None], None],
) -> Mapping[str, Any]:
    """Return `weight_spectra.summarize` of a checkpoint, stored or computed.

    It is stored in CHECKPOINT/weight_spectra.json, so that a cached run reads no
    weights.

    Args:
      context: Everything that the stages need.
      member: The checkpoint.
      network: The same.
      title: Prefix of log lines.
      on_computed: Called with "weight spectra" and the seconds, or None if stored.
    """
    path = context.directory / member.name / "weight_spectra.json"
    key = {
        "checkpoint": network.description.fingerprint,
        "version": rankckpt_jax.__version__,
    }
    stored = store.load_result(path, key)
    if stored is not None:
        on_computed("weight spectra", None)
        return stored.result
    backbone, start = network.load(), time.monotonic()
    with progress.step(title, "decomposing weights"):
        spectra = weight_spectra.summarize(kernels.kernels(backbone))
    store.save_result(path, key, spectra)
    on_computed("weight spectra", time.monotonic() - start)
    return spectra


def _from_json(stored: Mapping[str, Any]) -> Description:
    """Return a stored description, whose tuples JSON has made lists."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
    }
    return Description(**fields)

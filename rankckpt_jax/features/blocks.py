"""Pooled outputs of a network's last blocks, stored beside its last features.

    workdir/TASK/CHECKPOINT/features/SPLIT/   the last features, labels and logits
    workdir/TASK/CHECKPOINT/blocks/SPLIT/     one array per block

Both come from one forward pass. A later run with another `config.features_from` reads
what it needs of them. The last block can equal the last features; see `distinct`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.errors import unknown_name
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.storage import files, store

LAST = "last"
"""Name of the last features, the pooled pre-logits."""

SETTINGS = (LAST, "blocks", "last,blocks")
"""The values of `config.features_from`."""

NO_BLOCKS = (
    "The last blocks of this network are not known, so config.features_from=last is "
    "used. They are known for TF-Slim's networks and most PyTorch networks."
)

_log = logging.getLogger(__name__)

# Raise it when other layers are taken as blocks.
_VERSION = 1

# Largest difference, relative to the largest value, of features that are the same:
# programs with other outputs add in another order.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """Pooled outputs of the last blocks of a network, for all images of a split.

    Attributes:
      outputs: float32 [N, D] by the block's name, in the network's order and the
        split's. Empty if the network's blocks are not known.
      checksum: Digest of the arrays.
      seconds: Time of the forward pass, which gives the last features too.
      compile_seconds: The part of it that was spent on compiling.
    """

    outputs: Mapping[str, np.ndarray]
    checksum: str
    seconds: float | None = None
    compile_seconds: float | None = None


def parse(setting: Any) -> str:
    """Return `config.features_from` without spaces, in the order of `SETTINGS`.

    Raises:
      InputError: It is not one of `SETTINGS`.
    """
    parts = str(setting).replace(" ", "").split(",")
    found = ",".join(sorted(dict.fromkeys(parts), reverse=True))
    if found not in SETTINGS:
        raise unknown_name("layer", str(setting), SETTINGS, "config.features_from")
    return found


def save(
    directory: epath.Path,
    key: Mapping[str, Any],
    outputs: Mapping[str, np.ndarray],
    times: Mapping[str, float],
) -> None:
    """Store the outputs of blocks, or that a network has none.

    Args:
      directory: See `place`.
      key: The key of the last features; see `extract.make_key`.
      outputs: This process's rows by the block's name, as `Blocks.outputs`.
      times: "seconds" and "compile_seconds".
    """
    arrays = {f"block_{i}": output for i, output in enumerate(outputs.values(), 1)}
    store.save(directory, _key(key), {"names": list(outputs), **times}, arrays)


def load(directory: epath.Path, key: Mapping[str, Any]) -> Blocks | None:
    """Return the stored outputs, or None if they must be extracted; see `save`."""
    stored = store.load(directory, _key(key))
    return None if stored is None else _from_store(stored)


def read_joined(directory: epath.Path, last: FeatureSet) -> FeatureSet:
    """Return the stored outputs side by side, whatever their key. Not a collective.

    Args:
      directory: See `place`.
      last: The last features, which are returned if there are no outputs.
    """
    stored = store.read(directory)
    blocks = None if stored is None else _from_store(stored[1])
    return concatenate(last, blocks) if blocks and blocks.outputs else last


def _from_store(stored: store.Entry) -> Blocks:
    outputs = {
        name: stored.arrays[f"block_{i}"]
        for i, name in enumerate(stored.result["names"], 1)
    }
    times = (stored.result["seconds"], stored.result["compile_seconds"])
    return Blocks(outputs, stored.checksum, *times)


def log_size(backbone: Backbone, num_images: int, title: str) -> None:
    """Log how many values the blocks of a network add to its last features.

    Args:
      backbone: A network whose blocks are known.
      num_images: Number of images.
      title: Prefix of the log line.
    """
    variables, _ = backbone_lib.split_head(backbone.variables)
    widths = find_widths(backbone.apply, variables, backbone.image_size)
    names = zip(backbone_lib.block_names(backbone.apply), widths, strict=True)
    _log.info(
        "%s: the blocks %s add %s values per image (%.1f MB) to %s last features",
        title,
        ", ".join(f"{name} ({width})" for name, width in names),
        f"{sum(widths):,}",
        4e-6 * num_images * sum(widths),
        f"{backbone.feature_dim:,}",
    )


def find_widths(apply: Any, variables: Any, image_size: int) -> tuple[int, ...]:
    """Return the number of values of each block, without computing them on a device.

    Args:
      apply: A forward function whose blocks are known.
      variables: Its variables without the head, or their shapes.
      image_size: Side of the images.
    """
    apply = backbone_lib.configure(apply, "float32", with_blocks=True)
    shape = (1, image_size, image_size, 3)
    if backbone_lib.is_on_host(apply):
        output = apply(variables, np.zeros(shape, np.float32))
    else:
        image = jax.ShapeDtypeStruct(shape, np.float32)
        output = jax.eval_shape(apply, variables, image)
    return tuple(block.shape[1] for block in output.blocks)


def place(directory: epath.Path, split: str) -> epath.Path:
    """Return the directory of blocks beside the directory `features`."""
    return epath.Path(directory).parent / "blocks" / split


def to_feature_set(last: FeatureSet, blocks: Blocks, name: str) -> FeatureSet:
    """Return the output of one block as features."""
    checksum = files.digest(blocks.checksum, name)
    return dataclasses.replace(last, features=blocks.outputs[name], checksum=checksum)


def concatenate(last: FeatureSet, blocks: Blocks) -> FeatureSet:
    """Return the outputs of all blocks side by side as features."""
    features = np.concatenate(list(blocks.outputs.values()), axis=1)
    return dataclasses.replace(last, features=features, checksum=blocks.checksum)


def distinct(last: FeatureSet, blocks: Blocks) -> tuple[str, ...]:
    """Return the names of the blocks whose output is not the last features."""
    return tuple(
        name
        for name, output in blocks.outputs.items()
        if not _are_equal(output, last.features)
    )


def _are_equal(output: np.ndarray, features: np.ndarray) -> bool:
    if output.shape != features.shape:
        return False
    atol = _ROUNDING * float(np.abs(features).max(initial=0))
    return np.allclose(output, features, rtol=0, atol=atol)


def _key(key: Mapping[str, Any]) -> dict[str, Any]:
    return {**key, "blocks_version": _VERSION}

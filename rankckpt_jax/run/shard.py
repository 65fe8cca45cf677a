"""Splits a pool among independent jobs: `config.shard = "i/n"`.

Shard i of n evaluates checkpoints i, i + n, i + 2 n, ... of the pool, counted from 1.
The jobs share a work directory and need not run at the same time. Each one writes
CHECKPOINT/row.json and reports every row that is stored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

import rankckpt_jax
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row
from rankckpt_jax.storage import store

# Fields of a config that do not change a row.
_IRRELEVANT = (
    *("accuracies", "batch_size", "distributed", "download", "image_cache"),
    *("history", "image_cache_gigabytes", "shard", "shared_histories", "stages"),
    *("task", "track", "workdir"),
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Every `count`-th checkpoint of a pool.

    Attributes:
      index: Number of this shard, in [1, count].
      count: Number of shards.
    """

    index: int
    count: int

    def __str__(self) -> str:
        """Return the shard as `config.shard` names it."""
        return f"{self.index}/{self.count}"

    def contains(self, position: int) -> bool:
        """Return whether the checkpoint at a position, from 0, is in this shard."""
        return self.owner(position) == self

    def owner(self, position: int) -> Shard:
        """Return the shard that evaluates the checkpoint at a position, from 0."""
        return Shard(position % self.count + 1, self.count)


def parse(text: str) -> Shard | None:
    """Parse `config.shard`.

    Example:
      >>> parse("2/8")
      Shard(index=2, count=8)

    Args:
      text: "i/n", or "" for the whole pool.

    Raises:
      InputError: The text has another form, or i is not in [1, n].
    """
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match:
        shard = Shard(int(match[1]), int(match[2]))
        if 1 <= shard.index <= shard.count:
            return shard
    raise InputError(
        f"Invalid shard {text!r}",
        where="config.shard",
        expected="i/n with 1 <= i <= n, such as 2/8",
        found=text,
        fix="leave it out to evaluate the whole pool",
    )


def row_key(
    config: Mapping[str, Any],
    images: Mapping[str, str],
    input_files: Mapping[str, Any],
    checkpoint: str,
) -> dict[str, Any]:
    """Return everything that decides a stored row.

    Args:
      config: All fields of a config, as plain data.
      images: Fingerprint of each split's images.
      input_files: Digests of the files that options of measures name.
      checkpoint: Digest of the checkpoint's files; see `pool.Member.identify`.
    """
    fields = {name: value for name, value in config.items() if name not in _IRRELEVANT}
    return {
        **fields,
        "images": dict(images),
        "input_files": dict(input_files),
        "checkpoint": checkpoint,
        "version": rankckpt_jax.__version__,
    }


def save_row(directory: epath.Path, row: Row, key: Mapping[str, Any]) -> None:
    """Store a row for the reports of other shards.

    Args:
      directory: `workdir/TASK`.
      row: The finished or failed row.
      key: See `row_key`.
    """
    store.save_result(_path(directory, row.checkpoint), key, dataclasses.asdict(row))


def load_row(directory: epath.Path, name: str, key: Mapping[str, Any]) -> Row | None:
    """Load the row that another shard stored, or None if there is none for `key`."""
    entry = store.load_result(_path(directory, name), key)
    if entry is None:
        return None
    return Row(**{field: _immutable(value) for field, value in entry.result.items()})


def _path(directory: epath.Path, name: str) -> epath.Path:
    return directory / name / "row.json"


def _immutable(value: Any) -> Any:
    """Turn the lists that JSON made of tuples back into tuples."""
    return tuple(map(_immutable, value)) if isinstance(value, list) else value

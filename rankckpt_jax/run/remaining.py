"""Estimates how long the rest of a run takes, from what it has measured so far."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Collection, Iterable, Mapping

from rankckpt_jax.devices import progress
from rankckpt_jax.features import blocks
from rankckpt_jax.results import formatting
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.pool import Member

SHORTEST = 10.0
"""Seconds below which a remaining time is not worth a line."""


class Remaining:
    """The work that is left, by checkpoint, and the seconds that such work took."""

    def __init__(self, pending: Mapping[str, Collection[str]]):
        """Start with nothing measured.

        Args:
          pending: For each checkpoint, the names of the results to compute.
        """
        self._pending = dict(pending)
        self._seconds: dict[str, list[float]] = collections.defaultdict(list)

    def add(self, work: str, seconds: float) -> None:
        """Add the measured time of one result."""
        self._seconds[work].append(seconds)

    def finish(self, checkpoint: str) -> str:
        """Mark a checkpoint as done, and return the estimate of the rest.

        Results of a kind that was never measured, such as those that were cached so
        far, do not count.

        Returns:
          A phrase such as "about 3 min left for 3 checkpoints"; empty if the rest takes
          a few seconds.
        """
        self._pending.pop(checkpoint, None)
        mean = {work: statistics.mean(times) for work, times in self._seconds.items()}
        left = [
            seconds
            for pending in self._pending.values()
            if (seconds := sum(mean.get(work, 0.0) for work in pending)) > 0
        ]
        if sum(left) < SHORTEST:
            return ""
        count = formatting.count(len(left), "checkpoint")
        rest = progress.describe_seconds(10 * round(sum(left) / 10))
        return f"about {rest} left for {count}"


def find_pending(
    context: RunContext, members: Iterable[Member]
) -> dict[str, tuple[str, ...]]:
    """Return the results of each checkpoint that are not stored yet.

    Only the existence of files is checked, so a stored result that does not match the
    config counts as stored.

    Args:
      context: Everything that the stages need.
      members: The checkpoints that this run evaluates.
    """
    return {member.name: tuple(_find_pending(context, member)) for member in members}


def _find_pending(context: RunContext, member: Member) -> Iterable[str]:
    directory = context.directory / member.name
    stages = context.stages
    needs_weights = False
    if member.features is None and "extract" in stages:
        features, split = directory / "features", context.scored_split.name
        places = [features / split]
        if context.with_blocks:
            places.append(blocks.place(features, split))
        needs_weights = not all(place.exists() for place in places)
        if needs_weights:
            yield "features"
    trains = "finetune" in stages and not context.finetunes_later
    if trains and not (directory / "finetune" / "result.json").exists():
        needs_weights = True
        yield "fine-tuning"
    if needs_weights:
        yield "loading"
    if "score" in stages:
        for measure in context.settings.measures:
            if not (directory / "scores" / f"{measure}.json").exists():
                yield measure

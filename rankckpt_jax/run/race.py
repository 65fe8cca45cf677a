"""Successive elimination: `config.race` drops checkpoints while extraction goes on.

The training images are put into a random stratified order, the same for all
checkpoints. After each round, in which an eighth, a quarter and a half of the images
are extracted, the first measure scores the checkpoints that are left on the same
images, and those that are not among the best `KEEP` are dropped. The others are
extracted completely and evaluated as without a race.

A round compares scores of equal numbers of images only, because scores such as NLEEP's
change with them. Whether checkpoint j is above i on all images is decided by the
interval of their difference; see `results.all_images`. i is dropped if at least `KEEP`
checkpoints are above it. The error rate of a comparison is 1 - `CONFIDENCE` divided by
the number of comparisons that could drop one of the best by mistake: those of the best
with all others, in each round (Bonferroni).

Features of each round are stored as CHECKPOINT/features/train.START-STOP, so that no
image is extracted twice, also after an interruption.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.devices import memory, processes, signals
from rankckpt_jax.errors import Interrupted, some
from rankckpt_jax.features import extract, parts
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.results import all_images
from rankckpt_jax.results.row import Dropped, Row
from rankckpt_jax.run import checkpoint, scoring, subset
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.events import Events
from rankckpt_jax.run.network import Network, open_network
from rankckpt_jax.run.pool import Member
from rankckpt_jax.run.subset import Subset
from rankckpt_jax.storage import files

SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which checkpoints are dropped."""

KEEP = 3
"""Number of best checkpoints that are never dropped, with `CONFIDENCE`; more if
`finetune.top` is larger."""

CONFIDENCE = 0.95
"""Probability that none of the best is dropped, over all rounds and checkpoints."""

_MEMORY_SHARE = 0.25
"""Share of the memory for weights that are kept between rounds."""

_log = logging.getLogger(__name__)


def run(context: RunContext) -> dict[str, Row]:
    """Race the checkpoints; extract the features of those that are left completely.

    Args:
      context: Everything that the stages need.

    Returns:
      The rows of the checkpoints that were dropped or failed, by name.

    Raises:
      InputError: The images cannot be selected.
      StorageError, UnreadableImage, Interrupted: See `checkpoint.evaluate`.
    """
    split, alive = context.scored_split, _keep_loaded(context.members)
    order = subset.find_order(split, context.settings.seed, "config.race")
    keep = max(KEEP, context.finetune_top)
    ends = find_ends(split.num_examples, subset.smallest(split))
    starts = [0, *ends]
    taken = [
        subset.take(split, order[start:stop], f"{split.name}.{start}-{stop}")
        for start, stop in itertools.pairwise([*starts, split.num_examples])
    ]
    comparisons = max(len(ends) * keep * (len(alive) - keep), 1)
    decided: dict[str, Row] = {}
    for number, stop in enumerate(ends, start=1):
        if len(alive) <= keep:
            break
        rows = []
        for position, member in enumerate(alive, start=1):
            if signals.should_stop():
                raise Interrupted(f"stopped before {member.name}")
            title = f"[{position}/{len(alive)}] {member.name}, {stop:,} images"
            rows.append(_score(context, member, title, taken[:number]))
        dropped = find_dropped(
            rows, context.settings.measures[0], keep, (1 - CONFIDENCE) / comparisons
        )
        dropped = _agree(dropped)
        decided |= {row.checkpoint: row for row in rows if row.failure}
        decided |= {
            row.checkpoint: _drop(row, dropped[row.checkpoint])
            for row in rows
            if row.checkpoint in dropped
        }
        alive = [member for member in alive if member.name not in decided]
        _log.info(
            "%s: after %d of %d images %d of %d checkpoints are left%s",
            *(context.task.name, stop, split.num_examples),
            *(len(alive), len(context.members)),
            f"; dropped {some(dropped, most=8)}" if dropped else "",
        )
    for position, member in enumerate(alive, start=1):
        if signals.should_stop():
            raise Interrupted(f"stopped before {member.name}")
        title = f"[{position}/{len(alive)}] {member.name}, all images"
        row = _complete(context, member, title, taken)
        if row.failure:
            decided[member.name] = row
    return decided


def _keep_loaded(members: Sequence[Member]) -> list[Member]:
    """Return members whose weights stay in memory between rounds.

    They take at most `_MEMORY_SHARE` of the memory; those of further members are loaded
    again in each round.
    """
    room = _MEMORY_SHARE * memory.of_machine()

    def keep(member: Member) -> Member:
        kept: list[Backbone] = []

        def load() -> Backbone:
            nonlocal room
            if kept:
                return kept[0]
            backbone = member.load()
            size = sum(x.nbytes for x in jax.tree.leaves(backbone.variables))
            if size <= room:
                room -= size
                kept.append(backbone)
            return backbone

        return dataclasses.replace(member, load=load)

    return [keep(member) for member in members]


def find_ends(num_images: int, least: int) -> list[int]:
    """Return the numbers of images after which checkpoints are dropped, ascending.

    Args:
      num_images: Number of images to score on.
      least: Number of images that the measures need.
    """
    ends = {max(math.ceil(share * num_images), least) for share in SHARES}
    return sorted(end for end in ends if end < num_images)


def find_dropped(
    rows: Sequence[Row], measure: str, keep: int, level: float
) -> dict[str, Dropped]:
    """Return which checkpoints are not among the best `keep`, by name.

    Saturated scores, and those of images of which half are too few for the measure, are
    not compared.

    Args:
      rows: Scored checkpoints with scores of halves, all on the same images.
      measure: The measure to compare by.
      keep: Number of checkpoints to keep at least.
      level: Error rate of one comparison.
    """
    rows = [row for row in rows if _is_comparable(row, measure)]
    if len(rows) <= keep:
        return {}
    scores = np.array([row.scores[measure] for row in rows])
    halves = np.array([row.half_scores[measure] for row in rows])
    starts = np.array(
        [
            all_images.start_variance(row.spreads[measure], row.half_scores[measure])
            for row in rows
        ]
    )
    # Of row i and column j: how far j is above i on all images.
    lows, highs = all_images.interval(
        scores - scores[:, None],
        halves - halves[:, None],
        rows[0].extract_images or 0,
        rows[0].train_images or 0,
        level,
        starts + starts[:, None],
    )
    # The checkpoint in whose favor the comparison is the `keep`-th clearest.
    reference = np.argsort(-lows, axis=1)[:, keep - 1]
    dropped = {}
    for i, j in enumerate(reference):
        if lows[i, j] > 0:
            row, behind = rows[i], (lows[i, j], highs[i, j])
            dropped[row.checkpoint] = Dropped(
                measure,
                row.scores[measure],
                row.spreads[measure],
                row.extract_images or 0,
                keep,
                (float(behind[0]), float(behind[1])),
            )
    return dropped


def _agree(dropped: Mapping[str, Dropped]) -> dict[str, Dropped]:
    """Return what process 0 drops: scores may differ between processes by rounding."""
    fields = {name: dataclasses.asdict(last) for name, last in dropped.items()}
    return {
        name: Dropped(**{**last, "behind": tuple(last["behind"])})
        for name, last in processes.broadcast_from_main(fields).items()
    }


def _is_comparable(row: Row, measure: str) -> bool:
    if row.score(measure) is None or measure in row.saturated:
        return False
    # Unknown if half of the images are too few.
    return measure in row.half_scores


def _drop(row: Row, dropped: Dropped) -> Row:
    """Return the row of a dropped checkpoint, without scores of so few images."""
    warnings = {k: v for k, v in row.warnings.items() if k != dropped.measure}
    return dataclasses.replace(
        row,
        scores={},
        spreads={},
        intervals={},
        half_scores={},
        warnings=warnings,
        images="",
        order="",
        dropped=dropped,
    )


def _score(
    context: RunContext, member: Member, title: str, taken: Sequence[Subset]
) -> Row:
    """Extract the images `taken` that are missing, and score all of them."""
    settings = dataclasses.replace(
        context.settings,
        measures=context.settings.measures[:1],
        num_bootstrap=context.settings.num_bootstrap or subset.HALVES,
    )

    def make_row(network: Network, events: Events) -> Row:
        row = checkpoint.describe(context, member, network)
        features = _join(context, member, network, taken, events)
        if features is None:
            return dataclasses.replace(row, failure=checkpoint.NO_FEATURES)
        count = len(features.features)
        total = context.task.splits["train"].num_examples
        return scoring.score_row(
            checkpoint.with_features(row, features, total),
            features,
            settings,
            facts=member.facts,
            directory=context.directory / member.name / "scores" / f"first-{count}",
            compute="score" in context.stages,
            title=title,
            on_result=events.add,
        )

    return _with_network(context, member, title, make_row)


def _complete(
    context: RunContext, member: Member, title: str, taken: Sequence[Subset]
) -> Row:
    """Store the features of all images, and remove those of the rounds."""

    def make_row(network: Network, events: Events) -> Row:
        directory = context.directory / member.name / "features"
        places = [directory / part.split.name for part in taken]
        row = Row(member.name)
        # Without any part, the evaluation that follows extracts all images.
        if not any(place.exists() for place in places):
            return row
        features = _join(context, member, network, taken, events)
        if features is None:
            return dataclasses.replace(row, failure=checkpoint.NO_FEATURES)
        settings = checkpoint.extraction_settings(context, network)
        split, description = context.scored_split, network.description
        if extract.load(directory, description, split, **settings) is None:
            parts.save(directory, description, split, features, **settings)
        if processes.is_main_process():
            with files.writing(directory):
                for place in places:
                    if place.exists():
                        place.rmtree()
        return row

    return _with_network(context, member, title, make_row)


def _with_network(
    context: RunContext,
    member: Member,
    title: str,
    make_row: Callable[[Network, Events], Row],
) -> Row:
    events = Events(title)

    def make() -> Row:
        network = open_network(context, member, title, events.on_computed)
        row = make_row(network, events)
        if member.warning:
            row = checkpoint.with_warning(row, "checkpoint", member.warning)
        return row

    return checkpoint.with_failures(member, events, make)


def _join(
    context: RunContext,
    member: Member,
    network: Network,
    taken: Sequence[Subset],
    events: Events,
) -> FeatureSet | None:
    """Return the features of the images `taken`; None if they cannot be extracted."""
    directory = context.directory / member.name / "features"
    settings = checkpoint.extraction_settings(context, network)
    description, split = network.description, context.scored_split
    complete = extract.load(directory, description, split, **settings)
    rows = [part.rows for part in taken]
    if complete is not None:
        return parts.take(complete, np.sort(np.concatenate(rows)))
    found = []
    for part in taken:
        features = extract.load(directory, description, part.split, **settings)
        if features is None:
            features = checkpoint.extract_split(
                context, member, network, part.split, events
            )
        if features is None:
            return None
        found.append(features)
    return parts.join(found, rows)

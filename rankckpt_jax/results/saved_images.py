"""How many images of extraction a subset or a race saved, in a sentence."""

from __future__ import annotations

import statistics

from rankckpt_jax.results.formatting import (
    count,
    format_percent,
    format_scores,
    printable,
)
from rankckpt_jax.results.ranking import Ranking


def describe_saved_images(ranking: Ranking) -> tuple[str, ...]:
    """Return sentences on the images that were not extracted; none if all were."""
    known = [
        (row.extract_images, row.train_images)
        for row in ranking.rows
        if row.extract_images and row.train_images
    ]
    used, total = sum(n for n, _ in known), sum(n for _, n in known)
    if used >= total:
        return ()
    saved = total - used
    sentences = [
        f"{saved:,} of {total:,} images were not extracted "
        f"({format_percent(saved / total)} saved)."
    ]
    first = ranking.measures[0]
    dropped = [row.dropped for row in ranking.rows if row.dropped is not None]
    if dropped:
        pool = count(len(ranking.rows), "checkpoint")
        sentences.append(
            f"The race dropped {len(dropped)} of {pool}, each below place "
            f"{dropped[0].place} by {printable(first)} on all images, "
            "with 95 % confidence for all of them together."
        )
    intervals = [
        (row.intervals[first], row.scores[first])
        for row in ranking.scored_rows
        if first in row.intervals and row.score(first) is not None
    ]
    if intervals:
        (most, train_images), *_ = sorted(known, reverse=True)
        below = statistics.median(score - low for (low, _), score in intervals)
        above = statistics.median(high - score for (_, high), score in intervals)
        lower, higher = format_scores([below, above])
        sentences.append(
            f"Scores are of {most:,} of {train_images:,} training images. With 95 % "
            f"confidence, {printable(first)} of all of them is between {lower} lower "
            f"and {higher} higher (median over checkpoints)."
        )
    return tuple(sentences)

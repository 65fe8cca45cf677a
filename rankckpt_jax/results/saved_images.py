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
            f"{dropped[0].place} by {printable(first)} at an equal number of images, "
            "with nominally 95 % confidence for all of them together."
        )
    spreads = [
        spread
        for row in ranking.scored_rows
        if (spread := row.subset_spreads.get(first)) is not None
    ]
    if spreads:
        (most, train_images), *_ = sorted(known, reverse=True)
        [median] = format_scores([statistics.median(spreads)])
        sentences.append(
            f"Scores are of {most:,} of {train_images:,} training images. The noise "
            f"that this adds to {printable(first)} has a standard deviation of about "
            f"{median}."
        )
    return tuple(sentences)

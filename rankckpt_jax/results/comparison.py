"""Steps that need the rows of several checkpoints at once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from rankckpt_jax import measures
from rankckpt_jax.results.row import Row


def compare_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows with relative scores, and with warnings from comparing them.

    Args:
      rows: All checkpoints of the task.
      names: The measures.
    """
    rows = _warn_of_duplicates(_combine_scores(rows, names))
    return _warn_of_other_order(_warn_of_other_images(rows), names)


def resolve_scores(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows with one value for scores that differ by rounding error only.

    Scores that are saturated in the same way get one value too. A standard deviation
    that is rounding error becomes 0.

    Args:
      rows: All checkpoints of the task.
      names: The measures.
    """
    rows = list(rows)
    for name in names:
        tolerance = measures.tolerance(name)
        indices = [i for i, row in enumerate(rows) if row.score(name) is not None]
        scores = tolerance.resolve(
            [rows[i].scores[name] for i in indices],
            [rows[i].saturated.get(name, "") for i in indices],
        )
        for i, score in zip(indices, scores, strict=True):
            spreads = dict(rows[i].spreads)
            if name in spreads and tolerance.allows(score, score + spreads[name]):
                spreads[name] = 0.0
            rows[i] = dataclasses.replace(
                rows[i], scores={**rows[i].scores, name: score}, spreads=spreads
            )
    return rows


def _combine_scores(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Compute the scores of measures that are relative to the pool from their terms."""
    rows = list(rows)
    for name in names:
        combine = measures.get(name).combine
        indices = [i for i, row in enumerate(rows) if name in row.terms]
        if combine is None or not indices:
            continue
        terms = [rows[i].terms[name] for i in indices]
        # Rescaling to the range of the pool would turn rounding errors into an order.
        tolerance = measures.tolerance(name)
        resolved = {t: tolerance.resolve([of[t] for of in terms]) for t in terms[0]}
        scores = combine(
            [{t: resolved[t][i] for t in resolved} for i in range(len(terms))]
        )
        for i, score in zip(indices, scores, strict=True):
            combined = {**rows[i].scores, name: float(score)}
            rows[i] = dataclasses.replace(rows[i], scores=combined)
    return rows


def _warn_of_other_images(rows: Sequence[Row]) -> list[Row]:
    """Warn of rows that were scored on other images than most rows."""
    counts = collections.Counter(row.images for row in rows if row.images)
    if len(counts) < 2:
        return list(rows)
    usual = counts.most_common(1)[0][0]
    return [
        _warn(
            row,
            "images",
            f"It was scored on {row.images}, most others on {usual}, so their scores "
            "are not comparable. Score every checkpoint on the same images.",
        )
        if row.images not in ("", usual)
        else row
        for row in rows
    ]


def _warn_of_other_order(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Warn of rows whose labels are in another order than those of most rows.

    Rows with other images have a warning already.
    """
    affected = [name for name in names if measures.get(name).holds_out]
    counts = collections.Counter((row.images, row.order) for row in rows if row.order)
    if len(counts) < 2 or not affected:
        return list(rows)
    (images, order), _ = counts.most_common(1)[0]
    which = " and ".join(affected)
    return [
        _warn(
            row,
            "order",
            "Its images are in another order than those of most checkpoints, so "
            f"{which} held out other images. Extract all features without shuffling.",
        )
        if row.images == images and row.order not in ("", order)
        else row
        for row in rows
    ]


def _warn_of_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Warn of rows whose features equal those of an earlier row."""
    result: list[Row] = []
    for row in rows:
        original = next((other for other in result if _duplicates(row, other)), None)
        if original is not None:
            row = _warn(
                row,
                "features",
                f"Its features equal those of {original.checkpoint}: they may be one "
                "network under two names. Remove one of them from the pool.",
            )
        result.append(row)
    return result


def _duplicates(one: Row, other: Row) -> bool:
    if one.failure or other.failure or not one.fingerprint:
        return False
    if len(one.fingerprint) != len(other.fingerprint):
        return False
    # The features of a converted graph and of the same network in Flax differ by 1e-4.
    return np.allclose(one.fingerprint, other.fingerprint, rtol=1e-3, atol=0)


def _warn(row: Row, topic: str, warning: str) -> Row:
    return dataclasses.replace(row, warnings={**row.warnings, topic: warning})

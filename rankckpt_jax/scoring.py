"""Features -> scores by the measures asked for, kept in the store if there is one."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

import rankckpt_jax
from rankckpt_jax import measures, store
from rankckpt_jax.errors import InputError
from rankckpt_jax.ranking import Row


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is computed, whatever the checkpoint.

    Attributes:
      measures: Names of the measures.
      options: Of single measures, by the measure's name.
      seed: Decides random starts.
      num_bootstrap: Resamples of the images for the spread of each score.
    """

    measures: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    num_bootstrap: int = 0


def chosen(given: str | Sequence[str], field: str = "measures") -> tuple[str, ...]:
    """Splits a comma-separated list of measures; `all` leaves out what needs a file.

    Args:
      given: As `config.measures`, or the names themselves.
      field: How an error calls it.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    if isinstance(given, str) and given.strip() == "all":
        return tuple(name for name in measures.names() if name != "static")
    return names(given, measures.names(), field)


def names(
    given: str | Sequence[str], known: Sequence[str], field: str
) -> tuple[str, ...]:
    """Splits a comma-separated field and checks each name.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    parts = given.split(",") if isinstance(given, str) else given
    found = tuple(name.strip() for name in parts if name.strip())
    unknown = [name for name in found if name not in known]
    if unknown or not found:
        raise InputError(
            f"Unknown name in {field}" if unknown else f"Nothing named in {field}",
            where=field,
            expected="some of " + ", ".join(known) + ", separated by commas",
            found=", ".join(unknown) or "nothing",
        )
    return found


def check(features: Any, labels: Any, logits: Any = None) -> None:
    """Refuses features that no measure can use; arguments as for `score_row`.

    Raises:
      InputError: Shapes do not fit, or values are not finite.
    """
    measures.prepare(features, labels, logits)


def score_row(
    row: Row,
    features: Any,
    labels: Any,
    logits: Any,
    settings: Settings,
    *,
    facts: Mapping[str, Any] | None = None,
    directory: epath.Path | None = None,
    checksum: str = "",
    compute: bool = True,
    tell: Callable[[str, float], None] = lambda measure, seconds: None,
) -> Row:
    """Fills in what the measures say of a checkpoint.

    Args:
      row: Of the checkpoint; its name and number of parameters are facts too.
      features: float [N, D].
      labels: int [N].
      logits: float [N, V], or None.
      settings: What to compute.
      facts: What is known of the checkpoint apart from its features.
      directory: The checkpoint's `scores` directory; nothing is kept if None.
      checksum: Identity of the features in the store.
      compute: Whether to compute what the store does not have.
      tell: Called as `tell(measure, seconds)` after each that was computed.

    Returns:
      The row with scores, spreads, warnings, seconds and terms. What a measure refuses
      is a warning in its cell.
    """
    known = {"name": row.checkpoint, "num_parameters": row.num_parameters}
    prepared = functools.cache(
        lambda: measures.prepare(features, labels, logits, {**known, **(facts or {})})
    )
    scores, spreads, seconds, terms = {}, {}, {}, {}
    warnings = dict(row.warnings)
    for measure in settings.measures:
        options = dict(settings.options.get(measure, {}))
        wanted = {
            "measure": measure,
            "options": options,
            "seed": settings.seed,
            "num_bootstrap": settings.num_bootstrap,
            "features": checksum,
            "version": rankckpt_jax.__version__,
        }
        place = None if directory is None else directory / f"{measure}.json"
        found = None if place is None else store.load_result(place, wanted)
        result = None if found is None else dict(found.result)
        if result is None:
            if not compute:
                continue
            result = _compute(measure, prepared, settings, options)
            if place is not None:
                store.save_result(place, wanted, result)
            tell(measure, result["seconds"])
        seconds[measure] = result["seconds"]
        if result["warning"]:
            warnings[measure] = result["warning"]
        if result["score"] is not None:
            scores[measure] = result["score"]
        if (spread := result["details"].get("spread")) is not None:
            spreads[measure] = spread
        if measures.is_relative(measure) and "terms" in result["details"]:
            terms[measure] = result["details"]["terms"]
    return dataclasses.replace(
        row,
        scores=scores,
        spreads=spreads,
        warnings=warnings,
        score_seconds=seconds,
        terms=terms,
        fingerprint=_fingerprint(features),
    )


def _fingerprint(features: Any) -> str:
    """Of the shape and, as hashing all would take seconds, some hundred rows."""
    array = np.asarray(features)
    rows = array[:: max(1, len(array) // 256)]
    return store.digest(str((array.shape, array.dtype)), rows.tobytes())


def warn_of_twins(rows: Sequence[Row]) -> list[Row]:
    """Adds a warning to rows whose features equal, bit for bit, an earlier row's."""
    first: dict[str, str] = {}
    warned = []
    for row in rows:
        if row.fingerprint and not row.failure:
            name = first.setdefault(row.fingerprint, row.checkpoint)
            if name != row.checkpoint:
                said = f"its features equal those of {name}: one network, two names?"
                warnings = {**row.warnings, "features": said}
                row = dataclasses.replace(row, warnings=warnings)
        warned.append(row)
    return warned


def relative_to_pool(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Puts the scores of measures that are relative to the pool in place."""
    rows = list(rows)
    for name in filter(measures.is_relative, names):
        known = [i for i, row in enumerate(rows) if name in row.terms]
        if not known:
            continue
        combined = measures.combine(name, [rows[i].terms[name] for i in known])
        for i, score in zip(known, combined, strict=True):
            scores = {**rows[i].scores, name: float(score)}
            rows[i] = dataclasses.replace(rows[i], scores=scores)
    return rows


def _compute(
    measure: str,
    prepared: Callable[[], measures.Inputs],
    settings: Settings,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    start = time.monotonic()
    outcome: dict[str, Any]
    try:
        result = measures.compute_prepared(
            measure, prepared(), settings.seed, settings.num_bootstrap, **options
        )
        outcome = {
            "score": result.score,
            "details": dict(result.details),
            "warning": result.warning,
        }
    except InputError as error:
        # A measure that is not defined here (no logits, say) says so in its cell.
        outcome = {"score": None, "details": {}, "warning": error.what}
    return {**outcome, "seconds": time.monotonic() - start}

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
from rankckpt_jax import measures
from rankckpt_jax.errors import InputError, suggest
from rankckpt_jax.results.row import Row
from rankckpt_jax.storage import files, store

# More would tell nothing more; fewer might be of images that all networks see alike.
_ROWS_COMPARED = 32


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


def parse_measures(
    given: str | Sequence[str], field: str = "measures"
) -> tuple[str, ...]:
    """Splits a comma-separated list of measures; `all` leaves out what needs a file.

    Args:
      given: As `config.measures`, or the names themselves.
      field: How an error calls it.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    if isinstance(given, str) and given.strip() == "all":
        return tuple(name for name in measures.names() if name != "static")
    return parse_list(given, measures.names(), field)


def parse_list(
    given: str | Sequence[str], known: Sequence[str], field: str
) -> tuple[str, ...]:
    """Splits a comma-separated field and checks each name.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    parts = given.split(",") if isinstance(given, str) else given
    # One named twice is meant once.
    found = tuple(dict.fromkeys(name.strip() for name in parts if name.strip()))
    unknown = [name for name in found if name not in known]
    if unknown or not found:
        raise InputError(
            f"Unknown name in {field}" if unknown else f"Nothing named in {field}",
            where=field,
            expected="some of " + ", ".join(known) + ", separated by commas",
            found=", ".join(unknown) or "nothing",
            fix=suggest("".join(unknown[:1]), known),
        )
    return found


def check_settings(settings: Settings) -> None:
    """Refuses what the measures would refuse of any features.

    Raises:
      InputError: A measure or option is unknown, or a value cannot be used.
    """
    for measure, options in settings.options.items():
        measures.get(measure).check_options(options)
    for field in ("seed", "num_bootstrap"):
        value = getattr(settings, field)
        if value < 0:
            raise InputError(
                "A setting cannot be negative",
                where=field,
                expected="a whole number of at least 0",
                found=str(value),
                fix="leave it out for the default",
            )


def check(features: Any, labels: Any, logits: Any = None, where: str = "") -> None:
    """Refuses features that no measure can use.

    Args:
      features: As for `score_row`.
      labels: As for `score_row`.
      logits: As for `score_row`.
      where: The file that they are from, for an error.

    Raises:
      InputError: Shapes do not fit, values are not finite, or all rows are equal.
    """
    measures.prepare(features, labels, logits, where=where)
    array = np.asarray(features)
    if len(array) > 1 and (array == array[:1]).all():
        raise InputError(
            "features are the same for every image",
            where=where or "features",
            expected="rows that differ",
            found=f"{len(array)} equal rows",
            fix="look at the weights and the input range of the network they are from",
        )


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
    on_computed: Callable[[str, float], None] = lambda measure, seconds: None,
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
      on_computed: Called as `on_computed(measure, seconds)` after each computation.

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
            on_computed(measure, result["seconds"])
        seconds[measure] = result["seconds"]
        if result["warning"]:
            warnings[measure] = result["warning"]
        if result["score"] is not None:
            scores[measure] = result["score"]
        if (spread := result["details"].get("spread")) is not None:
            spreads[measure] = spread
        if measures.get(measure).combine and "terms" in result["details"]:
            terms[measure] = result["details"]["terms"]
    return dataclasses.replace(
        row,
        scores=scores,
        spreads=spreads,
        warnings=warnings,
        score_seconds=seconds,
        terms=terms,
        fingerprint=_fingerprint(features),
        images=_describe_images(labels),
    )


def _fingerprint(features: Any) -> tuple[float, ...]:
    """Distances from some rows to the next: equal, but for rounding, for equal weights.

    Not lengths, which are all 1 where features have been normalized.
    """
    array = np.asarray(features)
    rows = array[:: max(1, len(array) // _ROWS_COMPARED)].astype(np.float64)
    return tuple(float(d) for d in np.linalg.norm(np.diff(rows, axis=0), axis=1))


def _describe_images(labels: Any) -> str:
    """What shows whether two checkpoints saw the same images, in whatever order."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    sizes = ",".join(map(str, sorted(counts)))
    told = f"{counts.sum()} images of {len(counts)} classes"
    return f"{told} ({files.digest(sizes)[:8]})"


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

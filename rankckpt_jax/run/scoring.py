"""Scores features by the measures of a run, and caches the scores in the store."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

import rankckpt_jax
from rankckpt_jax import measures
from rankckpt_jax.data import targets
from rankckpt_jax.devices import compilation, profiling, progress
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.results import all_images
from rankckpt_jax.results.row import Row, finite
from rankckpt_jax.storage import files, store

_FINGERPRINT_ROWS = 32

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compute for every checkpoint.

    Attributes:
      measures: Names of the measures; the first one orders the ranking.
      options: Options by measure.
      seed: Seed of random starts.
      num_bootstrap: Random halves of the images for each score's standard deviation.
    """

    measures: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    num_bootstrap: int = 0


def parse_measures(
    given: str | Sequence[str], field: str = "measures"
) -> tuple[str, ...]:
    """Parse a comma-separated list of measures.

    Args:
      given: As `config.measures`, or the names themselves. "all" stands for all
        measures except those that need a file.
      field: Name of the field, for errors.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    if isinstance(given, str) and given.strip() == "all":
        known = measures.names()
        return tuple(name for name in known if not measures.get(name).files)
    return parse_list(given, measures.names(), field)


def parse_list(
    given: str | Sequence[str], known: Sequence[str], field: str
) -> tuple[str, ...]:
    """Parse a comma-separated list of known names; duplicates are dropped.

    Raises:
      InputError: A name is unknown, or there is none.
    """
    parts = given.split(",") if isinstance(given, str) else given
    names = tuple(dict.fromkeys(name.strip() for name in parts if name.strip()))
    for name in names:
        if name not in known:
            raise unknown_name("name", name, known, field)
    if not names:
        raise InputError(
            f"{field} is empty",
            where=field,
            expected="some of " + ", ".join(known) + ", separated by commas",
            found="nothing",
            fix=f"name at least one, such as {known[0]}",
        )
    return names


def check_settings(settings: Settings) -> None:
    """Raise for settings that no features can be scored with.

    Raises:
      InputError: A measure or option is unknown, or a value is out of range.
    """
    for measure, options in settings.options.items():
        measures.get(measure).check_options(options)
    for field in ("seed", "num_bootstrap"):
        value = getattr(settings, field)
        if value < 0:
            raise InputError(
                f"{field} cannot be negative",
                where=field,
                expected="an integer of at least 0",
                found=str(value),
                fix="leave it out for the default",
            )
    measures.check_num_bootstrap(settings.num_bootstrap)


def for_target(settings: Settings, target: str) -> Settings:
    """Return settings without the measures that a kind of target has no use for.

    If the first measure, which orders the ranking, is left out, those of
    `measures.DEFAULTS` come first instead. A log line names what was left out.

    Args:
      settings: What to compute.
      target: The kind of the task's labels, one of `targets.TARGETS`.
    """
    given = settings.measures
    kept = [name for name in given if target in measures.get(name).targets]
    left_out = [name for name in given if name not in kept]
    if not left_out:
        return settings
    if given[0] in left_out:
        kept = list(dict.fromkeys((*measures.DEFAULTS[target], *kept)))
    _log.warning(
        "left out %s, not defined for %s per image; %s orders the ranking",
        ", ".join(left_out),
        targets.TARGETS[target],
        kept[0],
    )
    return dataclasses.replace(settings, measures=tuple(kept))


def digest_files(measure: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each input file that options of a measure name.

    The digest of a file that cannot be read is empty.
    """
    digests = {}
    for option in measures.get(measure).files:
        digests[option] = ""
        if path := options.get(option):
            with contextlib.suppress(OSError):
                digests[option] = files.digest_file(files.to_path(path))
    return digests


def check(feature_set: FeatureSet, where: str) -> None:
    """Raise for features that no measure can use.

    Args:
      feature_set: The features.
      where: Their file, for errors.

    Raises:
      InputError: Shapes do not fit, values are not finite, or all rows are equal.
    """
    array = np.asarray(feature_set.features)
    measures.prepare(
        array,
        feature_set.labels,
        feature_set.logits,
        where=where,
        target=feature_set.target,
    )
    if len(array) > 1 and (array == array[:1]).all():
        raise InputError(
            "The features are the same for every image",
            where=where,
            expected="rows that differ",
            found=f"{len(array)} equal rows",
            fix="check the weights and the input range of the network",
        )


def score_row(
    row: Row,
    feature_set: FeatureSet,
    settings: Settings,
    *,
    facts: Mapping[str, Any] | None = None,
    directory: epath.Path | None = None,
    compute: bool = True,
    title: str = "",
    on_result: Callable[[str, float | None], None] = lambda measure, seconds: None,
) -> Row:
    """Fill in the scores of a checkpoint.

    Args:
      row: Row of the checkpoint.
      feature_set: Its features.
      settings: What to compute.
      facts: Published facts about the checkpoint, for measures that need no features.
      directory: The checkpoint's `scores` directory; None to store nothing.
      compute: Whether to compute scores that are not stored.
      title: Prefix of log lines; by default the name of the checkpoint.
      on_result: Called as `on_result(measure, seconds)` after each measure, with None
        for a stored score.

    Returns:
      The row with scores, standard deviations, warnings, seconds and terms. A measure
      that is undefined for the checkpoint, or that fails, becomes a warning.
    """
    prepared = functools.cache(
        lambda: measures.prepare(
            feature_set.features,
            feature_set.labels,
            feature_set.logits,
            {
                "name": row.checkpoint,
                "num_parameters": row.num_parameters,
                **(facts or {}),
            },
            target=feature_set.target,
        )
    )
    scores, spreads, seconds, terms = {}, {}, {}, {}
    intervals, half_scores = {}, {}
    compile_seconds = dict(row.compile_seconds)
    warnings, saturated = dict(row.warnings), {}
    for measure in settings.measures:
        options = dict(settings.options.get(measure, {}))
        key = {
            "measure": measure,
            "options": options,
            "seed": settings.seed,
            "halves": settings.num_bootstrap,
            "features": feature_set.checksum,
            "files": digest_files(measure, options),
            "target": feature_set.target,
            "version": rankckpt_jax.__version__,
        }
        path = None if directory is None else directory / f"{measure}.json"
        stored = None if path is None else store.load_result(path, key)
        if stored is not None:
            result = dict(stored.result)
            on_result(measure, None)
        elif compute:
            with progress.step(title or row.checkpoint, f"scoring {measure}"):
                result, is_final = _compute(measure, prepared, settings, options)
            if path is not None and is_final:
                store.save_result(path, key, result)
            on_result(measure, result["seconds"])
        else:
            continue
        seconds[measure] = result["seconds"]
        # Older results lack it.
        if "compile_seconds" in result:
            compile_seconds[measure] = result["compile_seconds"]
        if result["warning"]:
            warnings[measure] = result["warning"]
        if result["score"] is not None:
            scores[measure] = result["score"]
        if (spread := result["details"].get("spread")) is not None:
            spreads[measure] = spread
        if (values := result["details"].get("half_scores")) is not None:
            half_scores[measure] = tuple(values)
            images, total = row.extract_images or 0, row.train_images or 0
            if 0 < images < total:
                low, high = all_images.interval(
                    result["score"],
                    half_scores[measure],
                    images,
                    total,
                    (1 - all_images.CONFIDENCE) / 2,
                    all_images.start_variance(spreads[measure], half_scores[measure]),
                )
                intervals[measure] = float(low), float(high)
        if (regime := result["details"].get("saturated")) is not None:
            saturated[measure] = regime
        if measures.get(measure).combine and "terms" in result["details"]:
            terms[measure] = result["details"]["terms"]
    return dataclasses.replace(
        row,
        scores=scores,
        spreads=spreads,
        intervals=intervals,
        half_scores=half_scores,
        warnings=warnings,
        saturated=saturated,
        score_seconds=seconds,
        compile_seconds=compile_seconds,
        terms=terms,
        fingerprint=_fingerprint(feature_set.features),
        images=_describe_images(feature_set.labels, feature_set.target),
        order=_digest_order(feature_set.labels, feature_set.target),
    )


def _compute(
    measure: str,
    prepared: Callable[[], measures.Inputs],
    settings: Settings,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], bool]:
    """Return a result as stored, and whether computing it again would give the same."""
    start, compiled = time.monotonic(), compilation.seconds()
    is_final, is_computed = True, True

    def compute() -> measures.Result:
        return measures.compute_prepared(
            measure, prepared(), settings.seed, settings.num_bootstrap, **options
        )

    try:
        result = compute()
    except Exception as error:
        is_computed = False
        result = measures.failure(measure, error)
        # A lack of memory, for example, can pass.
        is_final = isinstance(error, InputError)
    outcome = {
        "score": finite(result.score),
        "details": dict(result.details),
        "warning": result.warning,
        "seconds": time.monotonic() - start,
        "compile_seconds": compilation.seconds() - compiled,
    }
    if is_computed:
        profiling.run_again(f"score_{measure}", compute)
    return outcome, is_final


def _fingerprint(features: Any) -> tuple[float, ...]:
    """Return distances between some rows, which equal weights have in common.

    Norms of rows would not do, because normalized features have norm 1.
    """
    array = np.asarray(features)
    rows = array[:: max(1, len(array) // _FINGERPRINT_ROWS)].astype(np.float64)
    return tuple(float(d) for d in np.linalg.norm(np.diff(rows, axis=0), axis=1))


def _describe_images(labels: Any, target: str) -> str:
    """Return a text that is equal for the same images in any order."""
    array = np.asarray(labels)
    if target == targets.REGRESSION:
        numbers = np.sort(_rounded(array))
        return f"{len(array)} images ({files.digest(numbers.tobytes())[:8]})"
    if target == targets.MULTI_LABEL:
        counts = np.sort(array.sum(axis=0))
        text = f"{len(array)} images of {len(counts)} labels"
    else:
        counts = np.sort(np.unique(array, return_counts=True)[1])
        text = f"{len(array)} images of {len(counts)} classes"
    return f"{text} ({files.digest(','.join(map(str, counts)))[:8]})"


def _digest_order(labels: Any, target: str) -> str:
    """Return a digest of the sequence of labels, which does not depend on names."""
    array = np.asarray(labels)
    if target == targets.REGRESSION:
        return files.digest(_rounded(array).tobytes())[:8]
    if target == targets.MULTI_LABEL:
        columns = sorted(np.packbits(column).tobytes() for column in array.T)
        return files.digest(*columns)[:8]
    _, first, codes = np.unique(array, return_index=True, return_inverse=True)
    # Classes are numbered in the order of their first image.
    numbers = np.argsort(np.argsort(first))[codes.reshape(-1)]
    return files.digest(numbers.astype(np.int32).tobytes())[:8]


def _rounded(numbers: np.ndarray) -> np.ndarray:
    """Return numbers in the least precise format that files of features may have."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)

"""Scores a checkpoint by its last features, its last blocks, or the best of them.

`config.features_from` is one of:

    last          the last features: the pooled pre-logits
    blocks        the pooled outputs of the last blocks, side by side
    last,blocks   the last features and each block apart: the best score counts

The best of several scores is a selection, so it is optimistic: noise in the scores
raises it. A saturated score is not chosen unless all are. Measures that read logits
only, or no images, have one score in any case. Measures that are relative to the pool
use the last features with `last,blocks`, because their terms have a meaning only
beside those of other checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from rankckpt_jax import measures
from rankckpt_jax.features import blocks as blocks_lib
from rankckpt_jax.features.blocks import LAST, Blocks
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import scoring

OnResult = Callable[[str, float | None], None]


def score_row(
    row: Row,
    last: FeatureSet,
    blocks: Blocks | None,
    features_from: str,
    settings: scoring.Settings,
    *,
    facts: Mapping[str, Any] | None = None,
    directory: epath.Path,
    compute: bool = True,
    title: str = "",
    on_result: OnResult = lambda measure, seconds: None,
) -> Row:
    """Fill in the scores of a checkpoint; see `scoring.score_row`.

    Args:
      row: Row of the checkpoint.
      last: Its last features.
      blocks: The outputs of its last blocks; None for the last features. Empty outputs
        become a warning.
      features_from: "blocks" or "last,blocks", if there are blocks.
      settings: What to compute.
      facts: As for `scoring.score_row`.
      directory: The checkpoint's `scores` directory. Scores of blocks have directories
        of their own in it.
      compute: As for `scoring.score_row`.
      title: As for `scoring.score_row`.
      on_result: As for `scoring.score_row`.

    Returns:
      The row with scores, `layers` and, for "last,blocks", `layer_scores`.
    """
    options: dict[str, Any] = {"facts": facts, "compute": compute, "title": title}
    if blocks is not None and not blocks.outputs:
        warnings = {**row.warnings, "features_from": blocks_lib.NO_BLOCKS}
        row, blocks = dataclasses.replace(row, warnings=warnings), None
    if blocks is None:
        return scoring.score_row(
            row, last, settings, directory=directory, on_result=on_result, **options
        )
    compiling: Mapping[str, Any] = {"features": blocks.compile_seconds}
    row = dataclasses.replace(
        row,
        blocks=tuple(blocks.outputs),
        # The pass that gave the blocks gives the last features too.
        extract_seconds=blocks.seconds,
        compile_seconds={**row.compile_seconds, **compiling},
    )
    if features_from == "blocks":
        joined = blocks_lib.concatenate(last, blocks)
        row = dataclasses.replace(row, feature_dim=joined.features.shape[1])
        place = directory / "blocks"
        row = scoring.score_row(
            row, joined, settings, directory=place, on_result=on_result, **options
        )
        layers = {name: "blocks" for name in row.scores if _reads_features(name)}
        return dataclasses.replace(row, layers=layers)
    row = scoring.score_row(
        row, last, settings, directory=directory, on_result=on_result, **options
    )
    chosen = tuple(name for name in settings.measures if _has_layers(name))
    rows = {LAST: row}
    for name in blocks_lib.distinct(last, blocks):
        number = row.blocks.index(name) + 1
        rows[name] = scoring.score_row(
            Row(row.checkpoint, num_parameters=row.num_parameters),
            blocks_lib.to_feature_set(last, blocks, name),
            dataclasses.replace(settings, measures=chosen),
            directory=directory / f"block_{number}",
            on_result=_label(on_result, name),
            **{**options, "title": f"{title}, {name}"},
        )
    return take_best(rows, chosen)


def take_best(rows: Mapping[str, Row], names: tuple[str, ...]) -> Row:
    """Return the row of the last features with the best score of each measure.

    Args:
      rows: Row by layer. The first one is that of the last features, `LAST`.
      names: The measures to choose for.

    Returns:
      The row. The seconds of a measure are those of all layers together.
    """
    last = rows[LAST]
    layers: dict[str, str] = {}
    layer_scores: dict[str, dict[str, float | None]] = {}
    for name in names:
        scores = {
            layer: None if name in row.saturated else row.score(name)
            for layer, row in rows.items()
        }
        known = {layer: score for layer, score in scores.items() if score is not None}
        if known:
            layers[name] = max(known, key=known.__getitem__)
            layer_scores[name] = scores

    def of_best(field: str) -> dict[str, Any]:
        """Return a mapping by measure with the entries of the chosen layers."""
        values = dict(getattr(last, field))
        for name, layer in layers.items():
            values.pop(name, None)
            if name in (found := getattr(rows[layer], field)):
                values[name] = found[name]
        return values

    def total(field: str) -> dict[str, float]:
        values = dict(getattr(last, field))
        for row in rows.values():
            if row is not last:
                for name, seconds in getattr(row, field).items():
                    values[name] = values.get(name, 0.0) + seconds
        return values

    return dataclasses.replace(
        last,
        scores=of_best("scores"),
        spreads=of_best("spreads"),
        intervals=of_best("intervals"),
        half_scores=of_best("half_scores"),
        warnings=of_best("warnings"),
        saturated=of_best("saturated"),
        score_seconds=total("score_seconds"),
        compile_seconds=total("compile_seconds"),
        layers=layers,
        layer_scores=layer_scores,
    )


def _has_layers(name: str) -> bool:
    """Return whether a measure is scored for each layer with "last,blocks"."""
    measure = measures.get(name)
    return _reads_features(name) and measure.combine is None


def _reads_features(name: str) -> bool:
    measure = measures.get(name)
    reads_logits_only = measure.needs_logits and measure.combine is None
    return measure.reads_images and not reads_logits_only and name != "early_stopping"


def _label(on_result: OnResult, layer: str) -> OnResult:
    return lambda measure, seconds: on_result(f"{measure} of {layer}", seconds)

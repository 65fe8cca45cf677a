"""The columns of a ranking's table. Every format of the report shows this list."""

from __future__ import annotations

from collections.abc import Sequence

from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.report.column import WHOLE, Cell, Column, Value, each
from rankckpt_jax.results.formatting import (
    LEAST_COMPILING,
    format_metric,
    format_percent,
    format_probability,
    format_scores,
    one_line,
    printable,
)
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row, finite

MARK = "*"
"""Follows a value that has a warning."""


def columns(ranking: Ranking) -> list[Column]:
    """Return the columns of a ranking. To add a column, add an entry here."""
    first = ranking.measures[0]
    ranks = dict(zip(map(id, ranking.rows), ranking.ranks, strict=True))
    everywhere = ("terminal", "notebook", "page")
    measured = {name for row in ranking.rows for name in row.metrics}
    result = [
        Column(
            "rank",
            "#",
            f"Rank by {printable(first)}; equal scores share a rank.",
            lambda row: ranks[id(row)],
            WHOLE,
            everywhere,
            optional=False,
        ),
        Column(
            "checkpoint",
            "checkpoint",
            "Name of the checkpoint.",
            lambda row: row.checkpoint,
            shown_in=everywhere,
            optional=False,
        ),
        Column(
            "architecture",
            "architecture",
            "Name of the network.",
            lambda row: row.architecture,
            shown_in=("terminal",),
        ),
        Column(
            "group",
            "group",
            "Groups of the checkpoint, separated by commas.",
            lambda row: row.group,
        ),
        *(
            column
            for measure in ranking.measures
            for column in _of_measure(measure, measure == first)
        ),
        Column(
            "accuracy",
            "fine-tuned",
            f"Test {ranking.metric_title} after fine-tuning.",
            lambda row: row.accuracy,
            each(lambda value: format_metric(value, ranking.metric)),
            everywhere,
        ),
        Column(
            "metric",
            "metric",
            "Name of the metric that the column `accuracy` has.",
            lambda row: "" if row.accuracy is None else ranking.metric,
        ),
        *(_of_metric(name, ranking) for name in METRICS if name in measured),
        Column(
            "accuracy_source",
            "source of the accuracy",
            "Source of an accuracy that was not measured in this run.",
            lambda row: row.accuracy_source,
        ),
        *_of_prediction(),
        Column(
            "ranking_seconds",
            "seconds",
            f"Seconds to extract features and to score them by {printable(first)}.",
            lambda row: row.ranking_seconds(first),
            each("{:.1f}".format),
            ("terminal",),
            compiling=lambda row: row.ranking_compile_seconds(first),
        ),
        Column(
            "compile_seconds",
            "compiling (s)",
            "The part of these seconds that was spent on compiling.",
            lambda row: row.ranking_compile_seconds(first),
            each("{:.1f}".format),
        ),
        Column(
            "extract_seconds",
            "extraction (s)",
            "Seconds to extract the features.",
            lambda row: row.extract_seconds,
            each("{:.1f}".format),
        ),
        Column(
            "extract_images",
            "images",
            "Number of training images that features were extracted from.",
            lambda row: row.extract_images,
            WHOLE,
        ),
        Column(
            "train_images",
            "training images",
            "Number of training images.",
            lambda row: row.train_images,
            WHOLE,
        ),
        Column(
            "finetune_seconds",
            "fine-tuning (s)",
            "Seconds of fine-tuning.",
            lambda row: row.finetune_seconds,
            each("{:.1f}".format),
        ),
        Column(
            "num_parameters",
            "parameters",
            "Parameters of the network without its classification head.",
            lambda row: row.num_parameters,
            WHOLE,
        ),
        Column(
            "feature_dim",
            "features",
            "Dimension of a feature vector.",
            lambda row: row.feature_dim,
            WHOLE,
        ),
        Column(
            "blocks",
            "blocks",
            "Last blocks of the network, if their features were scored.",
            lambda row: ", ".join(row.blocks),
        ),
        Column(
            "feature_tensor",
            "feature tensor",
            "Tensor of a converted graph that holds the features.",
            lambda row: row.feature_tensor,
        ),
        Column(
            "engine",
            "engine",
            "What extracted the features of a PyTorch network: jax or torch.",
            lambda row: row.engine,
        ),
        Column(
            "image_size",
            "image size",
            "Side of the square input, in pixels.",
            lambda row: row.image_size,
            WHOLE,
        ),
        Column(
            "own_image_size",
            "own image size",
            "Side of the images that the checkpoint was made for, in pixels.",
            lambda row: row.own_image_size,
            WHOLE,
        ),
        Column(
            "source_accuracy",
            "source accuracy (%)",
            "Published top-1 accuracy on the source data set, in percent.",
            lambda row: row.source_accuracy,
            each("{:.1f}".format),
        ),
        Column(
            "warnings",
            "warnings",
            "Warnings, each after its measure or topic.",
            lambda row: "; ".join(f"{k}: {text}" for k, text in row.warnings.items()),
        ),
        Column(
            "dropped_score",
            "last score",
            "Last score of a checkpoint that the race dropped.",
            lambda row: None if row.dropped is None else row.dropped.score,
            format_scores,
        ),
        Column(
            "dropped",
            "dropped",
            "When the race dropped the checkpoint, and how far it was behind.",
            lambda row: str(row.dropped or ""),
        ),
        Column(
            "failure",
            "failure",
            "The reason why the checkpoint has no scores.",
            lambda row: one_line(row.failure),
        ),
    ]
    # A baseline such as `feature_dim` replaces the column of the same name.
    unique: dict[str, Column] = {}
    for column in result:
        unique.setdefault(column.name, column)
    return list(unique.values())


def shown(ranking: Ranking, where: str) -> list[Column]:
    """Return the columns that `where` shows, without empty optional ones."""
    return [
        column
        for column in columns(ranking)
        if where in column.shown_in
        and not (
            column.optional and all(_clean(column, r) is None for r in ranking.rows)
        )
    ]


def cells(column: Column, rows: Sequence[Row], missing: str) -> list[Cell]:
    """Return the cells of a column.

    Args:
      column: One of `columns`.
      rows: Rows of the ranking.
      missing: The text of a missing value.
    """
    values = [_clean(column, row) for row in rows]
    if column.format is None:
        texts = [missing if v is None else printable(v) for v in values]
        return [Cell(v, t) for v, t in zip(values, texts, strict=True)]
    numbers = [v for v in values if isinstance(v, float)]
    parts = [_compiling(column, row) for row in rows]
    texts = column.format(
        [
            v - part if isinstance(v, float) else None
            for v, part in zip(values, parts, strict=True)
        ]
    )
    texts = [
        f"{text} + {part_text}" if part else text
        for text, part, part_text in zip(
            texts, parts, column.format(parts), strict=True
        )
    ]
    result = []
    for row, value, text in zip(rows, values, texts, strict=True):
        if not isinstance(value, float):
            result.append(Cell(None, missing))
            continue
        spread = finite(column.spread(row))
        result.append(
            Cell(
                value,
                text,
                "" if spread is None else f"{spread:.2g}",
                # If all values are equal, none is emphasized.
                len(set(numbers)) > 1 and value == max(numbers),
                printable(column.warning(row)),
            )
        )
    return result


def _of_measure(measure: str, is_first: bool) -> tuple[Column, ...]:
    name = printable(measure)
    return (
        # Before the score, because texts come before numbers.
        Column(
            f"{measure}_layer",
            f"{name} layer",
            f"Layer whose features gave the score by {name}; empty for the default.",
            lambda row: row.layers.get(measure, ""),
            shown_in=("terminal", "notebook") if is_first else (),
        ),
        Column(
            measure,
            name,
            f"Score by {name}. Higher scores predict better transfer.",
            lambda row: row.scores.get(measure),
            format_scores,
            ("terminal", "notebook", "page"),
            optional=False,
            spread=lambda row: row.spread(measure),
            warning=lambda row: row.warnings.get(measure, ""),
        ),
        Column(
            f"{measure}_saturated",
            f"{name} saturated",
            f"The reason why the score by {name} means nothing here, or empty.",
            lambda row: row.saturated.get(measure, ""),
        ),
        Column(
            f"{measure}_spread",
            f"{name} spread",
            f"Standard deviation of the score by {name} over repetitions.",
            lambda row: row.spreads.get(measure),
            format_scores,
        ),
        _bound(measure, "lower", 0),
        _bound(measure, "upper", 1),
        Column(
            f"{measure}_seconds",
            f"{name} (s)",
            f"Seconds to compute {name} from the features.",
            lambda row: row.score_seconds.get(measure),
            each("{:.1f}".format),
        ),
    )


def _bound(measure: str, end: str, index: int) -> Column:
    """Return the column of a bound of the interval of a score of all images."""
    name = printable(measure)

    def get(row: Row) -> float | None:
        return row.intervals[measure][index] if measure in row.intervals else None

    return Column(
        f"{measure}_all_images_{end}",
        f"{name} of all images, {end} bound",
        f"The {end} bound of the 95 % confidence interval of {name} on all training "
        "images, if its score is of a subset.",
        get,
        format_scores,
    )


def _of_metric(name: str, ranking: Ranking) -> Column:
    """Return the column of a metric; people see those besides the ranking's own."""
    title = METRICS[name].title
    return Column(
        f"test_{name}",
        f"fine-tuned {title}",
        f"Test {title} after fine-tuning.",
        lambda row: row.metrics.get(name),
        each(lambda value: format_metric(value, name)),
        () if name == ranking.metric else ("notebook", "page"),
    )


def _of_prediction() -> tuple[Column, ...]:
    """Return the columns of the prediction; the page has a section for it instead."""

    def probability(row: Row) -> float | None:
        return None if row.predicted is None else row.predicted.probability_best

    def bound(row: Row, index: int) -> float | None:
        interval = row.predicted_interval
        return None if interval is None else (interval.low, interval.high)[index]

    return (
        Column(
            "predicted_accuracy",
            "predicted",
            "Predicted test accuracy after fine-tuning.",
            lambda row: row.predicted_accuracy,
            each(format_percent),
            ("terminal", "notebook"),
        ),
        Column(
            "predicted_lower",
            "predicted, lower bound",
            "The lower bound of the 80 % interval of the predicted accuracy.",
            lambda row: bound(row, 0),
            each(format_percent),
        ),
        Column(
            "predicted_upper",
            "predicted, upper bound",
            "The upper bound of the 80 % interval of the predicted accuracy.",
            lambda row: bound(row, 1),
            each(format_percent),
        ),
        Column(
            "probability_best",
            "P(best)",
            "Predicted probability that no other checkpoint has a higher accuracy.",
            probability,
            each(format_probability),
            ("terminal", "notebook"),
        ),
    )


def _compiling(column: Column, row: Row) -> float:
    """Return the part of a time that is shown apart, or 0."""
    part = finite(column.compiling(row)) or 0.0
    return part if part >= LEAST_COMPILING else 0.0


def _clean(column: Column, row: Row) -> Value:
    """Return the value of a row as a finite float or a text, or None."""
    value = column.value(row)
    if column.format is None:
        return value or None
    return None if isinstance(value, str) else finite(value)

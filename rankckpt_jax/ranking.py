"""A ranking as data: what is known of every checkpoint, in order, and how far to trust.

Nothing here computes on images or features. `rank` puts finished rows in order and
evaluates each measure; `str(ranking)` is the numbered table for a terminal, and
`rankckpt_jax.report` makes files of it.
"""

import dataclasses
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError

_REASON_WIDTH = 120
"""Characters of a failure's reason in the terminal; the report has all of it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Everything known of one checkpoint on one task; what is unknown stays empty.

    Attributes:
      checkpoint: Its name, unique within the task.
      architecture: The network's name, such as `"mobilenet_v1_025"`.
      group: The set it belongs to, such as NeuCRaB's `"group_i"`.
      scores: By measure; higher means better transfer. A measure that is absent or not
        finite has no score.
      spreads: By measure, the standard deviation of the score over repetitions.
      warnings: By measure or topic, one sentence that a reader should know.
      score_seconds: By measure, the time to compute it from features.
      accuracy: Test accuracy after fine-tuning, in [0, 1].
      extract_seconds: The time to extract the features that all measures share.
      finetune_seconds: The time of fine-tuning, with its search for settings.
      num_parameters: Weights of the network without its source classifier.
      feature_dim: D, the length of one feature vector.
      image_size: Side of the square input, in pixels.
      failure: Why this checkpoint has no scores; empty when it has.
    """

    checkpoint: str
    architecture: str = ""
    group: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spreads: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warnings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    extract_seconds: float | None = None
    finetune_seconds: float | None = None
    num_parameters: int | None = None
    feature_dim: int | None = None
    image_size: int | None = None
    failure: str = ""

    def score(self, measure: str) -> float | None:
        """The finite score by `measure`, or None: failed, not computed, or NaN."""
        return None if self.failure else _finite(self.scores.get(measure))

    def spread(self, measure: str) -> float | None:
        """The finite spread of the score by `measure`, or None."""
        return None if self.failure else _finite(self.spreads.get(measure))

    def fine_tuned(self) -> float | None:
        """The accuracy in [0, 1], or None: not fine-tuned, or it diverged to NaN."""
        return _finite(self.accuracy)

    def ranking_seconds(self, measure: str) -> float | None:
        """Extraction and scoring by `measure` together, or None where one is unknown.

        This is what ranking by one measure costs; the other measures are not in it.
        """
        parts = self.extract_seconds, self.score_seconds.get(measure)
        known = [part for part in map(_finite, parts) if part is not None]
        return sum(known) if len(known) == len(parts) else None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Checkpoints of one task in order, with the evidence. Made by `rank`.

    Attributes:
      task: The task's short name.
      task_description: What it is, in a phrase or sentence; may be empty.
      measures: Names of the measures; the first one orders the ranking.
      rows: Best first by the first measure; then rows without a score by it, then
        failures.
      evaluation: For every measure `evaluation.score_ranking` over `paired(measure)`.
      provenance: What made this ranking: configuration, versions, device.
    """

    task: str
    task_description: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    evaluation: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any]

    @property
    def best(self) -> Row | None:
        """The row ranked first, or None where no checkpoint has a score."""
        return self.ranked[0] if self.ranked else None

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows with a score by the first measure, best first."""
        return tuple(r for r in self.rows if r.score(self.measures[0]) is not None)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that name a failure."""
        return tuple(r for r in self.rows if r.failure)

    @property
    def positions(self) -> tuple[int | None, ...]:
        """The rank of every row from 1; equal scores share one, None where unranked."""
        scores = [row.score(self.measures[0]) for row in self.rows]
        known = [score for score in scores if score is not None]
        return tuple(
            None if score is None else 1 + sum(other > score for other in known)
            for score in scores
        )

    def paired(self, measure: str) -> tuple[Row, ...]:
        """The rows that have both a score by `measure` and a fine-tuned accuracy."""
        return _paired(self.rows, measure)

    def __str__(self) -> str:
        """The ranking as a table for a terminal; see `format_table`."""
        return format_table(self)


def rank(
    task: str,
    measures: Sequence[str],
    rows: Iterable[Row],
    *,
    task_description: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Ranking:
    """Orders checkpoints by the first measure and evaluates every measure.

    Equal scores are ordered by name, so the same rows always give the same ranking.

    Example:
      >>> rows = [
      ...     Row("a", scores={"nleep": -0.9}, accuracy=0.71),
      ...     Row("b", scores={"nleep": -0.4}, accuracy=0.84),
      ...     Row("c", failure="no such file"),
      ... ]
      >>> print(rank("pets", ["nleep"], rows))
      pets: 3 checkpoints, 1 failed
      <BLANKLINE>
      #  checkpoint    nleep  fine-tuned
      ----------------------------------
      1  b           -0.4000       84.0%
      2  a           -0.9000       71.0%
      -  c           failed: no such file
      <BLANKLINE>
      measure         n  recall@1  rel@1  recall@3  rel@3  pearson  kendall
      ---------------------------------------------------------------------
      nleep           2      1.00   1.00      1.00   1.00     1.00     1.00
      (random order)  2      0.50   0.92      1.00   1.00     0.00     0.00
      <BLANKLINE>
      nleep ranks b first of 2, and so does fine-tuning (84.0%).
      Too few to tell: nleep has Kendall's tau 1.00, but no order of 2 checkpoints is
      beyond chance; compare at least five.

    Args:
      task: The task's short name.
      measures: One or more measure names; the first one orders the ranking.
      rows: The checkpoints, in any order.
      task_description: What the task is, in a phrase or sentence.
      provenance: What made the rows, for the report: any nested plain data.

    Returns:
      The ranking.

    Raises:
      InputError: If no measure is given, or an accuracy lies outside [0, 1].
    """
    if not measures:
        raise InputError(
            "there is no measure to rank by", expected="at least one measure name"
        )
    rows = tuple(rows)
    for row in rows:
        accuracy = row.fine_tuned()
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise InputError(
                "an accuracy is not a fraction",
                where=f"checkpoint {printable(row.checkpoint)}",
                expected="a value from 0 to 1",
                found=str(accuracy),
            )

    def order(row: Row) -> tuple[bool, bool, float, str]:
        score = row.score(measures[0])
        return bool(row.failure), score is None, -(score or 0.0), row.checkpoint

    return Ranking(
        task=task,
        task_description=task_description,
        measures=tuple(measures),
        rows=tuple(sorted(rows, key=order)),
        evaluation={m: _evaluate(_paired(rows, m), m) for m in measures},
        provenance=dict(provenance or {}),
    )


def format_table(ranking: Ranking) -> str:
    """Lays a ranking out as plain text: table, evaluation, and what follows from it.

    Columns that would be empty are left out. Names and reasons come from files, so
    whatever could steer a terminal is shown escaped (`printable`).

    Args:
      ranking: The ranking.

    Returns:
      Text of several lines without a final newline; see the example of `rank`.
    """
    failed = len(ranking.failed)
    title = f"{printable(ranking.task)}: {_count(len(ranking.rows), 'checkpoint')}"
    title += f", {failed} failed" if failed else ""
    description = printable(ranking.task_description)
    blocks = [f"{title}\n{description}" if description else title]
    if ranking.rows:
        blocks.append(_ranking_lines(ranking))
    if any(len(ranking.paired(measure)) > 1 for measure in ranking.measures):
        blocks.append(_evaluation_lines(ranking))
    sentences = [headline(ranking), *conclusions(ranking)]
    blocks.append("\n".join(map(_wrap, sentences)))
    return "\n\n".join(blocks)


def headline(ranking: Ranking) -> str:
    """One sentence: what was ranked first, and what fine-tuning says of it.

    Args:
      ranking: The ranking.

    Returns:
      A sentence of plain text, names made printable.
    """
    best, measure = ranking.best, printable(ranking.measures[0])
    if best is None:
        if not ranking.rows:
            return "There was no checkpoint to rank."
        if len(ranking.failed) == len(ranking.rows):
            return "Nothing could be ranked: every checkpoint failed."
        return f"Nothing could be ranked: no checkpoint has a score by {measure}."
    name, n = printable(best.checkpoint), len(ranking.ranked)
    if n == 1:
        start = f"{name} is the only checkpoint ranked"
    else:
        tied = sum(position == 1 for position in ranking.positions) - 1
        tie = f", tied with {_count(tied, 'other')}" if tied else ""
        start = f"{measure} ranks {name} first of {n}{tie}"
    accuracy, pairs = best.fine_tuned(), ranking.paired(ranking.measures[0])
    if accuracy is None:
        return f"{start}."
    if len(pairs) == 1:
        return f"{start}; fine-tuned, it reaches {format_percent(accuracy)}."
    top = max(pairs, key=lambda row: row.fine_tuned() or 0.0)
    top_accuracy = top.fine_tuned() or 0.0
    if accuracy == top_accuracy:
        return f"{start}, and so does fine-tuning ({format_percent(accuracy)})."
    place = 1 + sum((row.fine_tuned() or 0.0) > accuracy for row in pairs)
    return (
        f"{start}; fine-tuning puts it {_ordinal(place)} of {len(pairs)}, "
        f"{format_points(top_accuracy - accuracy)} below "
        f"{printable(top.checkpoint)} ({format_percent(top_accuracy)})."
    )


def conclusions(ranking: Ranking) -> tuple[str, ...]:
    """Plain sentences on how far the ranking can be trusted, the main one first.

    A tau within chance is said to be so (`evaluation.beyond_chance`), and so is a lead
    of the first over the second that twice the spread of their scores could explain.

    Args:
      ranking: The ranking.

    Returns:
      None to three sentences of plain text, names made printable.
    """
    if len(ranking.ranked) < 2:
        return ()
    sentences = [_agreement(ranking)]
    sentences += _better_measure(ranking) + _narrow_lead(ranking)
    return tuple(sentences)


def printable(text: object) -> str:
    r"""Makes text from a file safe to print: one line, no control characters.

    White space collapses to single spaces. Every other character that is not printable
    (escape sequences, bidirectional overrides, lone surrogates of undecodable file
    names) becomes its Python escape.

    Example:
      >>> printable("a\nb \x1b[31m")
      'a b \\x1b[31m'

    Args:
      text: Anything; `str` is taken of it.

    Returns:
      One line that encodes as UTF-8.
    """
    line = " ".join(str(text).split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in line
    )


def format_scores(values: Sequence[float | None]) -> list[str]:
    """Writes one column of scores with as many decimals as tell them apart.

    All get the decimals that give the range of the column four significant digits, so
    that NLEEP, PARC and a number of parameters are each readable.

    Example:
      >>> format_scores([-0.4123, -0.9, None])
      ['-0.4123', '-0.9000', '-']
      >>> format_scores([3217000, 819000])
      ['3,217,000', '819,000']

    Args:
      values: Finite scores, or None where there is none.

    Returns:
      One text for every value, `"-"` for None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ["-"] * len(values)
    scale = max(known) - min(known) or abs(known[0])
    if max(map(abs, known)) >= 1e15 or 0 < scale < 1e-7:
        return ["-" if value is None else f"{value:.4g}" for value in values]
    digits = 3 - math.floor(math.log10(scale)) if scale else 3
    digits = min(max(digits, 0), 9)
    return ["-" if value is None else f"{value:,.{digits}f}" for value in values]


def format_percent(accuracy: float) -> str:
    """Writes an accuracy in [0, 1] as a percentage, such as `"84.2%"`."""
    return f"{100 * accuracy:.1f}%"


def format_points(difference: float) -> str:
    """Writes a difference of accuracies in [0, 1] as percentage points."""
    points = 100 * difference
    return f"{points:.1f} points" if points >= 1 else f"{points:.2g} points"


def format_seconds(seconds: float) -> str:
    """Writes a duration in the units a person would use.

    Example:
      >>> [format_seconds(s) for s in (0.042, 8.31, 75, 5000, 200000)]
      ['0.04 s', '8.3 s', '1 min 15 s', '1 h 23 min', '55 h 33 min']

    Args:
      seconds: The duration, >= 0.

    Returns:
      At most two units.
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _finite(value: float | None) -> float | None:
    """Returns `value` as a Python float where it is finite, else None."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _paired(rows: Iterable[Row], measure: str) -> tuple[Row, ...]:
    return tuple(
        row
        for row in rows
        if row.score(measure) is not None and row.fine_tuned() is not None
    )


def _evaluate(pairs: Sequence[Row], measure: str) -> dict[str, float]:
    return evaluation.score_ranking(
        [row.scores[measure] for row in pairs], [row.fine_tuned() for row in pairs]
    )


def _agreement(ranking: Ranking) -> str:
    """What the first measure's tau says, for a ranking of two or more."""
    measure = ranking.measures[0]
    name, n = printable(measure), len(ranking.paired(measure))
    if n == 0:
        return (
            "No ranked checkpoint was fine-tuned, so nothing here says how far "
            f"{name} can be trusted."
        )
    if n == 1:
        return (
            "Only one ranked checkpoint was fine-tuned; fine-tune more to see whether "
            f"{name} orders them rightly."
        )
    tau = ranking.evaluation[measure]["kendall"]
    if math.isnan(tau):
        return (
            f"Whether {name} agrees with fine-tuning is undefined: its scores or the "
            f"accuracies of these {n} checkpoints are all equal."
        )
    if n < 5:
        return (
            f"Too few to tell: {name} has Kendall's tau {tau:.2f}, but no order of {n} "
            "checkpoints is beyond chance; compare at least five."
        )
    spread = f"random orders spread by {evaluation.kendall_null_deviation(n):.2f}"
    evidence = f"Kendall's tau {tau:.2f} over {n} checkpoints"
    if not evaluation.beyond_chance(tau, n):
        return f"{evidence} is within chance for {name} ({spread} around 0)."
    verb = "agrees with" if tau > 0 else "contradicts"
    return f"{name} {verb} fine-tuning: {evidence} ({spread} around 0)."


def _better_measure(ranking: Ranking) -> list[str]:
    """Names the measure that agrees better than the first, if any."""
    first = ranking.evaluation[ranking.measures[0]]["kendall"]
    taus = {m: ranking.evaluation[m]["kendall"] for m in ranking.measures}
    better = {m: tau for m, tau in taus.items() if tau > first}
    if not better:
        return []
    measure = max(better, key=better.__getitem__)
    n = len(ranking.paired(measure))
    sentence = f"{printable(measure)} agrees better (tau {better[measure]:.2f})"
    if better[measure] - first <= 2 * evaluation.kendall_null_deviation(n):
        sentence += f", but over {n} checkpoints that difference may be chance"
    return [f"{sentence}."]


def _narrow_lead(ranking: Ranking) -> list[str]:
    """Says so where the spread of the scores could swap the first two."""
    measure = ranking.measures[0]
    first, second = ranking.ranked[:2]
    lead = first.scores[measure] - second.scores[measure]
    # The scores vary independently, so the variances of their difference add up.
    noise = math.hypot(first.spread(measure) or 0, second.spread(measure) or 0)
    if lead == 0 or lead > 2 * noise:
        return []
    return [
        f"The lead of {printable(first.checkpoint)} over "
        f"{printable(second.checkpoint)} ({lead:.2g}) is less than two standard "
        f"deviations of its noise ({2 * noise:.2g}): another run could swap them."
    ]


def _ranking_lines(ranking: Ranking) -> str:
    """The numbered table of checkpoints."""
    rows, first = ranking.rows, ranking.measures[0]
    numbers = ["-" if p is None else str(p) for p in ranking.positions]
    texts = {"#": numbers, "checkpoint": [printable(row.checkpoint) for row in rows]}
    if any(row.architecture for row in rows):
        texts["architecture"] = [printable(row.architecture) for row in rows]
    values = {}
    for measure in ranking.measures:
        scores = format_scores([row.score(measure) for row in rows])
        spreads = [row.spread(measure) for row in rows]
        values[printable(measure)] = [
            score if spread is None else f"{score} ±{spread:.2g}"
            for score, spread in zip(scores, spreads, strict=True)
        ]
    accuracies = [row.fine_tuned() for row in rows]
    if any(accuracy is not None for accuracy in accuracies):
        values["fine-tuned"] = [
            "-" if accuracy is None else format_percent(accuracy)
            for accuracy in accuracies
        ]
    seconds = [row.ranking_seconds(first) for row in rows]
    if any(value is not None for value in seconds):
        values["seconds"] = [
            "-" if value is None else f"{value:.1f}" for value in seconds
        ]
    lines = [[*texts, *values]]
    for i, row in enumerate(rows):
        cells = [column[i] for column in texts.values()]
        if row.failure:
            # A failure has no numbers: its reason takes their place.
            reason = "; ".join(map(str.strip, row.failure.splitlines()))
            cells.append(f"failed: {_shorten(printable(reason))}")
        else:
            cells += [column[i] for column in values.values()]
        lines.append(cells)
    return _align(lines, left=range(1, len(texts)))


def _evaluation_lines(ranking: Ranking) -> str:
    """The table of measures, closed by what a random order gets on average."""
    names = ("recall@1", "rel@1", "recall@3", "rel@3", "pearson", "kendall")

    def line(name: str, n: int, scores: Mapping[str, float]) -> list[str]:
        values = [scores[key] for key in names]
        cells = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        return [name, str(n), *cells]

    lines = [["measure", "n", *names]]
    for measure, scores in ranking.evaluation.items():
        lines.append(line(printable(measure), len(ranking.paired(measure)), scores))
    pairs = ranking.paired(ranking.measures[0])
    chance = evaluation.random_ranking([row.fine_tuned() for row in pairs])
    lines.append(line("(random order)", len(pairs), chance))
    return _align(lines, left=[0])


def _align(lines: Sequence[Sequence[str]], left: Iterable[int]) -> str:
    """Lays cells out in columns with a rule below the first line.

    Args:
      lines: Cells, the header first. The last cell of a line shorter than the header
        runs on over the columns that are left.
      left: Which columns are text, flush left; the others are numbers, flush right.

    Returns:
      The lines, without trailing blanks.
    """
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(map(_width, column)) for column in zip(*full, strict=True)]
    for line in lines:
        for i, cell in enumerate(line[:-1]):
            widths[i] = max(widths[i], _width(cell))
    left = set(left)

    def lay(line: Sequence[str]) -> str:
        runs_on = len(line) < len(widths)
        cells = []
        for i, cell in enumerate(line):
            blanks = " " * (widths[i] - _width(cell))
            flush_left = i in left or (runs_on and i == len(line) - 1)
            cells.append(cell + blanks if flush_left else blanks + cell)
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lay(lines[0]), rule, *map(lay, lines[1:])])


def _width(text: str) -> int:
    """The columns that `text` takes in a terminal: wide characters take two."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 1] + "…"


def _wrap(sentence: str) -> str:
    return textwrap.fill(
        sentence, width=80, break_long_words=False, break_on_hyphens=False
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _ordinal(n: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    teens = n % 100 in (11, 12, 13)
    return f"{n}{'th' if teens else endings.get(n % 10, 'th')}"

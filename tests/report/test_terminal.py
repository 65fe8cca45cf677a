"""The table for a terminal."""

import dataclasses

import pytest

from rankckpt_jax.report import terminal
from rankckpt_jax.report.names import text_width
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def _blocks(ranking, width=None):
    return terminal.to_text(summarize(ranking), width).split("\n\n")


def test_to_text_aligns_and_numbers_rows():
    rows = [
        Row(
            "short",
            architecture="resnet",
            scores={"nleep": -0.25, "num_parameters": 23_000_000},
            spreads={"nleep": 0.004},
            accuracy=0.873,
            extract_seconds=10,
            score_seconds={"nleep": 2.55},
        ),
        Row("名前", scores={"nleep": -1.5}),
        Row("broken", failure="cannot be read\n  where: model.ckpt"),
    ]
    ranking = rank("pets", ["nleep", "num_parameters"], rows, task_description="Cats")
    title, conclusion, table = _blocks(ranking)
    assert title.splitlines() == ["pets: 3 checkpoints, 1 failed", "Cats"]
    assert conclusion.startswith("Use short.\n")
    assert table.splitlines() == [
        "#  checkpoint  architecture          nleep  num_parameters  fine-tuned  "
        "seconds",
        "-" * 79,
        "1  short       resnet        -0.250 ±0.004      23,000,000       87.3%     "
        "12.6",
        "2  名前                      -1.500                      -           -        "
        "-",
        "-  broken                    failed: cannot be read; where: model.ckpt",
        "Higher scores are better; ± is the standard deviation of a score; fine-tuned "
        "is the test",
        "accuracy after fine-tuning; seconds are those of extraction and scoring by "
        "nleep.",
    ]


def test_to_text_explains_the_time_spent_on_compiling():
    times = {"extract_seconds": 3.0, "score_seconds": {"nleep": 1.3}}
    row = Row("a", scores={"nleep": 1.0}, **times, compile_seconds={"nleep": 0.4})
    text = " ".join(terminal.to_text(summarize(rank("pets", ["nleep"], [row]))).split())
    assert "3.9 + 0.4 Higher scores are better" in text
    assert "scoring by nleep, and + those of compiling." in text


def test_to_text_omits_empty_columns():
    rows = [Row(n, scores={"nleep": 1.0}) for n in "ab"]
    title, conclusion, table = _blocks(rank("pets", ["nleep"], rows))
    for heading in "architecture", "fine-tuned", "seconds", "recall@1":
        assert heading not in table
    assert table.endswith("\nHigher scores are better.")
    assert "Rank by logme instead" in conclusion


def _pool(n, num_measures, name="checkpoint", **fields):
    measures = [f"measure_{j}" for j in range(num_measures)]
    rows = [
        Row(
            f"{name}_{i}",
            architecture="mobilenet_v1",
            scores={measure: float(n - i) for measure in measures},
            spreads={measures[0]: 0.25},
            accuracy=1 - i / n,
            extract_seconds=1.0,
            score_seconds={measures[0]: 1.0},
            **fields,
        )
        for i in range(n)
    ]
    return rank("pets", measures, rows)


@pytest.mark.parametrize("width", [40, 60, 100])
@pytest.mark.parametrize("num_measures", [1, 23])
@pytest.mark.parametrize("name", ["net", "名前" * 20, "a_long_name_" * 5])
def test_to_text_fits_the_width(width, num_measures, name):
    ranking = _pool(5, num_measures, name)
    failed = Row("failed", failure="a long reason " * 30)
    ranking = rank("pets", ranking.measures, [*ranking.rows, failed])
    _, _, table, evaluation = _blocks(ranking, width)
    lines = table.splitlines()
    assert max(map(text_width, [*lines, *evaluation.splitlines()])) <= width
    assert "checkpoint" in lines[0] and "measure_0" in lines[0]
    assert "fine-tuned" in lines[0]
    names = {line.split()[1] for line in lines[2:8]}
    assert len(names) == 6
    assert any(line.startswith("-  failed") and "failed: a" in line for line in lines)


@pytest.mark.parametrize(
    ("width", "shown"),
    [(50, 1), (51, 2), (61, 2), (62, 3), (71, 3), (85, 3)],
)
def test_to_text_shows_the_measures_that_fit(width, shown):
    header, _, *lines = _blocks(_pool(2, 3), width)[2].splitlines()
    assert header.count("measure_") == shown
    # Times and architectures need more room than all measures.
    assert ("seconds" in header) == (width >= 71)
    assert ("architecture" in header) == (width >= 85)
    hidden = {
        1: "2 measures not shown; see ranking.csv.",
        2: "Not shown: measure_2; see ranking.csv or to_csv().",
        3: "Higher scores are better; ± is the standard",
    }
    assert lines[2].startswith(hidden[shown])


def test_to_text_counts_the_measures_whose_names_do_not_fit():
    lines = _blocks(_pool(2, 23), 80)[2].splitlines()
    [line] = [line for line in lines if line.startswith("Not shown")]
    assert "measure_4, " in line and " more; see ranking.csv or to_csv()." in line


def test_to_text_takes_the_width_of_the_environment(monkeypatch):
    widths = []
    for columns in None, "60", "200":
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        table = _blocks(_pool(3, 23))[2]
        widths.append(len(table.splitlines()[1]))
    assert widths[1] <= 60 < widths[0] <= 100 < widths[2] <= 200


def test_to_text_shortens_names_in_the_middle_and_keeps_them_different():
    rows = [
        Row(f"{'x' * 60}{i}{'y' * 14}", scores={"nleep": i, "knn": i}) for i in range(3)
    ]
    ranking = rank("pets", ["nleep", "knn"], rows)
    names = [line.split()[1] for line in _blocks(ranking, 60)[2].splitlines()[2:5]]
    # The end has to be longer than half of 24 to keep them different.
    assert names == [f"{'x' * 14}…{i}{'y' * 14}" for i in (2, 1, 0)]
    short = [
        dataclasses.replace(row, checkpoint=f"{'x' * 60}{i}")
        for i, row in enumerate(rows)
    ]
    names = [
        line.split()[1]
        for line in _blocks(rank("pets", ["nleep"], short), 60)[2].splitlines()[2:5]
    ]
    assert {len(name) for name in names} == {24}
    # Nothing is shortened without need.
    assert "…" not in _blocks(rank("pets", ["nleep"], short), 90)[2]


def test_to_text_explains_the_signs_that_occur():
    rows = [
        Row("a", scores={"nleep": 2.0}, spreads={"nleep": 0.5}, extract_seconds=1.0),
        Row("b", scores={"nleep": 1.0}, warnings={"nleep": "Few images."}),
    ]
    legend = " ".join(_blocks(rank("pets", ["nleep"], rows))[2].splitlines()[4:])
    assert legend == (
        "Higher scores are better; ± is the standard deviation of a score; * marks a "
        "score with a warning."
    )


def test_to_text_evaluates_each_baseline_once():
    rows = [
        Row(
            str(i),
            scores={"nleep": i, "num_parameters": i, "static": i},
            accuracy=0.1 * i,
            num_parameters=10**i,
            feature_dim=2**i,
        )
        for i in range(3)
    ]
    table = _blocks(rank("pets", ["nleep", "num_parameters", "static"], rows))[3]
    names = [line.split("  ")[0] for line in table.splitlines()[2:7]]
    assert names == [
        *("nleep", "(number of parameters)", "(static)", "(feature dimension)"),
        "(random order)",
    ]


def test_to_text_names_each_warning_once():
    warning = {"nleep": "Too few images (6). Add images."}
    rows = [
        Row(n, scores={"nleep": s}, warnings=warning) for n, s in (("a", 2), ("b", 1))
    ]
    text = str(rank("pets", ["nleep"], rows))
    assert text.count("Too few images") == 1
    assert text.endswith(
        "* Warning, nleep of 2 checkpoints: Too few images (6). Add images."
    )


def test_to_text_escapes_control_characters():
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n\u202egnp.\x9b31m\udcff\x00"
    rows = [
        Row(
            hostile,
            architecture=hostile,
            scores={hostile: 1.0},
            warnings={hostile: hostile},
        ),
        Row("failed", failure=hostile),
    ]
    ranking = rank(hostile, [hostile], rows, task_description=hostile)
    for text in str(ranking), repr(ranking), *map(repr, rows):
        assert all(c == "\n" or c.isprintable() for c in text)
        text.encode("utf-8")
    assert r"\x1b[2J" in str(ranking)


def test_to_text_cuts_long_reasons():
    text = str(rank("pets", ["nleep"], [Row("a", failure="x" * 5000)]))
    assert max(map(len, text.splitlines())) == 100 and "…" in text


def test_to_text_does_not_widen_a_column_for_a_reason():
    rows = [Row("a", scores={"nleep": 1.0}), Row("b", failure="a long reason" * 3)]
    for some in rows, rows[1:]:
        lines = _blocks(rank("pets", ["nleep"], some))[2].splitlines()
        assert lines[0] == "#  checkpoint  nleep"
        assert lines[1 + len(some)].startswith("-  b           failed: a long")


def test_to_text_of_degenerate_rankings_has_an_answer(degenerate):
    text = terminal.to_text(summarize(degenerate), 60)
    assert text.splitlines()[2] == "".join(summarize(degenerate).conclusion.answer)
    assert repr(degenerate).splitlines()[0] == text.splitlines()[0]


def test_to_short_text_shows_the_first_rows():
    ranking = _pool(12, 2)
    lines = repr(ranking).splitlines()
    assert lines[0] == "pets: 12 checkpoints" and "measure_1" in lines[1]
    assert len(lines) == 14 and lines[-1] == "... and 2 more"
    assert "... and" not in repr(_pool(10, 2))
    assert len(repr(_pool(10, 2)).splitlines()) == 13

"""The table for a terminal."""

from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


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
    text = str(rank("pets", ["nleep", "num_parameters"], rows, task_description="Cats"))
    lines = text.splitlines()
    assert lines[:2] == ["pets: 3 checkpoints, 1 failed", "Cats"]
    assert lines[3:8] == [
        "#  checkpoint  architecture          nleep  num_parameters  fine-tuned  "
        "seconds",
        "-" * 79,
        "1  short       resnet        -0.250 ±0.004      23,000,000       87.3%     "
        "12.6",
        "2  名前                             -1.500               -           -        "
        "-",
        "-  broken                    failed: cannot be read; where: model.ckpt",
    ]


def test_to_text_omits_empty_columns():
    text = str(rank("pets", ["nleep"], [Row(n, scores={"nleep": 1.0}) for n in "ab"]))
    for heading in "architecture", "fine-tuned", "seconds", "recall@1":
        assert f" {heading}" not in text.split("\n\n")[1]
    assert len(text.split("\n\n")) == 3
    assert "Rank by logme instead" in text


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
    text = str(rank(hostile, [hostile], rows, task_description=hostile))
    assert all(c == "\n" or c.isprintable() for c in text)
    text.encode("utf-8")
    assert r"\x1b[2J" in text


def test_to_text_cuts_long_reasons():
    text = str(rank("pets", ["nleep"], [Row("a", failure="x" * 5000)]))
    assert max(map(len, text.splitlines())) < 200


def test_to_text_does_not_widen_a_column_for_a_reason():
    rows = [Row("a", scores={"nleep": 1.0}), Row("b", failure="a long reason" * 3)]
    for some in rows, rows[1:]:
        lines = str(rank("pets", ["nleep"], some)).splitlines()
        assert lines[2] == "#  checkpoint  nleep"
        assert lines[1 + len(some) + 2].startswith("-  b           failed: a long")

"""The files of a ranking."""

import json

import pytest

from rankckpt_jax import report
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize
from rankckpt_jax.storage import files


@pytest.fixture(scope="module")
def summary():
    rows = [
        Row("a", scores={"nleep": float("nan")}, warnings={"leep": "no logits"}),
        Row("b", scores={"nleep": -1.0}, accuracy=0.5),
    ]
    return summarize(rank("pets", ["nleep"], rows))


def test_write_creates_three_files_and_replaces_them(tmp_path, summary):
    for _ in range(2):
        path = report.write(summary, tmp_path / "new" / "directory")
        assert path == tmp_path / "new" / "directory" / "report.html"
        assert path.read_text().startswith("<!doctype html>")
        assert path.read_text().endswith("</html>\n")
        assert (path.parent / "ranking.csv").read_text().startswith("rank,checkpoint,")
        assert len(list(path.parent.iterdir())) == 3


def test_write_json_has_every_column(tmp_path, summary):
    report.write(summary, tmp_path)
    content = json.loads((tmp_path / "ranking.json").read_text())
    assert content["conclusion"]["answer"] == summary.sentences[0]
    b, a = content["rows"]
    assert (b["rank"], b["checkpoint"], b["nleep"], b["accuracy"]) == (1, "b", -1, 0.5)
    assert (a["rank"], a["nleep"], a["warnings"]) == (None, None, "leep: no logits")


def test_write_replaces_files_atomically(tmp_path, summary, monkeypatch):
    written = []
    monkeypatch.setattr(
        files, "write_text_atomically", lambda path, text: written.append(path)
    )
    report.write(summary, tmp_path)
    assert [p.name for p in written] == ["ranking.csv", "ranking.json", "report.html"]
    assert list(tmp_path.iterdir()) == []

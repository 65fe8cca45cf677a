"""Both files, in place and whole."""

from rankckpt_jax import report
from rankckpt_jax.storage import store


def test_writes_both_files_and_returns_the_page(tmp_path, realistic):
    path = report.write(realistic, tmp_path / "new" / "directory")
    assert path == tmp_path / "new" / "directory" / "report.html"
    assert path.read_text().startswith("<!doctype html>")
    assert (path.parent / "ranking.csv").read_text().startswith("rank,checkpoint,")
    assert len(list(path.parent.iterdir())) == 2


def test_writes_through_the_store_only(tmp_path, realistic, monkeypatch):
    written = {}
    monkeypatch.setattr(
        store, "write_text_atomically", lambda path, text: written.update({path: text})
    )
    report.write(realistic, tmp_path)
    assert {path.name for path in written} == {"ranking.csv", "report.html"}
    assert list(tmp_path.iterdir()) == []


def test_any_ranking_can_be_written_again(tmp_path, hostile, degenerate):
    for ranking in hostile, degenerate, hostile:
        path = report.write(ranking, tmp_path)
        assert path.read_text(encoding="utf-8").endswith("</html>\n")

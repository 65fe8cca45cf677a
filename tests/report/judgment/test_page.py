"""The page of a judgment: its content, its escaping, and that it requests nothing."""

import re

from rankckpt_jax.report import judgment as report
from rankckpt_jax.report.judgment import page, plots
from tests.report.judgment.conftest import HOSTILE
from tests.report.test_page import _Reader


def test_to_html_shows_every_part(judgment):
    shown = page.to_html(judgment)
    reader = _Reader(shown)
    assert re.findall("<h2>(.*?)</h2>", shown) == [
        "Agreement with fine-tuning",
        "Differences between measures",
        "Kendall's tau by task",
        "Scores against accuracy after fine-tuning",
        "Without the easiest checkpoints",
        "Families, sizes and groups",
        "Cost against regret",
        "Protocol",
    ]
    for expected in (
        "nleep agrees best with fine-tuning",
        "perfect score (noise ceiling)",
        "fine-tuned once more",
        "nleep, the best and default measure",
        "random, the worst measure",
        "without swin",
        "12 checkpoints, 6 families",
        "pairs that the test resolves",
        f"{judgment.measures[0].kendall:.2f}",
    ):
        assert expected in reader.text, expected
    # Six tasks of two measures, the dropping curve as a mean and by task, and the cost.
    drawings = [svg for svg in reader.named("svg") if svg.get("role") == "img"]
    assert len(drawings) == 12 + 1 + 6 + 1


def test_to_html_of_odd_tables_is_escaped_and_requests_nothing(odd):
    shown = page.to_html(odd)
    reader = _Reader(shown)
    assert not re.search(r"https?:|@import|\sstyle=", shown)
    assert HOSTILE not in shown and "<script>alert" not in shown
    if odd.table.name == "hostile":
        # Neither a template nor a script runs.
        assert '<script>alert("x")</script>{{ 7 * 7 }}' in reader.text
    assert not re.search(r"\bnan\b", reader.text)


def test_scatter_marks_an_outlier_at_the_edge(judgment):
    (task, *_) = judgment.table.tasks
    assert plots.scatter(task, "nleep").count("<circle") == 12
    # Both runs of each checkpoint.
    assert plots.scatter(task, "nleep").count('class="whisker"') == 12


def test_write_replaces_all_three_files(judgment, tmp_path):
    path = report.write(judgment, tmp_path / "new")
    report.write(judgment, tmp_path / "new")
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert names == [f"simulated_judgment.{end}" for end in ("csv", "html", "json")]
    assert path.name == names[1]
    assert judgment.to_html() == path.read_text()
    judgment.to_csv(tmp_path / "same.csv")
    same = tmp_path / "new" / names[0]
    assert (tmp_path / "same.csv").read_text() == same.read_text()

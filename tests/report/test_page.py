"""The page: its content, its escaping, and that it requests nothing."""

import base64
import csv
import dataclasses
import hashlib
import html.parser
import io
import re

import pytest

from rankckpt_jax.benchmark import table as benchmark
from rankckpt_jax.report import notebook, page
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class _Reader(html.parser.HTMLParser):
    """Collects elements and visible text; fails on elements closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def named(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def _to_html(*args):
    return page.to_html(summarize(rank("t", *args)))


def test_to_html_shows_every_result(realistic_page):
    reader = _Reader(realistic_page)
    for expected in (
        "caltech101",
        "102 classes",
        "Fine-tuned, it reaches 89.1%, the highest of 5; following nleep would lose",
        "is not significant (Kendall's tau 0.80 over all 5 checkpoints",
        "-0.412",
        "±0.01",
        "89.1%",
        "3.2 M parameters",
        "1 checkpoint failed",
        "two variables found: 263 < 265",
        "no logits leep: random_initialization",
        "Fine-tuning 5 checkpoints took 53 times as long as ranking them.",
        "random order",
        "config.task.name caltech101",
        "config.seeds 0, 1",
        "devices[1].kind cpu",
    ):
        assert expected in reader.text
    assert len(reader.named("svg")) == 3
    assert len(reader.named("table")) == 5


def test_to_html_requests_nothing(realistic_page):
    reader = _Reader(realistic_page)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#plot)", realistic_page)
    assert not any(
        name in ("iframe", "object", "embed", "img", "form", "base")
        for name, _ in reader.elements
    )
    for tag, attributes in reader.elements:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag in ("link", "a", "use"):
            assert attributes["href"].startswith(("data:,", "#"))


def test_to_html_policy_allows_only_its_script_and_style(realistic_page):
    digests = {
        tag: base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        for tag, inner in re.findall(
            r"<(script|style)>(.*?)</\1>", realistic_page, re.DOTALL
        )
    }
    reader = _Reader(realistic_page)
    (policy,) = [
        attributes["content"]
        for attributes in reader.named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in attributes for _, attributes in reader.elements)


def test_to_html_escapes_hostile_text_in_every_section(hostile_page):
    hostile_page.encode("utf-8")
    reader = _Reader(hostile_page)
    assert len(reader.named("script")) == len(reader.named("style")) == 1
    assert "{{ 7 * 7 }}" in reader.text
    assert "<script>alert" in reader.text
    for section in page.sections():
        assert f"<h2>{section.title}</h2>" in hostile_page
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in "src", "href":
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "\x1b" not in hostile_page
    assert "\u202e" not in hostile_page


def test_notebook_and_benchmark_escape_hostile_text(hostile):
    lines = benchmark.tabulate([hostile, dataclasses.replace(hostile, task="=other")])
    for text in notebook.to_html(summarize(hostile)), benchmark.to_html(lines):
        reader = _Reader(text)
        assert reader.named("script") == []
        assert "<script>alert" in reader.text
        assert "\x1b" not in text and "\u202e" not in text
        text.encode("utf-8")
    text = benchmark.to_text(lines)
    assert "\x1b" not in text and "\u202e" not in text
    for line in csv.reader(io.StringIO(benchmark.to_csv(lines))):
        for cell in line[:3]:
            assert cell.isprintable() and not cell.startswith(tuple("=+-@"))


def test_to_html_renders_degenerate_rankings(degenerate):
    reader = _Reader(page.to_html(summarize(degenerate)))
    assert not re.search(r"\b(nan|inf|None)\b", reader.text)
    for attributes in reader.named("td") + reader.named("th"):
        assert attributes.get("data-value") not in ("nan", "inf", "None")
    shares = re.findall(r"'share([^']*)'", " ".join(map(str, reader.elements)))
    assert all(0 <= int(share) <= 100 for share in shares)


def test_to_html_omits_sections_without_content():
    rows = [Row("a", scores={"nleep": -1.0}), Row("b", scores={"nleep": -2.0})]
    text = _to_html(["nleep"], rows)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == ["Ranking", "Scores against fine-tuning"]
    assert "There is nothing to compare" in text


def test_to_html_includes_a_section_that_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "note.py").write_text(
        "from rankckpt_jax.report.rendering import Section\n"
        "values = lambda summary: {'task': summary.ranking.task}\n"
        "SECTION = Section(15, 'A note', '<p>Task {{ task }}.</p>', values)\n"
    )
    monkeypatch.setattr(page, "__path__", [*page.__path__, str(tmp_path)])
    text = _to_html(["nleep"], [Row("a", scores={"nleep": -1.0})])
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:2] == ["Ranking", "A note"] and "<p>Task t.</p>" in text


def test_sortable_tables_have_a_button_and_a_value_for_each_column(realistic_page):
    tables = re.findall(r"<table data-sortable.*?</table>", realistic_page, re.DOTALL)
    assert len(tables) == 3
    for table in tables:
        head, body = table.split("</thead>")
        columns = head.count("<th ")
        assert head.count("<button") == columns
        for row in re.findall(r"<tr.*?</tr>", body.split("</tbody>")[0], re.DOTALL):
            assert row.count("data-value=") == columns


@pytest.mark.parametrize(
    ("name", "measure"), [("a", "nleep"), ("nleep", "nleep"), ("ranks", "knn")]
)
def test_to_html_emphasizes_the_first_checkpoint(name, measure):
    rows = [Row(name, scores={measure: 2.0}), Row("z", scores={measure: 1.0})]
    text = _to_html([measure], rows)
    assert f"Use <strong>{name}</strong>." in text
    text = _to_html([measure], rows[:1])
    assert f"<strong>{name}</strong> is the only checkpoint ranked." in text

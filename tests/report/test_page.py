"""The page: what it says, what it escapes, and that it asks for nothing."""

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


def test_says_what_matters(realistic):
    reader = _Reader(page.to_html(realistic))
    for expected in (
        "caltech101",
        "102 classes",
        "nleep ranks mobilenet_v1_1.0_224/model.ckpt first of 5",
        "Kendall's tau 0.80 over 5 checkpoints is within chance",
        "-0.412",
        "±0.01",
        "89.1%",
        "3.2 M parameters",
        "1 checkpoint failed",
        "two variables found: 263 < 265",
        "there is no classifier leep: random_initialization",
        "Fine-tuning these 5 checkpoints took 53 times as long as ranking them.",
        "random order",
        "config.task.name caltech101",
        "config.seeds 0, 1",
        "devices[1].kind cpu",
    ):
        assert expected in reader.text
    assert len(reader.named("svg")) == 3
    assert len(reader.named("table")) == 5


def test_asks_for_nothing_from_outside(realistic):
    text = page.to_html(realistic)
    reader = _Reader(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#plot)", text)
    assert not any(
        name in ("iframe", "object", "embed", "img", "form", "base")
        for name, _ in reader.elements
    )
    for tag, attributes in reader.elements:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag in ("link", "a", "use"):
            assert attributes["href"].startswith(("data:,", "#"))


def test_policy_allows_the_one_script_and_the_one_style_alone(realistic):
    text = page.to_html(realistic)
    digests = {
        tag: base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        for tag, inner in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL)
    }
    (policy,) = [
        attributes["content"]
        for attributes in _Reader(text).named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # What it would shut out is not there.
    for _, attributes in _Reader(text).elements:
        assert "style" not in attributes


def test_hostile_text_stays_text(hostile):
    text = page.to_html(hostile)
    text.encode("utf-8")
    reader = _Reader(text)
    assert len(reader.named("script")) == len(reader.named("style")) == 1
    assert "{{ 7 * 7 }}" in reader.text
    assert "<script>alert" in reader.text
    # In every section, and none is left out.
    for heading in (
        *("Ranking", "Scores against fine-tuning", "How good is each measure"),
        *("Ranks by measure", "Fine-tuning on the way", "Cost", "Failed", "Warnings"),
        *("What the features look like", "Images as the network sees them"),
        "Provenance",
    ):
        assert f"<h2>{heading}</h2>" in text
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in "src", "href":
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_hostile_text_stays_text_in_a_notebook_and_in_the_benchmark(hostile):
    shown = notebook.to_html(hostile)
    lines = benchmark.tabulate([hostile, dataclasses.replace(hostile, task="=other")])
    for text in shown, benchmark.to_html(lines):
        reader = _Reader(text)
        assert reader.named("script") == []
        assert "<script>alert" in reader.text
        assert "\x1b" not in text and "\u202e" not in text
        text.encode("utf-8")
    said = benchmark.to_text(lines)
    assert "\x1b" not in said and "\u202e" not in said
    for line in csv.reader(io.StringIO(benchmark.to_csv(lines))):
        for cell in line[:3]:
            assert cell.isprintable() and not cell.startswith(tuple("=+-@"))


def test_degenerate_rankings_render(degenerate):
    reader = _Reader(page.to_html(degenerate))
    assert not re.search(r"\b(nan|inf|None)\b", reader.text)
    for attributes in reader.named("td") + reader.named("th"):
        assert attributes.get("data-value") not in ("nan", "inf", "None")
    shares = re.findall(r"'share([^']*)'", " ".join(map(str, reader.elements)))
    assert all(0 <= int(share) <= 100 for share in shares)


def test_unknown_sections_are_left_out():
    rows = [Row("a", scores={"nleep": -1.0}), Row("b", scores={"nleep": -2.0})]
    text = _Reader(page.to_html(rank("t", ["nleep"], rows))).text
    for heading in "Cost", "Failed", "Warnings", "Provenance", "How good is each":
        assert heading not in text
    assert "Nothing to compare" in text


def test_every_heading_of_a_sortable_table_is_a_button(realistic):
    text = page.to_html(realistic)
    tables = re.findall(r"<table data-sortable.*?</table>", text, re.DOTALL)
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
def test_the_best_is_set_apart_in_its_own_place(name, measure):
    rows = [Row(name, scores={measure: 2.0}), Row("z", scores={measure: 1.0})]
    text = page.to_html(rank("t", [measure], rows))
    assert f"{measure} ranks <strong>{name}</strong> first of 2." in text
    text = page.to_html(rank("t", [measure], rows[:1]))
    assert f"<strong>{name}</strong> is the only checkpoint ranked." in text

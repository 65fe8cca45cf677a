"""The page: its content, its escaping, and that it requests nothing."""

import base64
import csv
import dataclasses
import hashlib
import html.parser
import io
import re
import sys
import urllib.parse

import pytest

from rankckpt_jax.benchmark import table as benchmark
from rankckpt_jax.report import notebook, page
from rankckpt_jax.report.page import evaluation, scatter_plots
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

_VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


class _Reader(html.parser.HTMLParser):
    """Collects elements and visible text; fails on elements closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "wbr":
            # A place where a name may break is no space.
            self.texts.append("\0")
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
        return " ".join(" ".join(self.texts).replace(" \0 ", "").split())

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
        "◆ 89.1%",
        "1,024 features · 3.2 M parameters · 224 px",
        "not ranked: two variables",
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
    # A plot for each measure.
    assert len([svg for svg in reader.named("svg") if svg.get("role") == "img"]) == 3
    headings = re.findall("<h2>(.*?)</h2>", realistic_page)
    assert headings == [
        "Ranking",
        "Scores against accuracy after fine-tuning",
        "How well each measure predicts accuracy",
        "Scores by measure",
        "Cost",
        "Networks",
        "Checkpoints that failed",
        "Warnings",
        "How this was made",
    ]


def test_to_html_orders_measures_by_agreement_and_shows_regret(realistic):
    table = _Reader(evaluation.SECTION.render(summarize(realistic)))
    names = [a.get("data-value") for a in table.named("th") if a.get("scope") == "row"]
    assert names[:3] == ["h_score", "nleep", "leep"]
    # The first of nleep is 1.8 points below the best, a random checkpoint 14.7.
    assert "1.8 points" in table.text and "14.7 points" in table.text


def test_to_html_shows_the_plots_of_the_first_the_best_and_the_worst(large):
    section = scatter_plots.SECTION.render(large)
    shown, _, folded = section.partition("<details>")
    assert shown.count("<svg") == 3
    assert "20 more measures" in folded
    taus = {m: s.scores["kendall"] for m, s in large.agreement.measures.items()}
    for note, tau in (
        ("orders the ranking", taus["some_measure_0"]),
        ("agrees best", max(taus.values())),
        ("agrees least", min(taus.values())),
    ):
        assert f"tau {tau:.2f} over 40 checkpoints ({note})" in " ".join(shown.split())


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
            assert attributes["href"].startswith(("data:,", "data:text/csv", "#"))


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
        heading = section.title.format(metric="accuracy", Metric="Accuracy")
        assert f"<h2>{heading}</h2>" in hostile_page
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in "src", "href":
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "\x1b" not in hostile_page
    assert "\u202e" not in hostile_page


def test_to_html_escapes_hostile_measures_beside_the_names(hostile):
    few = rank("t", hostile.measures[:2], hostile.rows)
    text = page.to_html(summarize(few))
    reader = _Reader(text)
    text.encode("utf-8")
    chips = [s for s in reader.named("span") if "chip" in s.get("class", "")]
    assert len(chips) == 2 * len(few.scored_rows)
    assert "<script>alert" in chips[0]["data-label"]
    assert len(reader.named("script")) == 1


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
    assert re.findall("<h2>(.*?)</h2>", text) == ["Ranking"]


def test_to_html_shows_no_absolute_path():
    rows = [
        Row(
            "a", scores={"nleep": -1.0}, warnings={"nleep": "See /home/ann/a b/x.txt."}
        ),
        Row("b", failure="No such file\n  where: /home/ann/pool/b.h5"),
    ]
    provenance = {"config": {"workdir": "/home/ann/runs", "bucket": "gs://runs/a"}}
    text = page.to_html(summarize(rank("t", ["nleep"], rows, provenance=provenance)))
    assert "/home" not in text and "%2Fhome" not in text
    assert "where: …/b.h5" in text
    assert "<td>…/runs</td>" in text
    assert "<td>gs://runs/a</td>" in text


def test_to_html_folds_fields_without_a_value():
    provenance = {"config": {"task": None, "seed": 0, "dtype": "", "options": {}}}
    rows = [Row("a", scores={"nleep": -1.0})]
    text = page.to_html(summarize(rank("t", ["nleep"], rows, provenance=provenance)))
    folded = text.partition("<summary>Fields without a value</summary>")[2]
    assert "config.task, config.dtype, config.options</p>" in folded
    assert re.findall("<tr><th scope=.row.>(.*?)</th>", text) == ["config.seed"]


def test_to_html_offers_the_table_as_csv(realistic, realistic_page):
    (link,) = [a for a in _Reader(realistic_page).named("a") if "download" in a]
    assert link["download"] == "caltech101-ranking.csv"
    kind, _, data = link["href"].partition(",")
    assert kind == "data:text/csv;charset=utf-8"
    assert urllib.parse.unquote(data) == realistic.to_csv()


def test_to_html_draws_the_interval_of_a_score_on_the_common_axis():
    rows = [
        Row("a", scores={"nleep": 3.0}, spreads={"nleep": 0.5}),
        Row("b", scores={"nleep": 1.0}),
        Row("c", scores={"nleep": 0.0}),
    ]
    text = _to_html(["nleep"], rows)
    a, b, c = (
        float(x) for x in re.findall('<circle class="score" cx="([0-9.]+)%"', text)
    )
    # Distances on the axis are proportional to those of the scores.
    assert a - b == pytest.approx(2 * (b - c), abs=0.1)
    ends = re.findall('<line class="interval" x1="([0-9.]+)%" x2="([0-9.]+)%"', text)
    # The only known spread: two standard deviations to each side.
    ((low, high),) = ends
    assert float(high) - a == pytest.approx(b - c, abs=0.1)
    assert a - float(low) == pytest.approx(b - c, abs=0.1)


def test_to_html_of_many_checkpoints_and_measures_is_small(large, monkeypatch):
    # Matplotlib took 4 s to draw the plots of this page.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert len(page.to_html(large)) < 1e6


def test_to_html_splits_many_measures_into_tables_for_paper():
    measures = [f"measure{i}" for i in range(14)]
    rows = [Row(n, scores={m: float(i) for i, m in enumerate(measures)}) for n in "ab"]
    reader = _Reader(_to_html(measures, rows))
    tables = [t for t in reader.named("table") if "print-only" in t.get("class", "")]
    assert len(tables) == 3
    text = _to_html(measures[:6], rows)
    assert "print-only" not in text.partition("</style>")[2]


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
    assert len(tables) == 4
    for table in tables:
        head, body = table.split("</thead>")
        # The ranks by each measure cannot be sorted.
        columns = head.count("<th ") - head.count('class="chips"')
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

"""Tables of the documentation that must list what the package has."""

import dataclasses
import math
import pathlib
import re
import tomllib

import pytest

from rankckpt_jax import finetune, measures
from rankckpt_jax.data import preprocess
from rankckpt_jax.devices import peaks
from rankckpt_jax.evaluation import table_lines
from rankckpt_jax.report import tracking
from tests.benchmarks import published_agreement

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def rows(page):
    """Return the cells of each table row of a page."""
    lines = (DOCS / page).read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    ]


def test_measures_page_lists_every_measure_with_its_needs():
    needs = {}
    for cells in rows("measures.md"):
        if len(cells) == 4 and not cells[1].isdigit():
            for name in re.findall(r"`(\w+)`", cells[0]):
                needs.setdefault(name, cells[2])
    assert set(measures.names()) <= needs.keys()
    for name in measures.names():
        measure = measures.get(name)
        assert ("logits" in needs[name]) == measure.needs_logits, name
        assert ("pool" in needs[name]) == (measure.combine is not None), name


def test_measures_page_says_which_kinds_of_labels_each_measure_takes():
    text = (DOCS / "measures.md").read_text()
    section = text.split("## Several labels or a number")[1].split("\n## ")[0]
    table = {}
    for line in re.findall("^\\| `.*$", section, re.MULTILINE):
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table |= dict.fromkeys(re.findall(r"`(\w+)`", names), cells)
    for name in measures.names():
        taken = measures.get(name).targets
        cells = table.get(name, ["-", "-"])
        assert (cells[0] != "-") == ("multi_label" in taken), name
        assert (cells[1] != "-") == ("regression" in taken), name


def test_choosing_page_has_the_traits_of_every_measure():
    lines = [cells for cells in rows("choosing-a-measure.md") if len(cells) == 7]
    table = {cells[0].strip("`"): cells for cells in lines}
    assert table.keys() == set(measures.names())
    for name, cells in table.items():
        measure = measures.get(name)
        needs = measure.needs_logits, measure.needs_more_images_than_dimensions
        assert cells[1:3] == ["yes" if need else "no" for need in needs], name
        assert cells[3] == ", ".join(measure.targets)
        assert cells[4] == measure.cost
        has_cost = measure.reads_images and name != "early_stopping"
        assert (cells[5] != "-") == has_cost, name
        evidence = measure.evidence
        assert cells[6] == (f"{evidence.kendall:.2f}" if evidence else "-"), name


def test_choosing_page_has_the_published_agreement():
    known = published_agreement.read()
    text = (DOCS / "choosing-a-measure.md").read_text()
    pools = ("keras", "timm", "torchvision")
    listed = {published_agreement.ELSEWHERE, *measures.names()}
    for measure in {row.measure for row in known} & listed:
        means = [published_agreement.mean(known, measure, pool)[0] for pool in pools]
        cells = ["-" if math.isnan(tau) else f"{tau:.2f}" for tau in means]
        tau, count = published_agreement.mean(known, measure)
        line = " | ".join([*cells, f"{tau:.2f} ({count})"])
        assert f"| {line} |" in text, measure
    for other, words in (
        ("logme", "LogME by 0.05 (p-value 0.41"),
        ("gbc", "GBC by 0.11"),
        ("leep", "LEEP by 0.21 (0.006)"),
        ("source_accuracy", "ImageNet accuracy by 0.11 (0.10)"),
        (published_agreement.ELSEWHERE, "other tasks by 0.20 (0.001)"),
    ):
        difference, p_value, _ = published_agreement.compare(known, "nleep", other)
        assert words in " ".join(text.split())
        assert f"{abs(difference):.2f}" in words
        numbers = [float(x) for x in re.findall(r"0\.\d+", words)[1:]]
        assert numbers in ([], [round(p_value, 2)], [round(p_value, 3)])
    best = {"keras": 9, "timm": 0}
    given = ("nleep", "logme", "gbc", "leep", "nce", "parc", "ncti", "pactran")
    for pool, count in best.items():
        taus = {}
        for row in known:
            if row.pool == pool and row.measure in given:
                taus.setdefault(row.task, {})[row.measure] = row.kendall
        firsts = [max(by, key=by.get) for by in taus.values()]
        assert firsts.count("nleep") == count


def test_evaluation_page_has_the_published_agreement():
    known = published_agreement.read()
    text = (DOCS / "evaluate-your-scores.md").read_text()
    for pool in ("keras", "timm", "torchvision"):
        (line,) = re.findall(rf"^\| {pool} \|.*$", text, re.MULTILINE)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        nleep, count = published_agreement.mean(known, "nleep", pool)
        static, _ = published_agreement.mean(known, published_agreement.ELSEWHERE, pool)
        assert cells[1] == str(count)
        assert cells[4].startswith(f"{nleep:.2f} [")
        assert cells[5].startswith(f"{static:.2f} [")
        of_pool = [row for row in known if row.pool == pool]
        difference, p_value, _ = published_agreement.compare(
            of_pool, "nleep", published_agreement.ELSEWHERE
        )
        found, p_text = re.findall(r"-?\d\.\d+", cells[6])
        assert found == f"{difference:.2f}"
        # The four digits of the file make and break ties between sums of differences.
        assert float(p_text) == pytest.approx(p_value, abs=0.004)


def test_evaluation_page_names_every_column():
    text = (DOCS / "evaluate-your-scores.md").read_text()
    for column in table_lines.COLUMNS:
        assert f"`{column}`" in text, column


def test_fine_tuning_page_lists_every_recipe():
    table = {cells[0].strip("`"): cells for cells in rows("fine-tuning.md")}
    for name, sweep in finetune.SWEEPS.items():
        _, rates, steps, batch, _ = table[name]
        numbers = [float(x) for x in re.findall(r"\d\.\d+", rates)]
        assert tuple(numbers) == sweep.learning_rates
        steps = [int(x.replace(",", "")) for x in re.findall(r"\d[\d,]*\d", steps)]
        assert tuple(steps) == sweep.num_steps
        assert int(batch) == sweep.recipe.batch_size


@pytest.mark.parametrize("kind", [finetune.Recipe, finetune.Sweep])
def test_fine_tuning_page_names_every_field(kind):
    text = (DOCS / "fine-tuning.md").read_text()
    fields = {field.name for field in dataclasses.fields(kind)}
    for name in fields - {"seed", "name", "recipe", "learning_rates"}:
        assert re.search(rf"[`.]{name}\b", text), name


def test_tasks_page_lists_every_preprocessing():
    listed = {
        cells[0].partition("`")[2].partition("`")[0] for cells in rows("tasks.md")
    }
    assert set(preprocess.names()) <= listed


def test_tracking_page_lists_every_tracker_and_its_extra():
    listed = {cells[0].strip("`"): cells[1] for cells in rows("tracking.md")}
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    for name in tracking.names():
        assert f"[{name}]" in listed[name]
        assert name in project["optional-dependencies"]
    assert len(listed) == len(tracking.names())


def test_planning_page_lists_the_peaks_of_every_device():
    listed = {cells[0].strip("`"): cells[1:] for cells in rows("planning.md")}
    for name, (flops, bandwidth, memory) in peaks.PUBLISHED.items():
        given = [float(text.replace(",", "")) for text in listed[name]]
        rates = [flops[kind] / 1e12 for kind in ("bfloat16", "float32 highest")]
        expected = [*rates, bandwidth / 1e9, memory / 2**30]
        assert given == pytest.approx(expected, rel=0.01)

"""Tables of the documentation that must list what the package has."""

import dataclasses
import pathlib
import re
import tomllib

import pytest

from rankckpt_jax import finetune, measures
from rankckpt_jax.data import preprocess
from rankckpt_jax.report import tracking

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

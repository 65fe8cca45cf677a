"""The ranking as JSON, and its documented schema."""

import json
import math
import pathlib
import re

import pytest

from rankckpt_jax.report.json import SCHEMA, to_json
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

_DOCS = pathlib.Path(__file__).parents[2] / "docs" / "reading-a-ranking.md"


def _read(ranking):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(to_json(summarize(ranking)), parse_constant=refuse)


def test_to_json_has_every_part(realistic):
    content = _read(realistic)
    assert content["schema"] == SCHEMA == 1
    assert content["measures"] == ["nleep", "h_score", "leep"]
    conclusion = content["conclusion"]
    assert conclusion["answer"] == "Use inception_v3/model.ckpt-300000."
    assert conclusion["checkpoint"] == "inception_v3/model.ckpt-300000"
    assert len(conclusion["figures"]) == 4
    nleep = content["evaluation"]["nleep"]
    assert nleep["n"] == 5 and nleep["kendall"] == pytest.approx(0.8)
    # Five checkpoints are too few for an interval.
    assert nleep["kendall_low"] is nleep["kendall_high"] is None
    assert nleep["regret_1"] == pytest.approx(0.891 - 0.873)
    assert nleep["regret_3"] == 0
    assert 0 < nleep["gap_fidelity"] <= 1
    assert [b["name"] for b in content["baselines"]] == [
        *("number of parameters", "feature dimension")
    ]
    assert content["warnings"] == [
        {
            "topics": ["leep"],
            "text": "no logits",
            "checkpoints": ["random_initialization"],
        }
    ]
    assert [row["checkpoint"] for row in content["rows"]] == [
        row.checkpoint for row in realistic.rows
    ]
    first, failed = content["rows"][0], content["rows"][-1]
    assert (first["nleep"], first["nleep_spread"], first["rank"]) == (-0.412, 0.01, 1)
    assert failed["rank"] is None and failed["failure"].startswith("two variables")


def test_to_json_has_null_for_unknown_numbers_and_no_text_for_unknown_texts():
    row = Row("a", scores={"nleep": math.nan}, accuracy=math.inf)
    [row] = _read(rank("t", ["nleep"], [row]))["rows"]
    assert row["nleep"] is row["accuracy"] is row["image_size"] is None
    assert row["architecture"] == row["nleep_saturated"] == ""


def test_to_json_of_degenerate_rankings(degenerate):
    content = _read(degenerate)
    assert len(content["rows"]) == len(degenerate.rows)
    assert (content["conclusion"]["checkpoint"] is None) == (
        not content["conclusion"]["answer"].startswith(("Use", "a is"))
    )


def _keys(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def test_docs_list_every_key_of_the_json(realistic):
    text = _DOCS.read_text()
    section = text[text.index("## ranking.json") :]
    section = section[: section.index("\n## ", 1)]
    documented = set(re.findall(r"`(\w[\w@.]*)`", section))
    measures = "|".join(realistic.measures)
    # Keys of a measure are documented with MEASURE in place of its name.
    keys = {
        re.sub(rf"^({measures})(?=_|$)", "MEASURE", k) for k in _keys(_read(realistic))
    }
    assert keys <= documented, sorted(keys - documented)

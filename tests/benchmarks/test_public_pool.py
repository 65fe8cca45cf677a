"""The tables of the public pool: their lines, and their evaluation once more."""

import collections
import math

import pytest
import scipy.stats

from rankckpt_jax import evaluation, measures
from rankckpt_jax.configs import public_pool as public_pool_config
from tests.benchmarks import public_pool


@pytest.fixture(scope="module")
def lines():
    return public_pool.read_table(public_pool.TABLE, public_pool.KEY)


@pytest.fixture(scope="module")
def judgment():
    return evaluation.judge(evaluation.read_table(public_pool.TABLE))


def test_lines_are_of_known_networks_and_chosen_by_held_out_images(lines):
    networks = {
        line["checkpoint"]: line
        for line in public_pool.read_lines(public_pool.NETWORKS)
    }
    rates = public_pool_config.get_config().finetune.learning_rate
    curves = public_pool.read_table(public_pool.CURVES, public_pool.CURVE_KEY)
    assert len(curves) == len(rates) * len(lines)
    for key, line in lines.items():
        assert line["family"] == networks[key[1]]["family"]
        assert line["source_accuracy"] == networks[key[1]]["source_accuracy"]
        correct = float(line["accuracy"]) * int(line["test_images"])
        assert correct == pytest.approx(round(correct), abs=1e-3)
        own = {rate: curves[(*key, f"{rate:g}")] for rate in rates}
        chosen = own[float(line["learning_rate"])]
        assert chosen["accuracy"] == line["accuracy"]
        held_out = [float(c["held_out_100"] or "nan") for c in own.values()]
        best = max(x for x in held_out if not math.isnan(x))
        assert float(chosen["held_out_100"]) == best


def test_every_measure_has_scores(lines):
    names = {name for line in lines.values() for name, cell in line.items() if cell}
    relative = {name for name in measures.names() if measures.get(name).combine}
    assert set(public_pool.score_names()) - relative <= names | {"static"}


def test_agreement_is_that_of_scipy(lines, judgment):
    """Kendall's tau-b of the mean accuracy over seeds, from the cells of the file."""
    runs = collections.defaultdict(list)
    for (task, checkpoint, _), line in lines.items():
        runs[task, checkpoint].append(float(line["accuracy"]))
    checked = 0
    for measure in judgment.measures:
        for task, agreement in measure.by_task.items():
            pairs = [
                (float(cell), sum(accuracies) / len(accuracies))
                for (t, checkpoint), accuracies in runs.items()
                if t == task
                and (cell := lines.get((t, checkpoint, "0"), {}).get(measure.name))
            ]
            if not pairs:
                continue
            assert len(pairs) == agreement.n
            expected = scipy.stats.kendalltau(*zip(*pairs, strict=True)).statistic
            found = agreement.values["kendall"]
            assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
            checked += 1
    assert checked >= 20


def test_relative_scores_follow_from_the_terms(tmp_path, monkeypatch):
    networks = tmp_path / "networks.csv"
    networks.write_text("checkpoint\na\nb\nc\n")
    monkeypatch.setattr(public_pool, "NETWORKS", networks)
    keys = [("pets", name, "0") for name in "abc"]
    terms = {
        key: {"etran_energy": str(e), "etran_lda": str(a)}
        for key, e, a in zip(keys[:2], (1.0, 3.0), (0.2, 0.4), strict=True)
    }
    terms[keys[2]] = {"ncti_seli": "1", "ncti_ncc": "1", "ncti_vc": "1"}
    part = {key: {"accuracy": "0.5"} for key in keys[:2]}
    public_pool.add_relative_scores(part, terms, "pets")
    assert all("etran" not in line for line in part.values())
    complete = part | {keys[2]: {"accuracy": "0.5"}}
    public_pool.add_relative_scores(complete, terms, "pets")
    assert [complete[key].get("etran") for key in keys] == ["0", "1", None]

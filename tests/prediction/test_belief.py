"""Conditioning on inputs and earlier results, against the dense Gaussian formula."""

import numpy as np
import pytest

from rankckpt_jax.prediction.belief import HISTORY, believe
from rankckpt_jax.prediction.candidates import Candidate, Record
from rankckpt_jax.prediction.relations import Model
from rankckpt_jax.prediction.standardize import standardize

# Of accuracy, mean over all tasks, and two measures.
COVARIANCE = np.array(
    [
        [1.0, 0.6, 0.7, 0.4],
        [0.6, 0.6, 0.4, 0.3],
        [0.7, 0.4, 1.0, 0.5],
        [0.4, 0.3, 0.5, 1.0],
    ]
)
FAMILIES = ("res", "res", "vit", "", "")
SCORES = np.array([[1.0, 0.2], [0.5, 0.9], [-0.4, 0.1], [0.1, -1.0], [-0.9, 0.3]])


def make_pool(families=FAMILIES, scores=SCORES):
    names = "abcde"
    return [
        Candidate(name, family, {}, dict(zip(("one", "two"), row, strict=True)))
        for name, family, row in zip(names, families, scores, strict=True)
    ]


def make_records():
    return [
        Record("t", ("a", "b", "c", "e"), ("res", "res", "vit", ""), np.arange(4.0)),
        Record("u", ("b", "d"), ("res", ""), np.array([3.0, 2.5])),
    ]


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_believe_matches_dense_gaussian_conditioning(correlation):
    model = Model(("one", "two"), COVARIANCE, (correlation, correlation))
    pool, records = make_pool(), make_records()
    belief = believe(model, pool, records)
    # Variables: accuracy, mean and measures of each checkpoint, then the observations.
    related = np.eye(5)
    related[0, 1] = related[1, 0] = correlation
    dense = np.kron(related, COVARIANCE)
    pick, level, task = [], [], []
    for t, record in enumerate(records):
        for name in record.checkpoints:
            row = np.zeros(20)
            row[4 * "abcde".index(name) + 1] = 1
            pick.append(row)
            level.append(np.eye(2)[t])
            task.append((t, "abcde".index(name)))
    pick, level = np.array(pick), np.array(level)
    own = np.array([[0.4 * related[i, j] * (t == s) for s, j in task] for t, i in task])
    inputs = [4 * i + j for i in range(5) for j in (2, 3)]
    design = np.vstack([np.eye(20)[inputs], pick])
    noise = np.zeros((len(design), len(design)))
    noise[10:, 10:] = own + 1e5 * level @ level.T
    x = np.column_stack([standardize(column)[0] for column in SCORES.T])
    observed = np.concatenate([x.ravel(), *(r.values for r in records)])
    square = design @ dense @ design.T + noise
    gain = np.linalg.solve(square, design @ dense).T
    center = np.eye(5) - 0.2
    at = [0, 4, 8, 12, 16]
    mean = center @ (gain @ observed)[at]
    covariance = (dense - gain @ design @ dense)[np.ix_(at, at)]
    # The flat level has the variance 100 there and 100,000 here.
    np.testing.assert_allclose(belief.mean, mean, atol=0.02)
    np.testing.assert_allclose(
        belief.covariance, center @ covariance @ center, atol=0.02
    )


def test_contributions_add_up_to_the_mean():
    model = Model(("one", "two"), COVARIANCE, (0.5, 0.2))
    belief = believe(model, make_pool(), make_records())
    assert set(belief.contributions) == {"one", "two", HISTORY}
    total = sum(belief.contributions.values())
    np.testing.assert_allclose(total, belief.mean, atol=1e-12)
    assert belief.mean.mean() == pytest.approx(0, abs=1e-12)


def test_believe_without_anything_known_is_the_prior():
    model = Model((), COVARIANCE[:2, :2], (0.5, 0.2))
    belief = believe(model, make_pool(("", "", "", "", "")))
    np.testing.assert_array_equal(belief.mean, np.zeros(5))
    np.testing.assert_allclose(belief.covariance, np.eye(5) - 0.2, atol=1e-12)
    # Relatives share 0.5 of the variance 0.6, and 0.2 of 0.4.
    belief = believe(model, make_pool())
    related = np.eye(5)
    related[0, 1] = related[1, 0] = 0.5 * 0.6 + 0.2 * 0.4
    center = np.eye(5) - 0.2
    np.testing.assert_allclose(belief.covariance, center @ related @ center, atol=1e-12)


def test_a_checkpoint_without_a_score_is_predicted_by_its_other_inputs():
    model = Model(("one", "two"), COVARIANCE, (0.0, 0.0))
    scores = SCORES.copy()
    scores[0, 0] = np.nan
    full = believe(model, make_pool(("",) * 5))
    missing = believe(model, make_pool(("",) * 5, scores))
    assert missing.contributions["one"].sum() == pytest.approx(0, abs=1e-12)
    assert missing.covariance[0, 0] > full.covariance[0, 0] + 0.1


def test_spreads_count_as_noise():
    model = Model(("one",), COVARIANCE[:3, :3], (0.0, 0.0))
    sharp = [Candidate(n, scores={"one": s}) for n, s in zip("ab", (1, 0), strict=True)]
    blurred = [Candidate(c.name, scores=c.scores, spreads={"one": 0.5}) for c in sharp]
    # The scores have the standard deviation 0.5, so the noise doubles the variance.
    ratio = believe(model, blurred).mean / believe(model, sharp).mean
    np.testing.assert_allclose(ratio, 0.5)


def test_more_earlier_tasks_leave_less_variance():
    model = Model((), COVARIANCE[:2, :2], (0.0, 0.0))
    pool = [Candidate(name) for name in "abcde"]
    variances = []
    for count in range(4):
        values = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
        records = [
            Record(f"t{t}", tuple("abcde"), ("",) * 5, values) for t in range(count)
        ]
        belief = believe(model, pool, records)
        variances.append(belief.covariance[0, 0])
        assert count == 0 or (np.diff(belief.mean) < 0).all()
    assert (np.diff(variances) < 0).all()


def test_a_relative_is_predicted_by_the_history_of_its_family():
    model = Model((), COVARIANCE[:2, :2], (0.6, 0.2))
    pool = [Candidate("new", "res"), Candidate("other", "vit"), Candidate("third")]
    record = Record("t", ("old", "bad"), ("res", "dense"), np.array([2.0, 0.0]))
    mean = believe(model, pool, [record]).mean
    assert mean[0] > mean[1] == mean[2]


def test_earlier_tasks_with_the_best_checkpoints_only_are_no_disadvantage():
    # On u, only good checkpoints were fine-tuned, and a was the worst of them.
    model = Model((), COVARIANCE[:2, :2], (0.0, 0.0))
    everyone = Record("t", tuple("abcde"), ("",) * 5, np.array([2.0, 2, 2, 0, 0]))
    best = Record("u", tuple("abc"), ("",) * 3, np.array([1.8, 2, 2.2]))
    mean = believe(model, [Candidate(n) for n in "abcde"], [everyone, best]).mean
    assert mean[2] > mean[1] > mean[0] > mean[3] == pytest.approx(mean[4])

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics

from rankckpt_jax.data import metrics, targets
from rankckpt_jax.errors import InputError

# One division more or less than scikit-learn, in float64.
EXACT = 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compute_matches_scikit_learn_for_classes(dtype):
    random = np.random.default_rng(0)
    labels = random.choice(5, 200, p=[0.6, 0.2, 0.1, 0.06, 0.04]).astype(np.int32)
    # Rounded, so that there are ties.
    logits = np.round(random.normal(size=(200, 5)) + np.eye(5)[labels], 1).astype(dtype)
    values = metrics.compute(logits, labels, "classes")
    answers = logits.argmax(1)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, answers),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, answers),
        "auroc": sklearn.metrics.roc_auc_score(
            labels, probabilities, multi_class="ovr", average="macro"
        ),
    }
    assert tuple(values) == metrics.names("classes")
    assert values == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compute_matches_scikit_learn_for_labels(dtype):
    random = np.random.default_rng(0)
    labels = random.uniform(size=(150, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
    logits = np.round(random.normal(size=(150, 6)) + labels, 1).astype(dtype)
    values = metrics.compute(logits, labels, "multi_label")
    expected = {
        "mean_average_precision": sklearn.metrics.average_precision_score(
            labels, logits, average="macro"
        ),
        "auroc": sklearn.metrics.roc_auc_score(labels, logits, average="macro"),
    }
    assert values == pytest.approx(expected, abs=EXACT)
    # Labels that do not vary are left out.
    constant = np.column_stack([labels, np.zeros(150, bool), np.ones(150, bool)])
    more = np.column_stack([logits, random.normal(size=(150, 2))])
    assert metrics.compute(more, constant, "multi_label") == values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compute_matches_scikit_learn_and_scipy_for_numbers(dtype):
    random = np.random.default_rng(0)
    labels = np.round(random.normal(size=120), 1)
    outputs = (labels + random.normal(size=120)).astype(dtype)
    values = metrics.compute(outputs, labels, "regression")
    expected = {
        "r2": sklearn.metrics.r2_score(labels, outputs),
        "spearman": scipy.stats.spearmanr(outputs, labels).statistic,
    }
    assert values == pytest.approx(expected, abs=EXACT)
    # Standardizing both changes nothing but rounding.
    scale = targets.scale(labels, "regression")
    other = metrics.compute(
        (outputs - scale[0]) / scale[1],
        targets.standardize(labels, "regression", scale).astype(np.float64),
        "regression",
    )
    # Numbers are rounded to float32.
    assert other == pytest.approx(values, abs=1e-5)


def test_compute_is_finite_for_equal_outputs_and_absent_classes():
    labels = np.array([0, 0, 2, 2], np.int32)
    values = metrics.compute(np.zeros((4, 5)), labels, "classes")
    assert values == {"accuracy": 0.5, "balanced_accuracy": 0.5, "auroc": 0.5}
    numbers = np.arange(4.0)
    values = metrics.compute(np.full(4, 1.5), numbers, "regression")
    assert values == {"r2": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("labels", "target", "defined"),
    [
        (np.zeros(3, np.int32), "classes", ("accuracy", "balanced_accuracy")),
        (np.zeros((3, 2), bool), "multi_label", ()),
        (np.zeros(3), "regression", ()),
        (np.zeros(0), "regression", ()),
    ],
)
def test_is_defined_refuses_labels_that_do_not_vary(labels, target, defined):
    assert tuple(n for n in metrics.names(target) if metrics.is_defined(n, labels)) == (
        defined
    )


def test_resolve_names_the_metrics_of_the_target():
    assert metrics.resolve("", "multi_label").name == "mean_average_precision"
    assert metrics.resolve("spearman", "regression").lowest == -1
    with pytest.raises(InputError, match="one of mean_average_precision, auroc"):
        metrics.resolve("accuracy", "multi_label")

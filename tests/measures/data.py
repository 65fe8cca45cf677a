"""Generated features and cached scores, shared by the tests of measures."""

import functools

import numpy as np

from rankckpt_jax import measures
from rankckpt_jax.measures import weight_spectra

_RANDOM = np.random.default_rng(0)
FACTS = {
    "name": "a",
    "num_parameters": 1000,
    "source_accuracy": 70.0,
    "early_stop_accuracy": 0.5,
    # Its tail has more than 10 eigenvalues and an alpha below 6.
    weight_spectra.FACT: weight_spectra.summarize(
        [("layer", _RANDOM.standard_t(2, (60, 40)))]
    ),
}
# Scores that do not depend on the images.
NAMES = [name for name in measures.names() if name != "static"]
CONSTANT = [
    name
    for name in NAMES
    if name == "early_stopping" or not measures.reads_images(name)
]
FROM_IMAGES = [name for name in NAMES if name not in CONSTANT]
NEED_LOGITS = [name for name in NAMES if measures.get(name).needs_logits]


def generate(separation=1.0, n=240, d=12, classes=4, seed=0):
    """Features [n, d] of Gaussian classes, labels [n], and logits [n, 6]."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = random.normal(size=(classes, d))
    features = separation * means[labels] + random.normal(size=(n, d))
    logits = random.normal(size=(n, 6))
    logits[:, :classes] += 1.5 * separation * np.eye(classes)[labels]
    return features.astype(np.float32), labels, logits.astype(np.float32)


def score(name, features, labels, logits, **options):
    return measures.compute(
        name, features, labels, logits, facts=FACTS, **options
    ).score


@functools.cache
def score_of(name, separation=1.0, seed=0):
    """The score of `generate(separation, seed=seed)`; computed once per session."""
    return score(name, *generate(separation, seed=seed))

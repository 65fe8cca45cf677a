"""NCE (Tran et al. 2019, arXiv 1908.08142): negative conditional entropy.

N images, C target classes, V source classes, p_i the probabilities of the source
classifier. With z_i = argmax p_i and the empirical joint distribution P(y, z),

    NCE = -H(Y | Z) = sum_{y, z} P(y, z) log P(y | z)          (their equation 4)

The option `soft` uses P(y, z) = 1/N sum_i p_i(z) 1[y_i = y] instead, as in LEEP.
Published code under the name NCE can differ from the paper in this respect. Several
labels per image: the mean over the labels of NCE for having the label or not.

Cost: O(N V). Range: [-log C, 0], in nats; [-log 2, 0] for labels. Higher is better.
"""

from __future__ import annotations

import math

import jax
import numpy as np
import scipy.sparse
import scipy.special

from rankckpt_jax.data.targets import MULTI_LABEL
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import (
    LABELS,
    UNIT_SCALE,
    Evidence,
    Inputs,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import blocks


@register(
    "nce",
    cost="N V",
    evidence=Evidence(0.43, 19),
    needs_logits=True,
    targets=LABELS,
    undefined="predicts classes or labels",
    bounds=(-math.inf, 0.0),
    tolerance=UNIT_SCALE,
    regimes=(regimes.CHANCE, regimes.SINGLE_IMAGES),
)
def nce(inputs: Inputs, soft: bool = False) -> Result:
    """Return NCE from the logits [N, V]; `soft` averages their probabilities."""
    labels, logits, num_classes = inputs.labels, inputs.logits, inputs.num_classes
    if inputs.target == MULTI_LABEL:
        score = _of_labels(logits, labels, soft)
    elif soft:
        score = _soft(logits, labels, num_classes)
    else:
        score = _hard(logits, labels)
    details = {"num_source_classes": logits.shape[1]}
    return Result(score, details)


def _soft(logits: jax.Array, labels: jax.Array, num_classes: int) -> float:
    one_hot = jax.nn.one_hot(labels, num_classes, axis=0, dtype=logits.dtype)
    joint = np.asarray(blocks.dot(one_hot, jax.nn.softmax(logits, axis=1)), float)
    ratios = joint / np.maximum(joint.sum(axis=0), np.finfo(float).tiny)
    kept = joint > 0
    return float(np.sum(joint[kept] * np.log(ratios[kept])) / len(labels))


def _hard(logits: jax.Array, labels: jax.Array) -> float:
    source, target = np.asarray(jax.jit(blocks.maximum)(logits)[1]), np.asarray(labels)
    # Only pairs that occur are stored, at most N for any V.
    key = source * (target.max() + 1) + target
    _, pair = np.unique(key, return_inverse=True)
    ratios = np.bincount(pair)[pair] / np.bincount(source)[source]
    return float(np.mean(np.log(ratios)))


def _of_labels(logits: jax.Array, labels: np.ndarray, soft: bool) -> float:
    if soft:
        assignments = np.asarray(jax.nn.softmax(logits, axis=1), float)
    else:
        source = np.asarray(jax.jit(blocks.maximum)(logits)[1])
        seen, place = np.unique(source, return_inverse=True)
        one_hot = np.ones(len(place)), (np.arange(len(place)), place)
        assignments = scipy.sparse.csr_array(one_hot, (len(place), len(seen)))
    has = assignments.T @ labels.astype(float)
    total = assignments.sum(axis=0)[:, None]
    lacks = np.maximum(total - has, 0)
    parts = (
        scipy.special.xlogy(a, a / np.where(a > 0, total, 1)) for a in (has, lacks)
    )
    return float(sum(np.sum(part) for part in parts) / labels.size)

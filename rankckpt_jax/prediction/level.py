"""The level and the scale of a task: from standardized values to accuracies.

    logit(a_i) = mu + sigma y_i

The level mu is that of checkpoints that were fine-tuned on the task, or follows from
held-out accuracies of probes. The scale sigma follows recorded tasks, and the
fine-tuned checkpoints where there are several.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from rankckpt_jax.prediction import standardize as st
from rankckpt_jax.prediction.belief import Belief
from rankckpt_jax.prediction.candidates import Candidate
from rankckpt_jax.prediction.relations import PROBES, Relations, level_above_probe

_NUM_SCALES = 15
"""Number of values of sigma over which the distribution is averaged."""

_TRUST = 0.3
"""Power of the likelihood in the weights of sigma.

The checkpoints that are fine-tuned first are the most promising ones, and good
accuracies are closer together than normal ones. So they tell less of sigma than the
likelihood has it; see docs/predicting.md.
"""

_RISE = 0.5
_RISE_DEVIATION = 0.5
_OWN_RISE_DEVIATION = 0.25
"""Rise of the logit of the accuracy from an early step to the end of a training: its
mean and standard deviation over tasks, and that over the checkpoints of a task.

On two tasks of the public pool, the means from step 30 to 100 are 0.50 and 0.52, and
the deviation over 42 fine-tunings each is 0.2 beyond the noise of the images. Other
recipes rise differently, so the deviation over tasks is larger than these show.
"""

_FLAT = 100.0
"""Variance of a level of which nothing is known, in squared logits."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """A normal distribution.

    Attributes:
      mean: Its mean.
      deviation: Its standard deviation.
    """

    mean: float
    deviation: float


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """A mixture of K normal distributions of the accuracies of n checkpoints.

    Attributes:
      weights: float64 [K], with sum 1.
      scales: float64 [K], the values of sigma.
      means: float64 [K, n + 1], of the standardized accuracies and of mu.
      prior: float64 [n + 1, n + 1], covariance before the m observed accuracies.
      observed: int [m], their checkpoints.
      gains: float64 [K, n + 1, m], change of the means by a change of their logits.
      noise: float64 [m], variances of their logits.
    """

    weights: np.ndarray
    scales: np.ndarray
    means: np.ndarray
    prior: np.ndarray
    observed: np.ndarray
    gains: np.ndarray
    noise: np.ndarray

    @property
    def standardized(self) -> np.ndarray:
        """The mean of the standardized accuracies, float64 [n]."""
        return self.weights @ self.means[:, :-1]

    @property
    def logits(self) -> np.ndarray:
        """The mean of the logits of the accuracies, float64 [n]."""
        of_scales = self.means[:, -1:] + self.scales[:, None] * self.means[:, :-1]
        return self.weights @ of_scales

    def draw(self, num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return about `num_samples` draws, float64 [S, n].

        Each value of sigma has draws in proportion to its weight. With H the
        observation and G the gain, a deviation d from the prior and noise e become
        d - G (H d + e), a deviation from the posterior (Matheron's rule). So one
        decomposition serves all values of sigma.

        Returns:
          The standardized accuracies, and the logits of the accuracies.
        """
        random = np.random.default_rng(seed)
        eigenvalues, vectors = np.linalg.eigh(self.prior)
        root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
        standardized, logits = [], []
        counts = np.rint(self.weights * num_samples).astype(int)
        for k in np.flatnonzero(counts):
            draws = random.standard_normal((counts[k], len(root))) @ root.T
            errors = random.standard_normal((counts[k], len(self.noise)))
            values = self.scales[k] * draws[:, self.observed] + draws[:, -1:]
            values += errors * np.sqrt(self.noise)
            draws += self.means[k] - values @ self.gains[k].T
            standardized.append(draws[:, :-1])
            logits.append(draws[:, -1:] + self.scales[k] * draws[:, :-1])
        return np.concatenate(standardized), np.concatenate(logits)


def predict_level(relations: Relations, pool: Sequence[Candidate]) -> Normal | None:
    """Return the mean accuracy of a pool as a logit, from the best probe it has.

    The mean over the pool of the accuracies minus that of a probe is normal over
    recorded tasks. A probe counts if three tasks have it.
    """
    result = None
    for probe in PROBES:
        recorded = relations.levels.get(probe)
        values = np.array([c.scores.get(probe, np.nan) for c in pool])
        minus_mean = level_above_probe(np.zeros(len(pool)), values)
        if recorded is None or recorded.weight < 3 or minus_mean is None:
            continue
        center = recorded.total / recorded.weight
        mean, deviation = recorded.predictive(center, 0.5, 2.0)
        if result is None or deviation < result.deviation:
            result = Normal(mean - minus_mean, deviation)
    return result


def predict_scale(relations: Relations) -> Normal:
    """Return the distribution of log(sigma) over recorded tasks."""
    return Normal(*relations.scale.predictive(math.log(0.5), 0.5, 2.0))


def observe(accuracy: float, num_images: int | None) -> Normal:
    """Return the distribution of the logit of a measured accuracy.

    With M images, the logit of an accuracy a has the variance 1 / (M a (1 - a)).

    Args:
      accuracy: In [0, 1].
      num_images: Number of images; the accuracy is exact if None.
    """
    logit = float(st.logit(np.array([accuracy]), num_images)[0])
    # The logistic function's derivative is a (1 - a).
    variance = 2 + math.exp(logit) + math.exp(-logit)
    return Normal(logit, math.sqrt(variance / num_images) if num_images else 1e-4)


def foresee(
    measured: Mapping[str, Normal], early: Mapping[str, Normal]
) -> dict[str, Normal]:
    """Return the logits at the end of trainings that were stopped early.

    The logit rises by the rise of the task, plus a deviation of the checkpoint. The
    rise of the task follows from the checkpoints with both values.

    Args:
      measured: Logits of the accuracies of complete trainings, by checkpoint.
      early: Logits of accuracies after the first part of a training, by checkpoint.

    Returns:
      The final logits of the checkpoints that are only in `early`.
    """
    own = _OWN_RISE_DEVIATION**2
    precision = 1 / _RISE_DEVIATION**2
    total = precision * _RISE
    for name in early.keys() & measured.keys():
        first, last = early[name], measured[name]
        weight = 1 / (own + first.deviation**2 + last.deviation**2)
        precision += weight
        total += weight * (last.mean - first.mean)
    return {
        name: Normal(
            first.mean + total / precision,
            math.sqrt(first.deviation**2 + own + 1 / precision),
        )
        for name, first in early.items()
        if name not in measured
    }


def update(
    belief: Belief,
    scale: Normal,
    level: Normal | None,
    observed: Mapping[int, Normal],
) -> Posterior:
    """Condition a belief on accuracies of the task.

    For each of 15 values of sigma, (y, mu) is normal and is conditioned in closed form
    on logit(a_i) = mu + sigma y_i. The values are weighted by the normal prior of
    log(sigma) and by the likelihood of the accuracies to the power 0.3.

    Args:
      belief: The distribution of y for n checkpoints.
      scale: Distribution of log(sigma).
      level: Distribution of mu; None if nothing is known.
      observed: Logits of accuracies by index of the checkpoint; may be empty.
    """
    steps = np.linspace(-2.5, 2.5, _NUM_SCALES)
    log_weights = -0.5 * steps**2
    scales = np.exp(scale.mean + scale.deviation * steps)
    n = len(belief.mean)
    prior_mean = np.append(belief.mean, level.mean if level else 0.0)
    prior = np.zeros((n + 1, n + 1))
    prior[:n, :n] = belief.covariance
    prior[n, n] = level.deviation**2 if level else _FLAT
    means = np.repeat(prior_mean[None], _NUM_SCALES, axis=0)
    at = np.array(sorted(observed), int)
    logits = np.array([observed[i].mean for i in at])
    noise = np.array([observed[i].deviation ** 2 for i in at])
    gains = np.zeros((_NUM_SCALES, n + 1, len(at)))
    for k, sigma in enumerate(scales if len(at) else ()):
        design = np.zeros((len(at), n + 1))
        design[np.arange(len(at)), at] = sigma
        design[:, n] = 1.0
        cross = prior @ design.T
        square = design @ cross + np.diag(noise)
        residual = logits - design @ prior_mean
        gains[k] = np.linalg.solve(square, cross.T).T
        means[k] += gains[k] @ residual
        fit = residual @ np.linalg.solve(square, residual)
        fit += np.linalg.slogdet(square)[1]
        log_weights[k] -= _TRUST * 0.5 * fit
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    return Posterior(weights, scales, means, prior, at, gains, noise)

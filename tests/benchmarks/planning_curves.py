"""Searches for the best checkpoint that stop trainings early, on recorded curves.

A trial is a checkpoint with a learning rate. Its curve is the accuracy on held-out
images after 10, 20, ... 100 steps, docs/data/public_pool_curves.csv. Times are those of
complete fine-tunings, with all learning rates, of an average checkpoint.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from rankckpt_jax import prediction
from rankckpt_jax.evaluation.table import TaskTable
from rankckpt_jax.finetune.budget import CHOOSE_AFTER
from tests.benchmarks import public_pool

POINTS = 10
ROUNDS = (1, 2, 4, 10)
"""Points of a curve at the ends of the rounds of successive halving."""

REPEATS = 20
"""Random choices of the checkpoints that are halved."""

_LENGTH = 4.0
"""Points over which a curve is smooth."""

_RELATED, _NOISE = 0.5, 0.02
"""Variance of a curve's own shape, as a share of that between trials; deviation of a
point, that of 50 held-out images with smoothing."""


HELD_OUT = {
    "caltech101": 306,
    "chest_xray": 14,
    "cifar10": 100,
    "flowers17": 51,
    "patch_camelyon": 200,
    "scenes8": 48,
    "textures10": 50,
}
"""Number of held-out images: a tenth of the training images, rounded up."""

Trial = tuple[str, str]
"""A checkpoint and a learning rate."""


def read(task: TaskTable) -> dict[Trial, np.ndarray]:
    """Return the curves of seed 0, [POINTS] each; empty without all checkpoints."""
    found = {}
    lines = public_pool.read_table(public_pool.CURVES, public_pool.CURVE_KEY)
    for (name, checkpoint, seed, rate), line in lines.items():
        if (name, seed) == (task.name, "0"):
            cells = [line[f"held_out_{10 * i:03}"] for i in range(1, POINTS + 1)]
            # A training that diverged has no later points.
            found[checkpoint, rate] = np.array([float(c or 0) for c in cells])
    known = {checkpoint for checkpoint, _ in found}
    return found if known == set(task.checkpoints) else {}


@dataclasses.dataclass(frozen=True)
class Parts:
    """A fine-tuning whose learning rate is chosen early.

    Attributes:
      early: Accuracy of the best rate on held-out images at the choice.
      final: Its accuracy on test images after the last step.
      first: Time of all rates up to the choice, as a share of a complete sweep.
      last: Time of the best rate from there on.
    """

    early: prediction.Early
    final: float
    first: float
    last: float


def read_parts(task: TaskTable) -> dict[str, Parts]:
    """Return the parts of each fine-tuning; empty without all checkpoints."""
    curves = read(task)
    lines = public_pool.read_table(public_pool.CURVES, public_pool.CURVE_KEY)
    point = round(CHOOSE_AFTER * POINTS)
    found = {}
    for name in dict.fromkeys(checkpoint for checkpoint, _ in curves):
        own = {rate: curve for (n, rate), curve in curves.items() if n == name}
        rate = max(own, key=lambda rate: own[rate][point - 1])
        # A training that diverged has no accuracy.
        final = float(lines[task.name, name, "0", rate]["accuracy"] or 0)
        early = prediction.Early(own[rate][point - 1], HELD_OUT[task.name])
        first = CHOOSE_AFTER
        found[name] = Parts(early, final, first, (1 - first) / len(own))
    return found


@dataclasses.dataclass(frozen=True)
class Search:
    """Searches over recorded curves.

    Attributes:
      curves: By trial, its curve.
      cost: By checkpoint, the time of a complete fine-tuning.
    """

    curves: Mapping[Trial, np.ndarray]
    cost: Mapping[str, float]

    def point_cost(self, trial: Trial) -> float:
        """Return the time of ten steps of a trial."""
        rates = sum(checkpoint == trial[0] for checkpoint, _ in self.curves)
        return self.cost[trial[0]] / (rates * POINTS)

    def halve(self, budget: float, order: Sequence[str] | None) -> list[str]:
        """Return the checkpoints that successive halving ends with.

        As many checkpoints start as the budget allows.

        Args:
          budget: Time.
          order: The checkpoints to start first; None for REPEATS random orders.
        """
        if order is not None:
            return [self._halve(budget, order)]
        random = np.random.default_rng(0)
        names = sorted(self.cost)
        return [
            self._halve(budget, [names[i] for i in random.permutation(len(names))])
            for _ in range(REPEATS)
        ]

    def _halve(self, budget: float, order: Sequence[str]) -> str:
        best = order[0]
        for count in range(1, len(order) + 1):
            left, spent = self._rounds(order[:count])
            if count > 1 and spent > budget:
                break
            best = left
        return best

    def _rounds(self, names: Sequence[str]) -> tuple[str, float]:
        """Return the checkpoint that is left, and the time of all rounds."""
        trials = [trial for trial in self.curves if trial[0] in names]
        spent, before = 0.0, 0
        for end in ROUNDS:
            spent += sum((end - before) * self.point_cost(t) for t in trials)
            before = end
            trials.sort(key=lambda t: -self.curves[t][end - 1])
            if end < ROUNDS[-1]:
                trials = trials[: -(-len(trials) // 2)]
        return trials[0][0], spent

    def optimize(self, budget: float) -> list[str]:
        """Return the checkpoint that Bayesian optimization of the curves ends with."""
        trials = list(self.curves)
        values = np.array([self.curves[t] for t in trials])
        cost = np.array([self.point_cost(t) for t in trials])
        steps = np.arange(POINTS)
        smooth = np.exp(-(((steps[:, None] - steps[None]) / _LENGTH) ** 2) / 2)
        # The mean curve is known, and so is the variance between trials at its end.
        mean, variance = values.mean(axis=0), values[:, -1].var()
        own = variance * ((1 - _RELATED) + _RELATED * smooth)
        reached = np.zeros(len(trials), int)
        left = budget
        while True:
            center = np.full(len(trials), mean[-1])
            deviation = np.full(len(trials), np.sqrt(own[-1, -1]))
            for i in np.flatnonzero(reached):
                seen = slice(0, reached[i])
                square = own[seen, seen] + _NOISE**2 * np.eye(reached[i])
                gain = np.linalg.solve(square, own[seen, -1])
                center[i] += gain @ (values[i, seen] - mean[seen])
                deviation[i] = np.sqrt(max(own[-1, -1] - gain @ own[seen, -1], 1e-12))
            started = reached > 0
            best = center[started].max() if started.any() else mean[-1]
            z = (center - best) / deviation
            normal = scipy.stats.norm
            improvement = deviation * (z * normal.cdf(z) + normal.pdf(z))
            open_ = (reached < POINTS) & (cost <= left)
            if not open_.any():
                break
            chosen = int(np.argmax(np.where(open_, improvement / cost, -1)))
            reached[chosen] += 1
            left -= cost[chosen]
        known = np.where(reached > 0, center, -np.inf)
        return [trials[int(np.argmax(known))][0]]

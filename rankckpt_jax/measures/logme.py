"""LogME (You et al. 2021, arXiv 2102.11005): evidence of Bayesian linear regression.

N images, D dimensions, F [N, D] features (not centered), S = F'F, t_c [N] the 0/1
targets of class c; or of label c; or one number per image. Weights have the prior N(0,
1/a), and b is the precision of the noise. With r = a/b, w = (S + r I)^-1 F't_c and e2 =
|t_c - F w|^2, iterate

    gamma = tr(S (S + r I)^-1)                                  (their equation 3)
    a    <- gamma / |w|^2,   b <- (N - gamma) / e2

until r changes by less than 1e-6 of itself. LogME is the mean over the t_c of

    1/N [D/2 log a + N/2 log b - 1/2 log det(a I + b S) - b/2 e2 - a/2 |w|^2
         - N/2 log 2 pi],                                       (their equation 2)

the maximum of the evidence. It does not depend on the scale of the features.

Published code (the fixed point of You et al. 2022) starts at a = b = 1, stops when r
changes by less than 0.1 % or after 11 steps, and adds 1e-5 to both denominators. On
features of ordinary scale its figures differ by less than 2e-6. The 1e-5 exceeds |w|^2
if features are larger than about 100, and the evidence is then far from its maximum.
The option `published` reproduces these steps.

Published code takes several labels per image as columns t_c too, and a number as a
single column. The number is standardized here to mean 0 and standard deviation 1, so
that the ranking does not depend on its unit: the model has no intercept, and an offset
would have to be predicted from the features.

A common offset of all features is an eigenvalue of S far above the others, which would
lose their digits. Both S and F't_c are therefore expressed by the scatter T = V diag(l)
V' of the centered features, their products P_c with t_c (`statistics`) and the mean m.
With u = sqrt(N) V'm,
S + r I is diag(l + r) + u u', whose inverse and determinant follow from the rank-one
update (Sherman and Morrison).

Cost: 2 N D^2 FLOP, shared, and 4 D^3 / 3 + 4 D^2 C. Range: unbounded. Higher is better.
For F of rank k < D, published code omits the D - k zero eigenvalues from the
determinant but keeps D/2 log a; this implementation includes both in full.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Evidence, Inputs, Result, register
from rankckpt_jax.measures.statistics import remappings, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics


class _Stop(NamedTuple):
    """Maximum number of steps, tolerance of r, and the constant in denominators."""

    steps: int
    tolerance: float
    floor: float


_CONVERGED = _Stop(300, 1e-6, 0.0)
_PUBLISHED = _Stop(11, 1e-3, 1e-5)

_LARGEST_RATIO = 1e10
"""Bound of r and 1/r relative to S. For noise the maximum lies at an infinite r."""


@register(
    "logme",
    cost="N D^2 + D^3",
    evidence=Evidence(0.43, 28),
    targets=tuple(TARGETS),
    check=remappings.check("logme"),
    regimes=(regimes.SINGLE_IMAGES,),
)
def logme(inputs: Inputs, published: bool = False, remap: str = "none") -> Result:
    """Return LogME of features [N, D] and labels of any kind.

    Args:
      inputs: Features [N, D] and labels.
      published: Whether to stop where published code stops.
      remap: "ped" or "sa" moves the classes first; see `remappings`.

    Returns:
      The score. Its details hold the number of steps and of the columns t_c that did
      not converge.
    """
    stop = _PUBLISHED if published else _CONVERGED
    regression = _Regression(remappings.apply(inputs.statistics, remap))
    count = inputs.statistics.num_columns
    alpha, beta, m2, e2 = (np.ones(count) for _ in range(4))
    ratio = np.ones(count) if published else regression.first_ratio()
    active, step = np.arange(count), 0
    while step < stop.steps and len(active):
        gamma, m2[active], e2[active] = regression.moments(active, ratio[active])
        with np.errstate(divide="ignore", invalid="ignore"):
            alpha[active] = gamma / (m2[active] + stop.floor)
            beta[active] = (regression.num_images - gamma) / (e2[active] + stop.floor)
            after = alpha[active] / beta[active]
        if not published:
            after = regression.clip(after)
        changed = np.abs(after - ratio[active]) > stop.tolerance * ratio[active]
        ratio[active] = after
        active, step = active[changed], step + 1
    if not published:
        # For a given r, this b maximizes the evidence.
        _, m2, e2 = regression.moments(np.arange(count), ratio)
        beta = regression.num_images / (e2 + ratio * m2)
        alpha = ratio * beta
    evidence = regression.num_images / 2 * (np.log(beta) - np.log(2 * np.pi))
    evidence -= regression.half_log_det(ratio) + beta / 2 * e2 + alpha / 2 * m2
    details = {"num_steps": step, "num_unconverged": len(active)}
    return Result(float(np.mean(evidence) / regression.num_images), details)


class _Regression:
    """Regressions of the columns t [N, T] of the target on the features, for any r.

    Attributes:
      num_images: N.
    """

    def __init__(self, statistics: Statistics):
        """Rotate the mean and the products P to the eigenvectors of the scatter."""
        self.num_images, self._sums = statistics.num_images, statistics.sums
        columns = np.concatenate([statistics.products, statistics.mean[None]]).T
        values = statistics.decomposition.values.copy()
        projections = statistics.decomposition.project(columns)
        # Eigenvalues below rounding error are 0, and products have no part there.
        lost = len(values) - symmetric.rank(values, max(statistics.features.shape))
        values[:lost] = 0
        projections[:lost, :-1] = 0
        self._l = values[:, None]
        self._p = projections[:, :-1]
        self._u = np.sqrt(self.num_images) * projections[:, -1:]
        root = np.sqrt(np.where(values > 0, values, 1))[:, None]
        # Centered targets along the left singular vectors, and what remains of them.
        self._targets = self._p / root
        explained = np.sum(self._targets**2, axis=0)
        self._rest = np.maximum(statistics.squares - explained, 0)
        offset = float(np.sum(self._u**2))
        scale = float(values[-1]) or offset or 1.0
        self._limits = scale / _LARGEST_RATIO, max(scale, offset) * _LARGEST_RATIO
        self._first = scale / self.num_images

    def first_ratio(self) -> np.ndarray:
        """Return an r [T] that is proportional to the squared scale of the features."""
        return np.full_like(self._sums, self._first)

    def clip(self, ratio: np.ndarray) -> np.ndarray:
        """Limit r; NaN, for features that are all 0, becomes the upper limit."""
        low, high = self._limits
        return np.clip(np.nan_to_num(ratio, nan=high, posinf=high), low, high)

    def half_log_det(self, ratio: np.ndarray) -> np.ndarray:
        """Return 1/2 log det(I + S / r) for r [T]: [T]."""
        inside = np.sum(np.log1p(self._l / ratio), axis=0)
        along = np.sum(self._u**2 / (self._l + ratio), axis=0)
        return (inside + np.log1p(along)) / 2

    def moments(
        self, chosen: np.ndarray, ratio: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return gamma, |w|^2 and e2 of some columns, for r of each: [K] each."""
        l, u, p = self._l, self._u, self._p[:, chosen]  # noqa: E741
        sums, inverse = self._sums[chosen], 1 / (l + ratio)
        scaled = u * inverse
        along = 1 + np.sum(u * scaled, axis=0)
        gamma = np.sum(l * inverse, axis=0)
        gamma += ratio * np.sum(scaled**2, axis=0) / along
        # What the offset m'w of the predictions lacks, as a factor of u.
        lack = (sums / np.sqrt(self.num_images) - np.sum(scaled * p, axis=0)) / along
        w = (p + u * lack) * inverse
        error = self._targets[:, chosen] - np.sqrt(l) * w
        e2 = np.sum(error**2, axis=0, where=l > 0) + self._rest[chosen]
        return gamma, np.sum(w**2, axis=0), e2 + lack**2

"""ETran (Gholami et al. 2023, arXiv 2308.02027): energy and LDA, relative to a pool.

    ETran = 0.15 E' + 0.85 L'

where E is the energy, L the LDA posterior (see those files), and ' rescales linearly to
[0, 1] over the checkpoints of a pool. The score of a single checkpoint is 0.15 E +
0.85 L and cannot be compared with scores from another pool.

Cost: N V + 2 N D C FLOP. Range: [0, 1] in a pool. Higher is better. The two terms
follow the authors' code. The published sum has a third term, for regression, which
applies to object detection only and is omitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankckpt_jax.measures import energy, lda, regimes
from rankckpt_jax.measures.registry import UNIT_SCALE, Inputs, Result, register
from rankckpt_jax.measures.statistics import scaling

_WEIGHTS = {"energy": 0.15, "lda": 0.85}


def combine(pool: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the scores of a pool's checkpoints from the terms of each."""
    scaled = {name: scaling.min_max([t[name] for t in pool]) for name in _WEIGHTS}
    return [
        sum(weight * scaled[name][i] for name, weight in _WEIGHTS.items())
        for i in range(len(pool))
    ]


@register(
    "etran",
    cost="N D C",
    needs_logits=True,
    combine=combine,
    tolerance=UNIT_SCALE,
    regimes=(
        regimes.FEW_IMAGES,
        regimes.SINGLE_IMAGES,
        regimes.EQUAL_CLASSES,
    ),
)
def etran(inputs: Inputs) -> Result:
    """Return ETran's two terms from features, labels and logits [N, V]."""
    statistics = inputs.statistics
    energies = energy.free_energies(inputs)
    terms = {"energy": float(energies.mean()), "lda": lda.posterior(statistics)}
    score = sum(weight * terms[name] for name, weight in _WEIGHTS.items())
    return Result(score, {"terms": terms}, lda.warn(statistics))

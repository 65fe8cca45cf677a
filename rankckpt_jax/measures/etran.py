"""ETran (Gholami et al. 2023, arXiv 2308.02027): energy and LDA, relative to a pool.

    ETran = 0.15 E' + 0.85 L'

E' the energy and L' the LDA posterior (see those files), each brought to [0, 1] over
the checkpoints of a pool. Alone a checkpoint has only its two terms; its score is then
their sum with the same weights, which means nothing beside another pool's.

Cost: theirs, N V + 2 N D C. Range: [0, 1] in a pool. Higher is better. The two
terms are those of the authors' code. The published sum has also a regression term,
which is for detection and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from rankckpt_jax.measures import lda
from rankckpt_jax.measures.registry import Result, register, relative
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_WEIGHTS = {"energy": 0.15, "lda": 0.85}


def combine(pool: Sequence[Mapping[str, float]]) -> list[float]:
    """Scores of checkpoints from the terms of each."""
    shares = {name: relative([terms[name] for terms in pool]) for name in _WEIGHTS}
    return [
        sum(weight * shares[name][i] for name, weight in _WEIGHTS.items())
        for i in range(len(pool))
    ]


@register("etran", needs_logits=True, combine=combine)
def etran(
    features: jax.Array,
    labels: jax.Array,
    logits: jax.Array,
    num_classes: int,
    statistics: Statistics,
) -> Result:
    """ETran's two terms for features [N, D], labels [N] and logits [N, V]."""
    del features, num_classes
    terms = {
        "energy": statistics.average(np.asarray(jax.nn.logsumexp(logits, axis=1))),
        "lda": lda.posterior(statistics, np.asarray(labels)),
    }
    score = sum(weight * terms[name] for name, weight in _WEIGHTS.items())
    return Result(score, {"terms": terms})

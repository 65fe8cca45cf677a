"""Consensus: one order of the checkpoints from those of several measures.

Name the measures before looking at results. Related measures count as one voice: take
one of LogME, H-score, LDA and SFDA.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rankckpt_jax.errors import InputError

_MAX_KEMENY = 30
"""The integer program of more checkpoints takes too long."""


def mean_rank(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean rank of each checkpoint over several measures.

    It is Borda's count (1781) up to scale, and the order with the highest mean
    Spearman correlation with the measures. Ties have their mean rank.

    Example:
      >>> mean_rank({"nleep": {"x": -1, "y": -3}, "logme": {"x": 0.4, "y": 0.5}})
      {'x': 1.5, 'y': 1.5}

    Args:
      scores: By measure, the score of each checkpoint.

    Returns:
      For each checkpoint that all measures score, its mean rank; 1 is the lowest score,
      so higher is better.

    Raises:
      InputError: There is no measure.
    """
    names, ranks = _ranks(scores)
    # Rounding keeps equal means equal.
    means = np.round(ranks.mean(0), 12)
    return {name: float(mean) for name, mean in zip(names, means, strict=True)}


def kemeny(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the order with the least total Kendall distance to several measures.

    The distance of an order to a measure is the number of pairs that they order
    differently (Kemeny 1959; Dwork et al., "Rank Aggregation Methods for the Web",
    2001). The exact minimum is found by integer programming: x_ij is 1 if i is above
    j, with x_ij + x_ji = 1 and x_ij + x_jk + x_ki <= 2. Several orders can be minimal;
    one of them is returned.

    Args:
      scores: By measure, the score of each checkpoint, of at most 30 checkpoints.

    Returns:
      For each checkpoint that all measures score, its rank; 1 is the worst, so higher
      is better.

    Raises:
      InputError: There is no measure, or there are too many checkpoints.
    """
    # Imported here for start-up time.
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    names, ranks = _ranks(scores)
    n = len(names)
    if n > _MAX_KEMENY:
        raise InputError(
            "Too many checkpoints for the Kemeny order",
            expected=f"at most {_MAX_KEMENY}",
            found=str(n),
            fix="use `mean_rank`",
        )
    if n < 2:
        return dict.fromkeys(names, 1.0)
    i, j = np.triu_indices(n, 1)
    index = np.zeros((n, n), int)
    index[i, j] = np.arange(len(i))
    # The variables are x_ij with i < j, and x_ji = 1 - x_ij. If i is above j, each
    # measure that ranks j above i disagrees, and conversely.
    cost = np.sign(ranks[:, j] - ranks[:, i]).sum(0)
    triples = [
        (index[a, b], index[b, c], index[a, c])
        for a in range(n)
        for b in range(a + 1, n)
        for c in range(b + 1, n)
    ]
    constraints = []
    if triples:
        # x_ab + x_bc + x_ca <= 2 and x_ba + x_cb + x_ac <= 2 in these variables.
        columns = np.array(triples)
        rows = np.repeat(np.arange(len(triples)), 3)
        values = np.tile([1.0, 1.0, -1.0], len(triples))
        shape = (len(triples), len(i))
        cycles = sparse.csr_array((values, (rows, columns.ravel())), shape=shape)
        constraints = [LinearConstraint(cycles, 0, 1)]
    solution = milp(
        cost,
        integrality=np.ones_like(cost),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    above = np.round(solution.x)
    wins = np.bincount(i, above, n) + np.bincount(j, 1 - above, n)
    return {name: float(1 + w) for name, w in zip(names, wins, strict=True)}


def _ranks(
    scores: Mapping[str, Mapping[str, float]],
) -> tuple[list[str], np.ndarray]:
    """Return the checkpoints that all measures score, and ranks [measures, n]."""
    # Imported here for start-up time.
    from scipy.stats import rankdata

    if not scores:
        raise InputError("A consensus needs measures", expected="one", found="none")
    first, *others = scores.values()
    names = [name for name in first if all(name in other for other in others)]
    table = [[by_name[name] for name in names] for by_name in scores.values()]
    return names, rankdata(np.array(table, np.float64), axis=1)

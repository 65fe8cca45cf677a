"""Measures: how well a checkpoint will transfer, from features alone.

    result = measures.compute("nleep", features, labels)
    result.score, result.details

To add one, write `measures/my_measure.py` with a function under
`@register("my_measure")` and import it here. `gmm`, `kmeans` and `pca` may be used on
their own.
"""

from rankckpt_jax.measures import gmm, h_score, kmeans, leep, nleep, pca
from rankckpt_jax.measures.registry import (
    Result,
    compute,
    names,
    register,
    requires_logits,
)

__all__ = [
    "Result",
    "compute",
    "gmm",
    "h_score",
    "kmeans",
    "leep",
    "names",
    "nleep",
    "pca",
    "register",
    "requires_logits",
]

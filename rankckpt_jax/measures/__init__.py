"""Measures: how well a checkpoint will transfer, from features alone.

    result = measures.compute("nleep", features, labels)
    result.score, result.details

To add one, write `measures/my_measure.py` with a function under
`@register("my_measure")` and import it here. `gmm`, `kmeans` and `pca` may be used on
their own.
"""

from rankckpt_jax.measures import (
    baselines,
    energy,
    etran,
    gbc,
    h_score,
    knn,
    lda,
    leep,
    linear,
    logme,
    mutual_information,
    nce,
    ncti,
    nleep,
    pactran,
    parc,
    regularized_h_score,
    rsa,
    sfda,
    transrate,
)
from rankckpt_jax.measures.mixture import gmm, kmeans
from rankckpt_jax.measures.registry import (
    Inputs,
    Result,
    check_options,
    combine,
    compute,
    compute_all,
    compute_prepared,
    is_relative,
    names,
    prepare,
    register,
    requires_logits,
)
from rankckpt_jax.measures.statistics import pca

__all__ = [
    "Inputs",
    "Result",
    "baselines",
    "check_options",
    "combine",
    "compute",
    "compute_all",
    "compute_prepared",
    "energy",
    "etran",
    "gbc",
    "gmm",
    "h_score",
    "is_relative",
    "kmeans",
    "knn",
    "lda",
    "leep",
    "linear",
    "logme",
    "mutual_information",
    "names",
    "nce",
    "ncti",
    "nleep",
    "pactran",
    "parc",
    "pca",
    "prepare",
    "register",
    "regularized_h_score",
    "requires_logits",
    "rsa",
    "sfda",
    "transrate",
]

"""Measures predict from features alone how well a checkpoint will transfer.

    result = measures.compute("nleep", features, labels)
    result.score, result.details

To add a measure, write one file in this directory; see `registry`. The submodules
`gmm`, `kmeans` and `pca` can be used on their own.
"""

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.measures.computation import (
    check_num_bootstrap,
    compute,
    compute_all,
    compute_prepared,
    failure,
)
from rankckpt_jax.measures.inputs import Inputs, prepare
from rankckpt_jax.measures.mixture import gmm, kmeans
from rankckpt_jax.measures.registry import (
    DEFAULTS,
    Evidence,
    Measure,
    Regime,
    Result,
    Tolerance,
    get,
    import_all,
    names,
    reads_images,
    register,
    tolerance,
)
from rankckpt_jax.measures.statistics import pca

import_all(__path__, __name__)

__all__ = [
    "DEFAULTS",
    "TARGETS",
    "Evidence",
    "Inputs",
    "Measure",
    "Regime",
    "Result",
    "Tolerance",
    "check_num_bootstrap",
    "compute",
    "compute_all",
    "compute_prepared",
    "failure",
    "get",
    "gmm",
    "import_all",
    "kmeans",
    "names",
    "pca",
    "prepare",
    "reads_images",
    "register",
    "tolerance",
]

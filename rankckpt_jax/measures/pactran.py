"""PACTran-Gaussian (Ding et al. 2022, ECCV, arXiv 2203.05126): a PAC-Bayes bound.

N images, D dimensions, C classes, K = D C parameters. A linear classifier W on the
centered features x minimizes

    J = cross-entropy + |W|^2 / (2 l),              l = f N.

With h the trace of the Hessian of the cross-entropy summed over the images,

    h = sum_i (|x_i|^2 + 1) sum_c p_ic (1 - p_ic) + K / l
    B = J + K / (2 l) s log(h l / K),               s = g / D the prior's variance.

PACTran = -B, so that higher is better; published figures have the opposite sign.

Cost: about 100 steps of 6 N D C FLOP. Range: unbounded, usually below 0. The authors'
code tries f in 0.1, 1, 10 with g of 10 f and 100 f. The default f = 10, g = 100 is
called the fixed setting by its ports. The authors' code stops after 100 steps from a
random start; this implementation continues to the unique minimum (in float32 until two
steps lower the loss by less than 1e-6 of it each) and has no seed. If the penalty
exceeds the curvature of the cross-entropy in every direction, a warning says so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Evidence, Inputs, Result, register
from rankckpt_jax.measures.statistics import logistic, scaling


@register(
    "pactran",
    cost="N D C steps",
    evidence=Evidence(0.45, 11),
    regimes=(regimes.SINGLE_IMAGES,),
)
def pactran(
    inputs: Inputs,
    prior_factor: float = 10.0,
    variance_factor: float = 100.0,
    num_steps: int = 500,
) -> Result:
    """Return the negative PAC-Bayes bound -B.

    Args:
      inputs: Features [N, D] and labels [N].
      prior_factor: f, above 0.
      variance_factor: g, above 0.
      num_steps: Maximum number of L-BFGS steps.

    Returns:
      The score. Its details hold the two terms of B and the largest entry of the final
      gradient.

    Raises:
      InputError: A factor is not positive.
    """
    statistics = inputs.statistics
    if min(prior_factor, variance_factor) <= 0:
        raise InputError(
            "prior_factor and variance_factor must be positive",
            where="measure_options.pactran",
            found=f"{prior_factor} and {variance_factor}",
        )
    size = statistics.features.shape[1]
    parameters = size * statistics.num_classes
    prior = prior_factor * statistics.num_images
    z, variances = logistic.coordinates(statistics)
    solution = logistic.fit(
        z,
        statistics.labels,
        statistics.num_classes,
        variances,
        np.array([1 / prior]),
        max_steps=num_steps,
    )
    scores = logistic.logits(z, solution.kernel[0], solution.bias[0])
    curvature = np.asarray(_curvature(scores), np.float64)
    trace = float((statistics.squared_norms + 1) @ curvature) + parameters / prior
    factor = parameters / (2 * prior) * variance_factor / size
    flatness = factor * float(np.log(trace * prior / parameters + 1e-10))
    # The curvature of the loss along the first principal component is its variance / C.
    dominates = float(variances[0]) / statistics.num_classes < 1 / prior
    warning = scaling.warn_if(dominates, f"the penalty |W|^2 / {2 * prior:g}")
    details = {
        "loss": float(solution.loss[0]),
        "flatness": flatness,
        "gradient": float(solution.gradient[0]),
    }
    return Result(-details["loss"] - flatness, details, warning)


@jax.jit
def _curvature(scores: jax.Array) -> jax.Array:
    """Return sum_c p_ic (1 - p_ic) with p = softmax(scores [N, C]): [N]."""
    probabilities = jax.nn.softmax(scores, axis=1)
    return jnp.sum(probabilities * (1 - probabilities), axis=1)

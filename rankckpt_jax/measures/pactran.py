"""PACTran-Gaussian (Ding et al. 2022, ECCV, arXiv 2203.05126): a PAC-Bayes bound.

N images, D dimensions, C classes, K = D C; a linear head on the centred features is
brought to the minimum of

    J = cross-entropy + |W|^2 / (2 s N)              with s = `prior_factor` (10),

and with the trace of the Hessian of the summed cross-entropy,
t = sum_i |x_i|^2 sum_c p_ic (1 - p_ic), the bound is                  (their theorem 3)

    B = J + K / (2 N) log(1 + t s_0 / K),            s_0 = D / 100 the prior's variance.

PACTran = -B, so that higher is better here; published figures have the other sign.

Cost: about 6 N D C FLOP for each of at most 100 steps. Range: at most 0. Published code
leaves the trade-off of its two constants to a grid over (s, s_0); these are the values
that its paper reports first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures import logistic
from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import Statistics


@register("pactran")
def pactran(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    statistics: Statistics,
    prior_factor: float = 10.0,
    num_steps: int = 100,
) -> Result:
    """The bound's negative for features [N, D] and labels [N]."""
    x = jnp.asarray(statistics.centred)
    count, size = x.shape
    ridge = 1 / (prior_factor * count)
    everyone = jnp.ones(count, x.dtype)
    models = logistic.fit(
        x, labels, everyone, jnp.asarray([ridge]), num_classes, num_steps
    )
    model = jax.tree.map(lambda leaf: leaf[0], models)
    loss = float(logistic.cross_entropy(model, x, labels, everyone))
    loss += ridge / 2 * float(jnp.sum(model.weights**2))
    posterior = jax.nn.softmax(logistic.logits(model, x), axis=1)
    uncertainty = jnp.sum(posterior * (1 - posterior), axis=1)
    trace = float(jnp.sum(jnp.sum(x * x, axis=1) * uncertainty))
    parameters = size * num_classes
    flatness = parameters / (2 * count) * np.log1p(trace * size / 100 / parameters)
    return Result(-float(loss + flatness), {"loss": loss, "flatness": float(flatness)})

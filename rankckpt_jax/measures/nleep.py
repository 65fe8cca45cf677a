"""NLEEP (Li et al. 2021, arXiv 2011.11200): LEEP on Gaussian components.

N images, D dimensions, C target classes:

    1. PCA of the centred features to the fewest d dimensions with more than 80 % of the
       variance;
    2. a Gaussian mixture with K = 5 C components on the N x d projections;
    3. A[i, v], the posterior of component v for image i;
    4. NLEEP = 1/N sum_i log sum_v P(y_i | v) A[i, v], with P from A and the labels as
       in LEEP (`leep.log_expected_prediction`).

Unlike LEEP it needs no classifier in the checkpoint. Range: at most 0. Higher is
better. Only differences between checkpoints of one task carry meaning: with 5 C
components and few images a class even noise beats chance. Cost: that of EM,
4 N K d^2 FLOP an iteration.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import gmm as gmm_lib
from rankckpt_jax.measures import leep, pca
from rankckpt_jax.measures.registry import Result, register

# Projections are padded with zeros to a multiple of this, so that checkpoints whose PCA
# keeps about as many dimensions share one compiled EM. A column of zeros has the same
# density under every component and changes no posterior.
_BUCKET = 16


@register("nleep")
def nleep(
    features: jax.Array,
    labels: jax.Array,
    logits: None,
    num_classes: int,
    seed: int,
    energy: float = 0.8,
    components_per_class: int = 5,
    covariance_type: str = "full",
    reg_covar: float = 1e-6,
    tol: float = 1e-3,
    max_iter: int = 100,
) -> Result:
    """NLEEP with the settings that the paper's faithful ports share.

    Args:
      features: float [N, D].
      labels: int [N] in 0 ... C-1.
      logits: Not used.
      num_classes: C.
      seed: Decides the k-means start of the mixture.
      energy: Share of the variance that PCA keeps, in (0, 1].
      components_per_class: Gaussian components per class.
      covariance_type: "full" (scikit-learn's default, which the ports use) or "diag".
      reg_covar: Ridge of the covariances.
      tol: EM stops when the mean log likelihood changes by less.
      max_iter: Most EM iterations.

    Returns:
      The score, and in its details: the dimensions kept, the number of components, EM's
      iterations and whether it converged, its last lower bound, and the mean entropy of
      the posteriors in nats.

    Raises:
      InputError: There are fewer images than components.
    """
    del logits
    num_components = components_per_class * num_classes
    if len(features) < num_components:
        raise InputError(
            "NLEEP has more mixture components than images",
            expected=f"at least {num_components} images "
            f"({components_per_class} components x {num_classes} classes)",
            found=f"{len(features)}",
            mend="lower config.measure_options.nleep.components_per_class",
        )
    projection = pca.fit(features, energy)
    projected = pca.transform(projection, features)
    dimensions = projected.shape[1]
    projected = jnp.pad(projected, ((0, 0), (0, -dimensions % _BUCKET)))
    mixture = gmm_lib.fit(
        projected,
        num_components,
        covariance_type=covariance_type,
        reg_covar=reg_covar,
        tol=tol,
        max_iter=max_iter,
        seed=seed,
    )
    posterior = gmm_lib.responsibilities(mixture, projected)
    score = leep.log_expected_prediction(posterior, labels, num_classes)
    entropy = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(posterior, posterior), axis=1))
    iterations = int(mixture.num_iterations)
    warning = ""
    if covariance_type == "full" and len(features) / num_components < dimensions:
        warning = (
            f"{len(features) / num_components:.1f} images a component in {dimensions} "
            "dimensions: the covariances are singular but for their ridge, and the "
            "score is the purity of the k-means start"
        )
    details = {
        "dimensions": dimensions,
        "num_components": num_components,
        "num_iterations": iterations,
        "converged": bool(mixture.converged),
        "lower_bound": float(np.asarray(mixture.lower_bounds)[iterations - 1]),
        "posterior_entropy": float(entropy),
    }
    return Result(float(score), details, warning)

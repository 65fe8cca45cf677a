"""Scores that must not depend on how many devices compute them.

python -m tests.measures.device_scores DEVICES PROCESSES RANK PORT
"""

import json
import sys

import jax
import numpy as np


def compute() -> list[float]:
    """NLEEP with a dense and with sparse mixtures, and a tied mixture."""
    from rankckpt_jax import measures
    from rankckpt_jax.measures.mixture import fitting, gmm, prediction

    random = np.random.default_rng(0)
    labels = np.arange(601) % 6  # Not divisible by any number of devices.
    means = random.normal(size=(6, 24))
    x = (0.5 * means[labels] + random.normal(size=(601, 24))).astype("f4")
    scores = [
        measures.compute("nleep", x, labels, components_per_class=count).score
        for count in (1, 10)
    ]
    mixture = gmm.fit(x, 6, "tied", init_labels=labels)
    scores += [float(mixture.lower_bounds[-1]), float(abs(mixture.covariances).sum())]
    # 201 components are not divisible by any number of devices either.
    fitted = fitting.fit(x, 201, init_labels=np.arange(601) % 201)
    assert fitted.sparse is not None
    scores += [float(fitted.lower_bounds[-1])]
    scores += [float(np.abs(fitted.parameters().covariances).sum())]
    return [*scores, prediction.of_mixture(fitted, labels, 6).log]


if __name__ == "__main__":
    devices, processes, rank, port = map(int, sys.argv[1:])
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, rank)
    assert jax.device_count() == devices
    result = compute()
    if rank == 0:
        print(json.dumps(result))

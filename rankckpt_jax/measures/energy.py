"""Energy (in ETran, Gholami et al. 2023, arXiv 2308.02027): are the images familiar?

N images, V source classes, z [N, V] the logits of the source classifier. The score is
the negative mean free energy,

    E = 1/N sum_i log sum_v exp z_iv                            (their equation 4)

Cost: O(N V). Range: unbounded. Higher means that the images resemble those that the
checkpoint was trained on. Published code also has a variant over the top logits only.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Inputs, Regime, Result, register

_NORMALIZED = 5e-3
"""Energies of log probabilities are 0 up to rounding in float16 or bfloat16."""

_FLAT = 1e-3
"""Difference from log V up to which logits are flat."""


def _flat(inputs: Inputs, result: Result) -> str:
    uniform = math.log(inputs.logits.shape[1])
    if abs(result.score - uniform) >= _FLAT:
        return ""
    return (
        f"The logits are so small that the energy is about log V = {uniform:.4g}, that "
        "of logits of 0. Check the input range of the network."
    )


@register(
    "energy",
    cost="N V",
    needs_logits=True,
    targets=tuple(TARGETS),
    regimes=(Regime("flat logits", _flat),),
)
def energy(inputs: Inputs) -> Result:
    """Return the mean log-sum-exp of the logits [N, V].

    Raises:
      InputError: The logits are probabilities or their logarithms.
    """
    return Result(float(np.mean(free_energies(inputs))))


def free_energies(inputs: Inputs) -> np.ndarray:
    """Return the negative free energy of each image, float64 [N]; a term of ETran.

    Raises:
      InputError: The logits are probabilities or their logarithms, whose energy is 0.
    """
    energies = np.asarray(jax.nn.logsumexp(inputs.logits, axis=1), np.float64)
    if np.abs(energies).max() < _NORMALIZED:
        raise InputError(
            "The energy needs logits, and a softmax was applied to them",
            where="logits",
            expected="the output of the classifier before its softmax",
            found="probabilities or their logarithms",
            fix="pass the logits, or use leep or nce, which read the probabilities",
        )
    return energies

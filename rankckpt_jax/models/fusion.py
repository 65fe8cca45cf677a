"""What keeps XLA's CPU backend from computing a value more than once."""

from __future__ import annotations

import jax
from jax.experimental import xla_metadata


@jax.custom_vjp
def once(x: jax.Array) -> jax.Array:
    """Returns `x`, of any shape and dtype, to be computed once however many read it.

    XLA's CPU backend computes what is cheap anew within each of its users. Along
    residual blocks the last sum would then add up the branches of all the others, and
    in training each of a convolution's three products would normalize its images anew.
    It does not look into a function that it may not inline. Gradients pass unchanged,
    and on other platforms `x` is returned as it is.
    """
    if jax.default_backend() != "cpu":
        return x
    with xla_metadata.set_xla_metadata(inlineable="false"):
        return _identity(x)


@jax.jit
def _identity(x: jax.Array) -> jax.Array:
    return x


# Written out, since JAX leaves an identity out of a function that it derives.
once.defvjp(lambda x: (once(x), None), lambda _, gradient: (gradient,))

"""Small things about arrays."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def nonzero(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """value where it is positive and 1 elsewhere: a denominator, also where what is divided does not count."""
    return jnp.where(value > 0, value, 1)

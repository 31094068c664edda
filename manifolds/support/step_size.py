"""The length of the next step of an adaptive method."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0  # as ever


def step_factor(ratio: Float[Array, ""], taken: Bool[Array, ""], order: int) -> Float[Array, ""]:
    """How many times as long the next step is, SAFETY ratio^(−1/order), for an error that is `ratio` times what is
    allowed: a fifth at least and ten times at most, and no shorter after a step that is `taken`."""
    factor = SAFETY * jnp.maximum(ratio, jnp.finfo(ratio.dtype).tiny) ** (-1 / order)
    return jnp.clip(factor, jnp.where(taken, 1.0, SHRINK), GROW)

"""An independent route to Φ_S: the gradient flow integrated explicitly, with tiny fixed steps, and differentiated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array


def resolved_flow(
    gradient: Callable[[Array], Array], matrix: Array, time: float, steps: int
) -> Callable[[Array], Array]:
    """x ↦ the flow of ẋ = −S ∇L(x) after `time`, by classical RK4: a plain function that JAX can differentiate."""
    h = time / steps

    def field(x: Array) -> Array:
        return -matrix @ gradient(x)

    def step(x: Array, _: None) -> tuple[Array, None]:
        k1 = field(x)
        k2 = field(x + h / 2 * k1)
        k3 = field(x + h / 2 * k2)
        k4 = field(x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return lambda x: jax.lax.scan(step, x, None, length=steps)[0]


def second_derivative_through(flow: Callable[[Array], Array], x: Array, columns: Array) -> Array:
    """Σ_k D²flow(x)[w_k, w_k] over the columns w_k, by nested forward-mode differentiation."""

    def one(w: Array) -> Array:
        return jax.jvp(lambda y: jax.jvp(flow, (y,), (w,))[1], (x,), (w,))[1]

    return jnp.sum(jax.vmap(one, 1)(columns), axis=0)

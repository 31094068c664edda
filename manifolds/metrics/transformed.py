"""A metric made of another one: a multiple of it, or the same in another order of the coordinates."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .abstract import AbstractMetric


class Scaled(AbstractMetric):
    """S = ρ M for a metric M and a number ρ > 0.

    Example:
        >>> Scaled(Identity(), 0.1)(jnp.ones(2))
        Array([0.1, 0.1], dtype=float32)
    """

    metric: AbstractMetric
    factor: Any

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.factor * self.metric(w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return jnp.sqrt(self.factor) * self.metric.sqrt(w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.metric.inv_sqrt(w) / jnp.sqrt(self.factor)

    def largest(self) -> Float[Array, ""]:
        return self.factor * self.metric.largest()

    def entries(self) -> Any:
        entries = self.metric.entries()
        return None if entries is None else self.factor * entries

    def damped(self, damping: Float[Array, " p"]) -> "Scaled | None":
        damped = self.metric.damped(self.factor * damping)  # (M⁻¹/ρ + D)⁻¹ = ρ (M⁻¹ + ρD)⁻¹
        return None if damped is None else Scaled(damped, self.factor)


class Reordered(AbstractMetric):
    """S = Pᵀ M P, where (P w)_i = w_{order(i)}: a metric M known in another order of the coordinates.

    Example:
        >>> Reordered(Diagonal(jnp.array([1.0, 2.0, 3.0])), np.array([2, 0, 1]))(jnp.ones(3))
        Array([2., 3., 1.], dtype=float32)
    """

    metric: AbstractMetric
    order: Any  # (p,) integers

    def _in_order(self, act: Callable[[Any], Any], w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        # A scatter inverts the order; sorting it for a gather would be done anew at every product.
        return jnp.zeros_like(w).at[self.order].set(act(w[self.order]))

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._in_order(self.metric, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._in_order(self.metric.sqrt, w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._in_order(self.metric.inv_sqrt, w)

    def largest(self) -> Float[Array, ""]:
        return self.metric.largest()

    def entries(self) -> Any:
        entries = self.metric.entries()
        if entries is None or jnp.ndim(entries) == 0:
            return entries
        return jnp.zeros_like(entries).at[self.order].set(entries)

    def damped(self, damping: Float[Array, " p"]) -> "Reordered | None":
        damped = self.metric.damped(damping[self.order])
        return None if damped is None else Reordered(damped, self.order)

"""What a metric S is to everything else: the action of S, S^½ and S^-½, never a p×p matrix unless it is dense.

A metric acts on arrays whose first axis has length p, so `metric(w)` serves a vector (p,) and a stack of columns
(p, r) alike. A new kind subclasses `AbstractMetric`; nothing else needs to know.
"""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


class AbstractMetric(eqx.Module):
    """A symmetric positive definite p×p matrix S through its action: S w, S^½ w and S^-½ w."""

    @abc.abstractmethod
    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """S w."""

    @abc.abstractmethod
    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """S^½ w."""

    @abc.abstractmethod
    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """S^-½ w."""

    def half(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """F w for some F with FᵀF = S, all that a Gram matrix asks: S^½ w, unless another F is cheaper."""
        return self.sqrt(w)

    @abc.abstractmethod
    def largest(self) -> Float[Array, ""]:
        """An upper bound of the largest eigenvalue of S that is attained."""

    def entries(self) -> Any:
        """The diagonal of S, (p,), or a number for a multiple of I; None where S is not diagonal."""
        return None

    # None decides the solver of a run: without a damped metric the slow flow is integrated explicitly.
    def damped(self, damping: Float[Array, " p"]) -> "AbstractMetric | None":
        """(S⁻¹ + Diag(damping))⁻¹, the metric of an implicit step; None where it is not as cheap as S itself."""
        return None

"""What the geometry asks of a loss on flat coordinates: one interface, behind which there are several routes.

Contractions with ∇³L never form a p×p×p array.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..metrics.abstract import AbstractMetric
from ..normal.constraints import LOOSE, KernelDiagonal, NearbyKernel, Preconditioner
from ..normal.normal_space import COUNTED, AbstractNormalSpace
from ..support.coordinates import Coordinates

Vector = Float[Array, " p"]
CHUNK = 64  # third-derivative products evaluated together: bounds memory without costing speed


class NewtonStep(NamedTuple):
    """A step towards Γ, to be subtracted, and the extreme nonzero eigenvalues of H' where it started."""

    move: Vector
    smallest: Float[Array, ""]
    largest: Float[Array, ""]


class AbstractLoss(eqx.Module):
    """A loss L: R^p → R near its manifold Γ of minimizers. `coordinates` ties R^p to the user's pytree."""

    coordinates: eqx.AbstractVar[Coordinates]

    @property
    @abc.abstractmethod
    def route(self) -> str:
        """How it is computed: "dense", "kernel" or "matrix_free"."""

    @property
    def rank_for(self) -> str | None:
        """What of it needs a clear rank of H, in words; None where projections and returns do without."""
        return None

    @property
    def is_small(self) -> bool:
        """Whether an evaluation is known to take microseconds: then programs are compiled in a hurry."""
        return False

    def block(self, x: Vector) -> int:
        """How many terms of a sum, samples or third-derivative products, are vectorized over."""
        return min(CHUNK, x.shape[0])

    @abc.abstractmethod
    def value(self, x: Vector) -> Float[Array, ""]:
        """L(x)."""

    @abc.abstractmethod
    def gradient(self, x: Vector) -> Vector:
        """∇L(x)."""

    @abc.abstractmethod
    def residual(self, x: Vector) -> Float[Array, ""]:
        """A number that vanishes on Γ and nowhere near it: |∇L|, or the largest residual of a least-squares loss."""

    @abc.abstractmethod
    def normal_space(
        self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None
    ) -> AbstractNormalSpace:
        """Eigenpairs of H' = S^½ ∇²L(x) S^½ on its range (Gauss–Newton where that is exact on Γ)."""

    def largest_eigenvalue(self, x: Vector, metric: AbstractMetric) -> Float[Array, ""]:
        """λ_max(H')."""
        return self.normal_space(x, metric).largest

    def trace(self, x: Vector, metric: AbstractMetric) -> Float[Array, ""]:
        """tr H' = ⟨H, S⟩ at a point of Γ."""
        normal = self.normal_space(x, metric)
        return jnp.sum(normal.values * normal.mask)

    @abc.abstractmethod
    def newton_step(self, x: Vector, normal: AbstractNormalSpace, accuracy: float = LOOSE) -> Vector:
        """S^½ (H')⁺ S^½ ∇L(x), or S Jᵀ (J S Jᵀ)⁺ r(x): subtract it to return to Γ along S·(normal space). `accuracy` is
        relative, for solves by iteration."""

    def newton(
        self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None, near: NearbyKernel | None = None
    ) -> "NewtonStep":
        """One step of the return to Γ, with the curvatures that it met; `near` may spare the eigenpairs."""
        # A loss may use `near` to spare the eigenpairs; the dense route has nothing cheaper than them.
        normal = self.normal_space(x, metric, rank)
        # By position, not by mask: an eigenvalue that is no longer positive is masked.
        smallest = normal.smallest
        if rank is not None:
            smallest = jnp.where(rank == COUNTED, smallest, normal.values[jnp.maximum(rank, 1) - 1])
        return NewtonStep(self.newton_step(x, normal), smallest, normal.largest)

    # Asked at every step of the flow to Γ: a sure "far away" spares the eigenpairs that the full test takes.
    def off_manifold(self, x: Vector, metric: AbstractMetric, distance: Array) -> Bool[Array, ""]:
        """True only if x is neither at rest nor within `distance` of Γ by `newton_step`; False if a cheap test cannot
        tell."""
        return jnp.asarray(False)

    # The next three are hooks of the matrix-free route, where a kernel costs as much as m/4 products with it. None and
    # `near` itself are right wherever a factorization is at hand anyway.
    def nearby(self, x: Vector, metric: AbstractMetric) -> NearbyKernel | None:
        """What preconditions solves at points and in metrics near these; None where nothing needs it."""
        return None

    def roughly(self, x: Vector, metric: AbstractMetric) -> KernelDiagonal | None:
        """What preconditions a few solves at x at little cost; None where nothing needs it."""
        return None

    def renewed(
        self, near: NearbyKernel | None, x: Vector, metric: AbstractMetric, scale: Any = 1.0, shift: Any = None
    ) -> NearbyKernel | None:
        """`near` if it still preconditions scale·K + shift·I well at x, else what does; shift=None for a ridge."""
        return near

    @abc.abstractmethod
    def damped_solver(
        self, x: Vector, metric: AbstractMetric, h: Float[Array, ""], near: Preconditioner | None = None
    ) -> Callable[[Vector], Vector]:
        """w ↦ (I + h S A)⁻¹ w with A ≈ ∇²L(x): the linear solve of an implicit step of ẋ = −S∇L."""

    def unseen_curvature(self, x: Vector) -> Callable[[Vector], Vector] | None:
        """w ↦ (∇²L(x) − A) w for the A of `damped_solver`, which vanishes on Γ; None where A is ∇²L(x)."""
        return None

    @abc.abstractmethod
    def hessian_diagonal(self, x: Vector) -> Vector:
        """diag ∇²L(x) at a point of Γ."""

    @abc.abstractmethod
    def negative_curvature(self, x: Vector) -> Float[Array, ""]:
        """The smallest eigenvalue of ∇²L(x) if negative beyond rounding, else 0: nonzero at a saddle."""

    @abc.abstractmethod
    def contract_factors(self, x: Vector, left: Float[Array, "p k"], right: Float[Array, "p k"]) -> Vector:
        """Σ_k ∇³L(x)[u_k, w_k] = T[M], M = ½Σ(u_k w_kᵀ + w_k u_kᵀ), up to a vector that Π S kills."""

    @abc.abstractmethod
    def contract_metric(self, x: Vector, metric: AbstractMetric) -> Vector:
        """T[S] = ∇⟨∇²L(x), S⟩ with S held fixed, up to a vector that Π S kills."""

    @abc.abstractmethod
    def metric_curvature(self, x: Vector, metric: AbstractMetric) -> Vector:
        """diag of a positive semi-definite model of ∇²⟨∇²L(x), S⟩, S held fixed: how stiff the flow of T[S] is."""

    def has_whole_curvature(self, x: Vector) -> bool:
        """Whether `metric_hessian` and `metric_lagrangian` are at hand; not where they would cost too much."""
        return False

    def metric_hessian(self, x: Vector, metric: AbstractMetric) -> Float[Array, "p p"] | None:
        """The whole of the model of which `metric_curvature` is the diagonal; None where it is not at hand."""
        return None

    def couples(self, x: Vector) -> Bool[Array, ""]:
        """Whether second derivatives of residuals couple parameters, so that `metric_hessian` is not diagonal; False
        where there is none."""
        return jnp.asarray(False)

    def metric_lagrangian(
        self, x: Vector, metric: AbstractMetric, scale: Any, multipliers: Array
    ) -> Float[Array, "p p"] | None:
        """∇²(scale·⟨∇²L, S⟩) − Σ μ_i ∇²r_i exactly, the Hessian along Γ of a function with the normal force Jᵀμ; None
        where it is not at hand."""
        return None

    def constraints(
        self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None, near: Preconditioner | None = None
    ) -> Any:
        """The normal space at x for steps along Γ only: its `project_gradient` and `multipliers`, and what
        `newton_step` asks of it; `near` may precondition its solves."""
        return self.normal_space(x, metric, rank)

    def at_singular_ends(self) -> "AbstractLoss":
        """This loss with constraints that resolve what vanishes at a singular end, at a price; itself if not."""
        return self

    @abc.abstractmethod
    def constraint_curvature(self, x: Vector, multipliers: Array) -> Vector:
        """An estimate of diag Σ_i μ_i ∇²r_i, the curvature of Γ that a force holds against: Jᵀμ is its normal part, and
        a function F with that gradient has the Hessian ∇²F − Σ_i μ_i ∇²r_i along Γ. For μ see `constraints`."""

    @abc.abstractmethod
    def normal_bending(self, x: Vector, normal: AbstractNormalSpace, tangent: Float[Array, "p k"]) -> Vector:
        """S^½ (H')⁺ S^½ T[Σ_k t_k t_kᵀ] for tangent columns t_k: how far Γ bends away along them."""

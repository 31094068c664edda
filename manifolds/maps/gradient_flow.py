"""The preconditioned gradient flow ẋ = −S ∇L(x), and a step for its stiffness.

The spectrum of S∇²L spans many decades (that of a network's kernel J S Jᵀ), so the step is linearly implicit. A
Rosenbrock–W method keeps its order with an approximate Jacobian, which lets the least-squares route solve with the
n×n kernel (Gauss–Newton) instead of a p×p matrix.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..losses.abstract import AbstractLoss
from ..metrics.abstract import AbstractMetric
from ..normal.constraints import NearbyKernel
from .stiff_part import StiffPart, first_part, renewed_part, with_stiff_part

Vector = Float[Array, " p"]
ORDER = 3


class Curvature(NamedTuple):
    """What a step keeps of the curvature for the next."""

    near: NearbyKernel | None  # preconditions its solves
    stiff: StiffPart | None  # what a Gauss–Newton model does not see


# ROS34PW2 of Rang and Angermann (BIT 45, 2005): four stages, order 3 (as a W-method too), L-stable, stiffly accurate,
# with an embedded method of order 2. Its coefficients satisfy the order conditions to 1e-15
# (tests/manifolds/test_gradient_flow).
_GAMMA = 4.3586652150845900e-01
_ALPHA = np.array([
    [0.0, 0.0, 0.0, 0.0],
    [8.7173304301691801e-01, 0.0, 0.0, 0.0],
    [8.4457060015369423e-01, -1.1299064236484185e-01, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],
])  # fmt: skip
_GAMMAS = np.array([
    [_GAMMA, 0.0, 0.0, 0.0],
    [-8.7173304301691801e-01, _GAMMA, 0.0, 0.0],
    [-9.0338057013044082e-01, 5.4180672388095326e-02, _GAMMA, 0.0],
    [2.4212380706095346e-01, -1.2232505839045147e00, 5.4526025533510214e-01, _GAMMA],
])  # fmt: skip
_B = np.array([2.4212380706095346e-01, -1.2232505839045147e00, 1.5452602553351020e00, 4.3586652150845900e-01])
_B_EMBEDDED = np.array([3.7810903145819369e-01, -9.6042292212423178e-02, 0.5, 2.1793326075422950e-01])
# In the variables u = Γ k the stages need no product with the Jacobian (Hairer and Wanner II, IV.7).
# With k = Γ⁻¹u, A = αΓ⁻¹ and m = bΓ⁻¹, and the off-diagonal part of Γ⁻¹ becomes the feedback C.
_INVERSE = np.linalg.inv(_GAMMAS)
_A = _ALPHA @ _INVERSE
_C = np.eye(4) / _GAMMA - _INVERSE
_M = _B @ _INVERSE
_M_ERROR = (_B - _B_EMBEDDED) @ _INVERSE


class GradientFlow(eqx.Module):
    """The flow ẋ = f(x) = −S ∇L(x), by one linear solve (I + γhSA)⁻¹, A ≈ ∇²L(x_k), applied four times a step: order 3.

    u_i = γh (I + γhSA)⁻¹ [ f(x_k + Σ_j a_ij u_j) + Σ_j c_ij u_j / h ],    x_{k+1} = x_k + Σ_i m_i u_i
    """

    loss: AbstractLoss
    metric: AbstractMetric

    def velocity(self, x: Vector) -> Vector:
        """−S ∇L(x)."""
        return -self.metric(self.loss.gradient(x))

    def curvature(self, x: Vector) -> Curvature:
        """What is known of the curvature at a start."""
        return Curvature(self.loss.nearby(x, self.metric), first_part(self.loss, x))

    def step(self, x: Vector, h: Array, known: Curvature) -> tuple[Vector, Vector, Curvature]:
        """x after a step of length h, an estimate of its error, and the curvature met; error infinite where a stage
        blew up."""
        # Judged for this h: a kernel that preconditions I + γhK for short steps may no longer do so for long ones.
        near = self.loss.renewed(known.near, x, self.metric, _GAMMA * h, 1.0)
        stiff = renewed_part(self.loss, x, self.metric, known.stiff, _GAMMA * h)
        # One factor for all four stages, which is what the single γ on the diagonal of Γ is for.
        solve = self.loss.damped_solver(x, self.metric, _GAMMA * h, near)
        solve = with_stiff_part(solve, self.metric, _GAMMA * h, stiff)

        def stage(u: Float[Array, "4 p"], row: tuple[Any, Any, Any]) -> tuple[Float[Array, "4 p"], None]:
            i, a, c = row
            return u.at[i].set(solve(_GAMMA * (h * self.velocity(x + a @ u) + c @ u))), None

        tableau = jnp.arange(4), jnp.asarray(_A, x.dtype), jnp.asarray(_C, x.dtype)
        u, _ = jax.lax.scan(stage, jnp.zeros((4, *x.shape), x.dtype), tableau)
        move, error = jnp.asarray(np.stack([_M, _M_ERROR]), x.dtype) @ u
        # An infinite error, unlike NaN, makes the controller shorten the step.
        return x + move, jnp.where(jnp.isfinite(error), error, jnp.inf), Curvature(near, stiff)

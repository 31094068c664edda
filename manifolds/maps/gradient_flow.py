"""The preconditioned gradient flow ẋ = −S ∇L(x) as a Diffrax term, and a solver for its stiffness.

The spectrum of S∇²L spans many decades (that of a network's kernel J S Jᵀ), so the solver is linearly implicit. A
Rosenbrock–W method keeps its order with an approximate Jacobian, which lets the least-squares route solve with the
n×n kernel (Gauss–Newton) instead of a p×p matrix.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..losses.abstract import AbstractLoss
from ..metrics.abstract import AbstractMetric
from ..normal.constraints import NearbyKernel
from .stiff_part import StiffPart, first_part, renewed_part, with_stiff_part

Vector = Float[Array, " p"]
Near = tuple[NearbyKernel | None, StiffPart | None]


class GradientFlow(eqx.Module):
    """The vector field −S ∇L(x)."""

    loss: AbstractLoss
    metric: AbstractMetric

    def __call__(self, t: Any, x: Vector, args: Any) -> Vector:
        return -self.metric(self.loss.gradient(x))


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


class RosenbrockFlow(dfx.AbstractAdaptiveSolver):
    """One linear solve (I + γhSA)⁻¹, A ≈ ∇²L(x_k), applied four times a step; order 3.

    u_i = γh (I + γhSA)⁻¹ [ f(x_k + Σ_j a_ij u_j) + Σ_j c_ij u_j / h ],    x_{k+1} = x_k + Σ_i m_i u_i
    """

    loss: AbstractLoss
    metric: AbstractMetric

    term_structure: ClassVar = dfx.ODETerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        return 3

    def init(self, terms: Any, t0: Any, t1: Any, y0: Vector, args: Any) -> Near:
        return self.loss.nearby(y0, self.metric), first_part(self.loss, y0)

    def func(self, terms: Any, t0: Any, y0: Vector, args: Any) -> Vector:
        return terms.vf(t0, y0, args)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Vector, args: Any, solver_state: Near | None, made_jump: Any
    ) -> tuple[Vector, Vector, dict[str, Vector], Near, dfx.RESULTS]:
        h = terms.contr(t0, t1)
        near, stiff = (None, None) if solver_state is None else solver_state
        # Judged for this h: a kernel that preconditions I + γhK for short steps may no longer do so for long ones.
        near = self.loss.renewed(near, y0, self.metric, _GAMMA * h, 1.0)
        stiff = renewed_part(self.loss, y0, self.metric, stiff, _GAMMA * h)
        # One factor for all four stages, which is what the single γ on the diagonal of Γ is for.
        solve = self.loss.damped_solver(y0, self.metric, _GAMMA * h, near)
        solve = with_stiff_part(solve, self.metric, _GAMMA * h, stiff)
        u: list[Vector] = []
        for a, c in zip(_A, _C, strict=True):
            stage = y0 + sum(a_j * u_j for a_j, u_j in zip(a, u, strict=False))
            feedback = sum(c_j * u_j for c_j, u_j in zip(c, u, strict=False))
            u.append(solve(_GAMMA * (h * terms.vf(t0, stage, args) + feedback)))
        y1 = y0 + sum(m * u_i for m, u_i in zip(_M, u, strict=True))
        error = sum(m * u_i for m, u_i in zip(_M_ERROR, u, strict=True))
        # An infinite error, unlike NaN, makes the controller shorten the step.
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)  # a stage that blew up: reject and shrink
        return y1, error, {"y0": y0, "y1": y1}, (near, stiff), dfx.RESULTS.successful

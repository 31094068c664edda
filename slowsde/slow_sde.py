"""Drift and diffusion of the slow SDE for (ζ, v), position on Γ and preconditioner state.

    dζ = Π S B dW + ½ ∂²Φ_S(ζ)[S Σ S] dt,        dv = c (V(Σ(ζ)) − v) dt,        S = S(v), Σ = B Bᵀ

in slow time t = kη². Label noise, Σ = αH: dζ/dt = −(α/4) Π S T[S], nothing diffuses. (Li, Wen and Lyu 2025.)
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

import manifolds as mf
from manifolds import second_order
from manifolds.coordinates import Coordinates

from .optimizers import AGM
from .problems import AbstractProblem

Vector = Float[Array, " p"]


class SlowSDE(eqx.Module):
    """The slow SDE on flat coordinates: what every integrator and every report asks of a problem and an optimizer.

    `rank` is the rank of H on Γ, fixed at the start of a run (None: counted from the spectrum each time).
    """

    problem: AbstractProblem
    optimizer: AGM
    loss: mf.AbstractLoss
    rank: Int[Array, ""] | None = None

    @property
    def chart(self) -> Coordinates:
        return self.loss.coordinates

    @property
    def diffuses(self) -> bool:
        """False if the noise has no part along Γ, so that the slow SDE is an ODE (label noise)."""
        return self._noise.diffuses(self.problem)

    @property
    def has_sharpness(self) -> bool:
        """Whether Σ = αH on Γ, so that the flow is the semi-gradient of a sharpness."""
        return self._noise.hessian_scale(self.problem) is not None

    @property
    def _noise(self) -> Any:
        assert self.problem.noise is not None
        return self.problem.noise

    def noise_report(self, x: Vector) -> dict[str, float]:
        """What is known of the accuracy of the noise model at x on Γ, for the report of a run."""
        return self._noise.report(self.problem, self.chart, x)

    def factor(self, x: Vector) -> Float[Array, "p r"]:
        """B(x)."""
        return self._noise.factor(self.problem, self.chart, x)

    def equilibrium(self, x: Vector) -> PyTree:
        """V(Σ(x)), where the state v relaxes to."""
        return self.optimizer.state_of_factor(self.factor(x), self.chart)

    def metric(self, v: PyTree) -> mf.AbstractMetric:
        """S(v)."""
        return self.optimizer.metric(v, self.chart)

    def stochastic_gradient(self, x: Vector, key: Any) -> Vector:
        """One draw of the gradient."""
        return self._noise.gradient(self.problem, self.chart, x, key)

    def normal_space(self, x: Vector, v: PyTree) -> Any:
        """Eigenpairs of H' = S^½ H S^½ at x in the metric S(v)."""
        return self.loss.normal_space(x, self.metric(v), self.rank)

    def tangential_drift(self, x: Vector, normal: Any) -> Vector:
        """−½ Π S T[C], the part of the drift along Γ; −(α/4) Π S T[S] for label noise."""
        alpha = self._noise.hessian_scale(self.problem)
        if alpha is not None:
            return alpha * second_order.sharpness_drift(self.loss, x, normal)
        return second_order.tangential_drift(self.loss, x, normal, self.factor(x))

    def sharpness_gradient(self, x: Vector, metric: mf.AbstractMetric) -> Vector:
        """(α/4) T[S]: the gradient of (α/4)⟨H, S⟩, S held fixed (label noise)."""
        return 0.25 * self._noise.hessian_scale(self.problem) * self.loss.contract_metric(x, metric)

    def damped_metric(self, x: Vector, metric: mf.AbstractMetric, h: Array) -> mf.AbstractMetric:
        """(S⁻¹ + hG)⁻¹ with G a diagonal model of ∇²(α/4)⟨H, S⟩: the metric of an implicit step of length h."""
        alpha = self._noise.hessian_scale(self.problem)
        damped = metric.damped(h * alpha * second_order.sharpness_curvature(self.loss, x, metric))
        assert damped is not None
        return damped

    def relaxed(self, x: Vector, v: PyTree, h: Array) -> PyTree:
        """v after a time h at fixed x: V(Σ) + (v − V(Σ)) e^{−ch}, exactly."""
        kept = jnp.exp(-self.optimizer.c * h)
        return jax.tree.map(lambda target, now: target + kept * (now - target), self.equilibrium(x), v)

    def diffusion(self, x: Vector, normal: Any) -> Float[Array, "p r"]:
        """Π S B; zero for label noise."""
        factor = self.factor(x)
        return second_order.tangential_factor(normal, factor) if self.diffuses else jnp.zeros_like(factor)

    def drift(self, x: Vector, normal: Any) -> Vector:
        """½ ∂²Φ_S[SΣS], with the Itô term normal to Γ that tangential noise causes."""
        drift = self.tangential_drift(x, normal)
        return drift + second_order.normal_drift(self.loss, x, normal, self.factor(x)) if self.diffuses else drift

    def v_drift(self, x: Vector, v: PyTree) -> PyTree:
        """c (V(Σ) − v); zero in the quasi-static limit, where v has no motion of its own."""
        if self.optimizer.quasi_static:
            return jax.tree.map(jnp.zeros_like, v)
        return jax.tree.map(lambda target, now: self.optimizer.c * (target - now), self.equilibrium(x), v)


@eqx.filter_jit
def equilibrium(sde: SlowSDE, x: Vector) -> PyTree:
    """V(Σ(x)), compiled: the state v0 that a run starts with by default."""
    return sde.equilibrium(x)


def slow_sde(problem: AbstractProblem, optimizer: AGM, chart: Coordinates, route: str = "auto") -> SlowSDE:
    """The slow SDE of `optimizer` on `problem`; ValueError if the problem has no noise or an unsuitable one."""
    if not isinstance(problem, AbstractProblem):
        raise ValueError(f"problem={problem!r} must be a Problem, LeastSquares, EmpiricalRisk or from_sympy(...).")
    if not isinstance(optimizer, AGM):
        raise ValueError(f"optimizer={optimizer!r} must be an AGM, such as sgd(), adam(c=1.0) or AGM(V, S, c).")
    if problem.noise is None:
        raise ValueError(
            "problem has no noise, and without noise nothing moves on the slow clock. Pass noise=LabelNoise(...), "
            "GaussianNoise(...) or MinibatchNoise(...) to the problem."
        )
    problem.noise.check(problem)
    return SlowSDE(problem, _with_array_rates(optimizer), problem.flat_loss(chart, route))


def _with_array_rates(optimizer: AGM) -> AGM:
    # Numbers as arrays, so that compiled code serves every c; an infinite c selects other code.
    c = optimizer.c if optimizer.quasi_static else jnp.asarray(optimizer.c)
    return eqx.tree_at(lambda o: (o.c, o.b1), optimizer, (c, jnp.asarray(optimizer.b1)))

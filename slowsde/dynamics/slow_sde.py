"""Drift and diffusion of the slow SDE for (ζ, v), position on Γ and preconditioner state.

    dζ = s Π S B dW + ½ s² ∂²Φ_S(ζ)[S Σ S] dt − s Π ω ζ dt,    dv = c (V(Σ(ζ)) − v) dt,    S = S(v), Σ = B Bᵀ

in slow time t = kη², with s(t) the learning rate over η and ω the decoupled weight decay (1 and 0 in the plain case).
Label noise, Σ = αH: dζ/dt = −(α/4) s² Π S T[S], nothing diffuses. (Li, Wen and Lyu 2025; s and ω by the same
derivation: a learning rate sη makes fluctuations ∝ sη and steps ∝ sη, and the decay moves η²sω θ a step.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

import manifolds as mf
from manifolds import second_order
from manifolds.metrics.damped import Damped
from manifolds.metrics.diagonal import scale_rows
from manifolds.normal.constraints import LOOSE, TIGHT
from manifolds.support.compilation import compiled_once
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.user_functions import known_form, shown

from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route

Vector = Float[Array, " p"]


class StepFrame(NamedTuple):
    """What implicit steps from a point have in common."""

    multipliers: Any  # that hold the force against Γ, for a G that is diagonal; None for one that is not
    near: Any  # what preconditions solves, see `AbstractLoss.nearby`
    metric: Any = None  # of the step, in which `near` is a kernel
    hessian: Float[Array, "p p"] | None = None  # G where it couples parameters; a diagonal one is made at each substep


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

    def at_rank(self, rank: Any) -> "SlowSDE":
        """The same at a rank of H that is known; None to count it at every point."""
        return eqx.tree_at(lambda sde: sde.rank, self, rank, is_leaf=lambda leaf: leaf is None)

    @property
    def rank_for(self) -> str | None:
        """What asks for a clear rank of H, in words; None for label noise by residuals, which never does."""
        if self.diffuses:
            return "noise that diffuses (its Lyapunov weights 1/(λ_i + λ_j) and Itô term)"
        return self.loss.rank_for

    @property
    def crosses_singular_points(self) -> bool:
        """Whether the motion goes on through singular points of Γ, such as sparse ends, where the rank of H falls: a
        flow that interpolates never asks for the rank, which is then a finding."""
        return self.rank_for is None

    @property
    def has_sharpness(self) -> bool:
        """Whether Σ = αH on Γ, so that the flow is the semi-gradient of a sharpness."""
        # By its form: a number that is known would be a program.
        return eqx.filter_eval_shape(lambda sde: sde.hessian_scale, self) is not None

    @property
    def hessian_scale(self) -> Any:
        """α if Σ = αH on Γ, else None."""
        return self._noise.hessian_scale(self.problem)

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

    # Most of what is asked of Σ is a sum over columns of B, of which label noise makes one sample's at a time.
    def sum_over_columns(self, function: Callable[[PyTree], PyTree], x: Vector) -> PyTree:
        """Σ_j function(b_j) over the columns of B(x) as params-like pytrees, without B itself under label noise."""
        return self._noise.sum_over_columns(function, self.problem, self.chart, x)

    def power(self, x: Vector, act: Callable[[Vector], Vector]) -> Array:
        """|A B(x)|², Frobenius, for a linear `act` on flat vectors: tr SΣ for S^½."""
        return self.sum_over_columns(lambda b: jnp.sum(act(ravel(b)) ** 2), x)

    def equilibrium(self, x: Vector) -> PyTree:
        """V(Σ(x)), where the state v relaxes to."""
        return self.sum_over_columns(self.optimizer.V, x)

    def state_shapes(self) -> PyTree:
        """The form of v, with the shapes of its leaves: that of V of a single gradient."""
        # V is a function of g, so that the state has the form of V(g): no point and no noise is needed to know it.
        gradient = jax.ShapeDtypeStruct((self.chart.size,), jnp.result_type(float))
        call = "V(gradient)"
        V, chart = self.optimizer.V, self.chart
        return known_form((V, chart), lambda g: V(chart.unravel_arrays(g)), call, gradient, optional=True)

    def arranged(self, v: PyTree) -> PyTree:
        """v in the form of V(Σ), also if it is one second moment like params and the optimizer divides its own."""
        fits = jax.tree.structure(v) == jax.tree.structure(self.state_shapes())
        return v if fits else self.optimizer.arranged(v)

    def metric(self, v: PyTree) -> mf.AbstractMetric:
        """S(v)."""
        return self.optimizer.metric(v, self.chart)

    def stochastic_gradient(self, x: Vector, key: Any) -> Vector:
        """One draw of the gradient."""
        return self._noise.gradient(self.problem, self.chart, x, key)

    def normal_space(self, x: Vector, v: PyTree) -> Any:
        """Eigenpairs of H' = S^½ H S^½ at x in the metric S(v)."""
        return self.loss.normal_space(x, self.metric(v), self.rank)

    def frame(self, x: Vector, v: PyTree, resolved: bool = False) -> Any:
        """What the drift asks of the normal space at x: eigenpairs only where Σ is not αH. `resolved` is for singular
        ends, see `AbstractLoss.at_singular_ends`."""
        if not self.has_sharpness:
            return self.normal_space(x, v)
        metric = self.metric(v)
        # Under label noise only projections are asked for. At one point, once, the diagonal of K preconditions well
        # enough, and costs no kernel.
        loss = self.loss.at_singular_ends() if resolved else self.loss
        return loss.constraints(x, metric, self.rank, loss.roughly(x, metric))

    def tangential_drift(self, x: Vector, normal: Any, t: Any, accuracy: float = TIGHT) -> Vector:
        """−½ s² Π S T[C] − s Π ω x, the part of the drift along Γ; the first is −(α/4) s² Π S T[S] for label noise."""
        alpha, pace = self.hessian_scale, self.optimizer.pace(t)
        if alpha is not None:
            # C' = α/2 on the range of H': −½ Π S T[C] = −(α/4) Π S T[S].
            drift = alpha * second_order.sharpness_drift(self.loss, x, normal, accuracy)
        else:
            drift = second_order.tangential_drift(self.loss, x, normal, self.factor(x))
        # A rate sη makes the fluctuations' covariance ∝ sη and moves by sη a step: s². Weight decay moves by s alone.
        drift = pace**2 * drift
        return drift - pace * normal.project(self.optimizer.decay(self.chart) * x) if self.optimizer.decays else drift

    def sharpness_gradient(self, x: Vector, metric: mf.AbstractMetric, t: Any) -> Vector:
        """(α/4) s² T[S] + s ω S⁻¹x: the gradient of (α/4) s² ⟨H, S⟩ + ½ s ω |x|²_{S⁻¹}, S held fixed (label noise)."""
        alpha, pace = self.hessian_scale, self.optimizer.pace(t)
        gradient = 0.25 * alpha * pace**2 * self.loss.contract_metric(x, metric)
        if not self.optimizer.decays:
            return gradient
        # S⁻¹(sωx), as S⁻¹ alone is not asked of a metric; the step multiplies by the damped S.
        return gradient + metric.inv_sqrt(metric.inv_sqrt(pace * self.optimizer.decay(self.chart) * x))

    def sharpness(self, x: Vector, metric: mf.AbstractMetric, t: Any) -> Array:
        """(α/4) s² ⟨H, S⟩ + ½ s ω |x|²_{S⁻¹}: with S held fixed the flow falls along it."""
        pace = self.optimizer.pace(t)
        value = 0.25 * self.hessian_scale * pace**2 * self.loss.trace(x, metric)
        if not self.optimizer.decays:
            return value
        return value + 0.5 * pace * jnp.sum(self.optimizer.decay(self.chart) * metric.inv_sqrt(x) ** 2)

    def implicit_frame(
        self, x: Vector, metric: mf.AbstractMetric, t: Any, h: Array, near: Any = None, coupled: bool = False
    ) -> "StepFrame":
        """What implicit steps of lengths about h from x have in common; `near` is kept if it will do."""
        if coupled:
            return StepFrame(None, near, hessian=self._sharpness_hessian(x, metric, t))
        # Multipliers in the metric of the step, as far as it is known without them: c = ∞ took 147 steps with those of
        # S at rtol 1e-4, and 99 with these.
        damped = self._step_metric(x, metric, t, h)
        near = self.loss.renewed(near, x, damped)
        normal = self.loss.constraints(x, damped, self.rank, near)
        return StepFrame(normal.multipliers(self.sharpness_gradient(x, metric, t), LOOSE), near, damped)

    def newton_frame(self, x: Vector, metric: mf.AbstractMetric, t: Any) -> "StepFrame":
        """As `implicit_frame` for the last steps to rest: G the exact Hessian of the sharpness along Γ, S held fixed,
        less what of it is negative."""
        # With the bend of Γ: without it steps from near the rest of uv = 1 are twice too long, and never come to it.
        normal = self.loss.constraints(x, metric, self.rank)
        scale = 0.25 * self.hessian_scale * self.optimizer.pace(t) ** 2
        multipliers = normal.multipliers(self.sharpness_gradient(x, metric, t))
        hessian = self.loss.metric_lagrangian(x, metric, scale, multipliers) + self._decay_hessian(metric, t)
        projector = normal.project(jnp.eye(x.shape[0], dtype=x.dtype))
        # In the coordinates S^-½x, where S, and with it what is to be called small, does not spread over decades.
        along = metric.sqrt(metric.sqrt(projector.T @ hessian @ projector).T)
        values, axes = jnp.linalg.eigh((along + along.T) / 2)
        positive = (axes * jnp.maximum(values, 0)) @ axes.T
        return StepFrame(None, None, hessian=metric.inv_sqrt(metric.inv_sqrt(positive).T))

    def nearby(self, x: Vector, metric: mf.AbstractMetric, t: Any, h: Array, coupled: bool = False) -> Any:
        """What preconditions the solves of implicit steps of lengths about h from x, see `AbstractLoss.nearby`."""
        return None if coupled else self.loss.nearby(x, self._step_metric(x, metric, t, h))

    def damped_constraints(self, x: Vector, metric: mf.AbstractMetric, t: Any, h: Array, frame: "StepFrame") -> Any:
        """The constraints of an implicit step of length h in its metric (S⁻¹ + hG)⁻¹, with G ≥ 0 a model of the Hessian
        of (α/4)s²⟨H, S⟩ + ½sω|x|²_{S⁻¹} along Γ; `frame` is the `implicit_frame` of a point nearby."""
        if frame.hessian is not None:
            return self.loss.constraints(x, Damped(metric, h * frame.hessian), self.rank, frame.near)
        # ∇²F − Σ μ_i ∇²r_i, the Hessian of F on Γ: a force that holds against Γ bends with it. A wrong sign of the
        # second term shows in the test of the damping.
        curvature = self._sharpness_curvature(x, metric, t) - self.loss.constraint_curvature(x, frame.multipliers)
        # Negative curvature is not damped: (S⁻¹ + hG)⁻¹ must stay positive for every h.
        return self.loss.constraints(x, _damped(metric, h * jnp.maximum(curvature, 0)), self.rank, frame.near)

    def _step_metric(self, x: Vector, metric: mf.AbstractMetric, t: Any, h: Array) -> mf.AbstractMetric:
        return _damped(metric, h * self._sharpness_curvature(x, metric, t))

    def _sharpness_hessian(self, x: Vector, metric: mf.AbstractMetric, t: Any) -> Float[Array, "p p"]:
        scale = self.hessian_scale * self.optimizer.pace(t) ** 2
        found = second_order.sharpness_hessian(self.loss, x, metric)
        assert found is not None
        return scale * found + self._decay_hessian(metric, t)

    def _decay_hessian(self, metric: mf.AbstractMetric, t: Any) -> Any:
        """s S^-½ ω S^-½, p×p."""
        if not self.optimizer.decays:
            return 0.0
        roots = metric.inv_sqrt(jnp.eye(self.chart.size))
        return self.optimizer.pace(t) * roots.T @ scale_rows(self.optimizer.decay(self.chart), roots)

    def _sharpness_curvature(self, x: Vector, metric: mf.AbstractMetric, t: Any) -> Vector:
        scale = self.hessian_scale * self.optimizer.pace(t) ** 2
        curvature = scale * second_order.sharpness_curvature(self.loss, x, metric)
        if not self.optimizer.decays:
            return curvature
        # Before anything negative is cut off: what decay adds is what a sparse end is convex by.
        return curvature + self.optimizer.pace(t) * self.optimizer.decay(self.chart) / metric.entries()

    def relaxed(self, x: Vector, v: PyTree, t: Any, h: Any) -> PyTree:
        """v at t + h from v at t if x stays: v + (V(Σ) − v)(1 − e^{−ch}), exactly."""
        return self.optimizer.relaxed(v, self.equilibrium(x), t, h)

    def diffusion(self, x: Vector, normal: Any, t: Any) -> Float[Array, "p r"]:
        """s Π S B; without columns, (p, 0), where nothing diffuses (label noise)."""
        if not self.diffuses:
            return jnp.zeros((x.shape[0], 0), x.dtype)
        return self.optimizer.pace(t) * second_order.tangential_factor(normal, self.factor(x))

    def drift(self, x: Vector, normal: Any, t: Any) -> Vector:
        """½ s² ∂²Φ_S[SΣS] − s Π ω x, with the Itô term normal to Γ that tangential noise causes."""
        drift = self.tangential_drift(x, normal, t)
        if not self.diffuses:
            return drift
        # The whole Itô drift, for `coefficients`. Steps leave the second term out, as their return to Γ supplies it.
        return drift + self.optimizer.pace(t) ** 2 * second_order.normal_drift(self.loss, x, normal, self.factor(x))

    def stillness(self, x: Vector, v: PyTree, t: Any, far: Vector, accuracy: float = TIGHT) -> tuple[Array, Array]:
        """|dζ/dt|_{S⁻¹} of a flow without diffusion, and a number without units that vanishes where it is stationary.

        That is the larger of |v − V(Σ)|/|V(Σ)| and of |dζ/dt|_{S⁻¹} times the time |ζ|²/(¼ tr S^½ΣS^½), the one in
        which the flow crosses its own size |ζ| = |x|_{S⁻¹} + |x − far|_{S⁻¹}: under label noise the logarithmic
        derivative of ⟨H, S⟩ along Γ.
        """
        metric = self.metric(v)
        drift = self.tangential_drift(x, self.frame(x, v, resolved=True), t, accuracy)
        speed = jnp.linalg.norm(metric.inv_sqrt(drift))
        # Without the second part a flow that nears the origin of its coordinates would count as still.
        size = jnp.linalg.norm(metric.inv_sqrt(x)) + jnp.linalg.norm(metric.inv_sqrt(x - far))
        power = 0.25 * self.power(x, metric.sqrt)
        target = self.equilibrium(x)
        lag = _norm(jax.tree.map(jnp.subtract, v, target)) / jnp.maximum(_norm(target), jnp.finfo(x.dtype).tiny)
        return speed, jnp.maximum(speed * size / power, lag)

    def crossing_time(self, x: Vector, metric: mf.AbstractMetric) -> Array:
        """|x|²_{S⁻¹}/(¼ tr S^½ΣS^½), the slow time in which a flow crosses its own size."""
        return jnp.sum(metric.inv_sqrt(x) ** 2) / (0.25 * self.power(x, metric.sqrt))

    def v_drift(self, x: Vector, v: PyTree, t: Any) -> PyTree:
        """c (V(Σ) − v); zero in the quasi-static limit, where v has no motion of its own."""
        if self.optimizer.quasi_static:
            return jax.tree.map(jnp.zeros_like, v)
        rate = self.optimizer.rate(t)
        return jax.tree.map(lambda target, now: rate * (target - now), self.equilibrium(x), v)


def _damped(metric: mf.AbstractMetric, damping: Vector) -> mf.AbstractMetric:
    damped = metric.damped(damping)
    assert damped is not None
    return damped


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), jnp.zeros(())))


# Compiled, as is all that evaluates the loss outside of runs: eagerly it costs seconds on large models.
@compiled_once
def noise_at(sde: SlowSDE, x: Vector) -> tuple[Array, PyTree]:
    """|B(x)|, Frobenius, not finite where B is not; and V(Σ(x)), the state v0 that a run starts with by default."""
    return jnp.sqrt(sde.power(x, lambda b: b)), sde.equilibrium(x)


def equilibrium(sde: SlowSDE, x: Vector) -> PyTree:
    """V(Σ(x)), compiled."""
    return noise_at(sde, x)[1]


def slow_sde(problem: AbstractProblem, optimizer: AGM, chart: Coordinates, route: str | Route = "auto") -> SlowSDE:
    """The slow SDE of `optimizer` on `problem`; ValueError if the problem has no noise or an unsuitable one."""
    if not isinstance(problem, AbstractProblem):
        raise ValueError(
            f"problem={shown(problem)} must be a Problem, LeastSquares, Classification, EmpiricalRisk or "
            "from_sympy(...)."
        )
    if not isinstance(optimizer, AGM):
        raise ValueError(f"optimizer={shown(optimizer)} must be an AGM, such as sgd(), adam(c=1.0) or AGM(V, S, c).")
    # Refused here, before any shape is computed: without noise the slow clock stands still.
    if problem.noise is None:
        raise ValueError(
            "problem has no noise, and without noise nothing moves on the slow clock. Pass noise=LabelNoise(...), "
            "GaussianNoise(...) or MinibatchNoise(...) to the problem."
        )
    problem.noise.check(problem)
    problem.check_form(chart)
    return SlowSDE(problem, _with_array_rates(optimizer), problem.flat_loss(chart, route))


def _with_array_rates(optimizer: AGM) -> AGM:
    # Numbers as arrays, so that compiled code serves every c; an infinite c and no weight decay select other code.
    # `jnp.asarray` of a number would compile a program.
    c = optimizer.c if optimizer.quasi_static else jax.device_put(optimizer.c)
    decay = jax.device_put(optimizer.weight_decay) if optimizer.decays else 0.0
    return eqx.tree_at(lambda o: (o.c, o.b1, o.weight_decay), optimizer, (c, jax.device_put(optimizer.b1), decay))

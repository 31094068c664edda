"""The pair (ζ, v) as the integrators see it, and the slow SDE as Diffrax terms."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree

from manifolds.maps.return_map import gauss_newton_return
from manifolds.support.arrays import all_finite

from ..slow_sde import SlowSDE

State = tuple[Float[Array, " p"], PyTree]  # (ζ, v); v is None where it has no motion of its own


class SlowState(eqx.Module):
    """How the integrators see the pair (ζ, v), and when a point still counts as a regular point of Γ."""

    sde: SlowSDE
    floor: Float[Array, ""]  # eigenvalues of H' below this mean that the rank was lost

    def v(self, state: State) -> PyTree:
        """The optimizer state: its own variable, or V(Σ(ζ)) in the quasi-static limit and for a stateless method."""
        x, v = state
        return self.sde.equilibrium(x) if v is None else v

    def initial(self, x: Float[Array, " p"], v: PyTree) -> State:
        """The state at a point of Γ."""
        return x, None if self.sde.optimizer.quasi_static else or_none(v)

    def returned(self, state: State, near: Any = None, metric: Any = None) -> tuple[State, Bool[Array, ""]]:
        """The state with ζ returned to Γ in the metric S(v), or another, and whether it arrived at a regular point;
        `near` preconditions, if it is given, see `AbstractLoss.nearby`."""
        x, v = state
        loss, metric = self.sde.loss, self.sde.metric(self.v(state)) if metric is None else metric
        # A flow that counts its rank anew may be solved with a kernel nearby; at a fixed rank eigenpairs are needed to
        # cut at it.
        if self.sde.rank is None and near is None:
            near = loss.nearby(x, metric)
        found = gauss_newton_return(loss, x, metric, self.sde.rank, near=near)
        regular = found.converged & (found.smallest > self.floor) & jnp.all(jnp.isfinite(found.point))
        # Where the return failed the point stays as it was: NaN would spread to the error, which must say "shorter".
        return (jnp.where(regular, found.point, x), v), regular


LEAP = 1e-4  # how far, relative to |x|, a return may always lead: what is still moves by rounding alone


def unbroken(start: Array, moved: Array, end: Array, most: float = 1.0) -> Bool[Array, ""]:
    """Whether the return of a step, from where it `moved` to its end, is shorter than the step, or than so many.

    On a smooth loss a tangential step leaves Γ by its square, so that a short one is. Over a jump of the loss, as of
    `jnp.where`, the return leads to another manifold however short the step is: paths once moved by ½ in no time.
    """
    length = jnp.linalg.norm(end - moved)
    return length <= most * jnp.linalg.norm(moved - start) + LEAP * jnp.linalg.norm(start)


def finite_end(y0: State, y1: State, regular: Bool[Array, ""]) -> tuple[State, Bool[Array, ""]]:
    """y1 and `regular` if y1 is finite; else y0 and False: from an infinite end the controller would take NaN for the
    next step length and never shrink the step."""
    finite = all_finite(y1)
    return jax.tree.map(lambda before, after: jnp.where(finite, after, before), y0, y1), regular & finite


def scaled_error(slow: SlowState, error: Any, y0: State, y1: State, rtol: Any, regular: Bool[Array, ""]) -> State:
    """Local errors in units of what `rtol` allows, infinite where the step did not end at a regular point of Γ.

    For ζ the unit is rtol·(|ξ_i| + rms ξ) with ξ = S⁻¹ζ: for Adam S⁻¹ is about (αH_ii)^½, so that S⁻¹δζ is what an
    error does to the predictions. A coordinate that is driven to zero vanishes like a root, ξ ∝ ζ_i², and would
    otherwise be followed to no purpose; ζ_i itself is held to √rtol. The state v has the units of a squared gradient
    and acts through √v, so that √v_i is allowed rtol·(√v_i + rms √v): v_i itself 2 √v_i times that.
    """

    def lower(z: Array) -> Array:
        return metric.inv_sqrt(metric.inv_sqrt(z))

    metric = slow.sde.metric(slow.v(y1))
    (x_error, v_error), (x0, v0), (x1, v1) = error, y0, y1
    fine = x_error_ratio(lower(x_error), lower(x0), lower(x1), rtol)
    coarse = x_error_ratio(x_error, x0, x1, jnp.sqrt(rtol))
    x_ratio = jnp.maximum(fine, coarse)

    def v_ratio(e: Array, before: Array, after: Array) -> Array:
        size = jnp.sqrt(jnp.maximum(jnp.abs(before), jnp.abs(after)))
        allowed = rtol * (size + _rms(size))
        # (√v + a)² − v = a(2√v + a): the change of v that moves √v by what is allowed, also where v = 0.
        return jnp.abs(e) / (allowed * (2 * size + allowed) + jnp.finfo(e.dtype).tiny)

    ratios = x_ratio, jax.tree.map(v_ratio, v_error, v0, v1)
    # In these units the controllers have rtol = 0 and atol = 1.
    return jax.tree.map(lambda ratio: jnp.where(regular & jnp.isfinite(ratio), ratio, jnp.inf), ratios)


def x_error_ratio(error: Array, before: Array, after: Array, rtol: Any) -> Array:
    """|error_i| over rtol·(|x_i| + rms x)."""
    size = jnp.maximum(jnp.abs(before), jnp.abs(after))
    return jnp.abs(error) / (rtol * (size + _rms(size)) + jnp.finfo(error.dtype).tiny)


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(x**2))


def or_none(v: PyTree) -> PyTree:
    """v, or None if it has no leaves: what is saved of an optimizer without a state."""
    return v if jax.tree.leaves(v) else None


class SlowFlow(eqx.Module):
    """The vector field of the slow ODE (label noise): dζ/dt = −(α/4) Π S T[S], dv/dt = c (αV(H) − v)."""

    slow: SlowState

    def __call__(self, t: Any, state: State, args: Any) -> State:
        sde = self.slow.sde
        x, v = state
        normal = sde.frame(x, self.slow.v(state))
        return sde.tangential_drift(x, normal, t), None if v is None else sde.v_drift(x, v, t)


class SlowDiffusion(eqx.Module):
    """The diffusion of the slow SDE as a linear operator dW ↦ (Π S B dW, 0)."""

    slow: SlowState

    def __call__(self, t: Any, state: State, args: Any) -> lx.AbstractLinearOperator:
        x, v = state
        columns = self.slow.sde.diffusion(x, self.slow.sde.normal_space(x, self.slow.v(state)), t)
        return lx.FunctionLinearOperator(
            lambda dW: (columns @ dW, jax.tree.map(jnp.zeros_like, v)),
            jax.ShapeDtypeStruct(columns.shape[1:], columns.dtype),
        )

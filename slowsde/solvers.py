"""Diffrax solvers whose every step ends on Γ, by the Gauss–Newton return in the current metric S(v).

`ReturningSolver` wraps a Runge–Kutta method for the flow without diffusion; `ManifoldEuler` steps the slow SDE, where
the return also supplies the Itô term normal to Γ.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from manifolds.return_map import gauss_newton_return

from .coefficients import SlowSDE

State = tuple[Float[Array, " p"], PyTree]  # (ζ, v); v is None where it has no motion of its own


class SlowState(eqx.Module):
    """How the integrators see the pair (ζ, v), and when a point still counts as a regular point of Γ."""

    sde: SlowSDE
    floor: Float[Array, ""]  # eigenvalues of H' below this mean that the rank was lost

    def v(self, state: State) -> PyTree:
        """The optimizer state: its own variable, or V(Σ(ζ)) in the quasi-static limit and for a stateless method."""
        x, v = state
        return _or_none(self.sde.equilibrium(x)) if v is None else v

    def initial(self, x: Float[Array, " p"], v: PyTree) -> State:
        """The state at a point of Γ."""
        return x, None if self.sde.optimizer.quasi_static else _or_none(v)

    def returned(self, state: State) -> tuple[State, Bool[Array, ""]]:
        """The state with ζ returned to Γ in the metric S(v), and whether it arrived at a regular point."""
        x, v = state
        found = gauss_newton_return(self.sde.loss, x, self.sde.metric(self.v(state)), self.sde.rank)
        regular = found.converged & (found.smallest > self.floor) & jnp.all(jnp.isfinite(found.point))
        return (jnp.where(regular, found.point, x), v), regular


def _or_none(v: PyTree) -> PyTree:
    """v, or None if it has no leaves: Diffrax cannot save an empty tuple."""
    return v if jax.tree.leaves(v) else None


class SlowFlow(eqx.Module):
    """The vector field of the slow ODE (label noise): dζ/dt = −(α/4) Π S T[S], dv/dt = c (αV(H) − v)."""

    slow: SlowState

    def __call__(self, t: Any, state: State, args: Any) -> State:
        sde = self.slow.sde
        x, v = state
        normal = sde.normal_space(x, self.slow.v(state))
        return sde.tangential_drift(x, normal), None if v is None else sde.v_drift(x, v)


class SlowDiffusion(eqx.Module):
    """The diffusion of the slow SDE as a linear operator dW ↦ (Π S B dW, 0)."""

    slow: SlowState

    def __call__(self, t: Any, state: State, args: Any) -> lx.AbstractLinearOperator:
        x, v = state
        columns = self.slow.sde.diffusion(x, self.slow.sde.normal_space(x, self.slow.v(state)))
        return lx.FunctionLinearOperator(
            lambda dW: (columns @ dW, jax.tree.map(jnp.zeros_like, v)),
            jax.ShapeDtypeStruct(columns.shape[1:], columns.dtype),
        )


class ReturningSolver(dfx.AbstractAdaptiveSolver):
    """`solver` with every step returned to Γ; a step from which the return fails is rejected, so that it shrinks.

    The order is that of `solver`: a point within O(h^{q+1}) of Γ moves by as much.
    """

    solver: dfx.AbstractAdaptiveSolver
    slow: SlowState

    @property
    def term_structure(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.interpolation_cls

    def order(self, terms: Any) -> int | None:
        return self.solver.order(terms)

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> Any:
        return self.solver.init(terms, t0, t1, y0, args)

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return self.solver.func(terms, t0, y0, args)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: Any, made_jump: Any) -> Any:
        y1, error, dense_info, solver_state, result = self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)
        y1, regular = self.slow.returned(y1)
        error = jax.tree.map(lambda e: jnp.where(regular & jnp.isfinite(e), e, jnp.inf), error)
        return y1, error, dense_info, solver_state, result


class ManifoldEuler(dfx.AbstractItoSolver):
    """Tangential Euler–Maruyama with the return to Γ: weak order 1, strong order ½ for the slow SDE (Itô).

        x* = ζ − ½ Π S T[C] h + Π S B ΔW,     ζ₊ = return of x* in the metric S,     v₊ = V(Σ) + (v − V(Σ)) e^{−ch}

    The return has the second derivative of Φ_S along Γ, so it adds the normal drift −½ S^½(H')⁺S^½ T[Σ_∥] h by itself;
    the frozen-ζ equation for v is solved exactly, so that a large c does not limit the step.

    A step along which the last eigenvalue of H', continued linearly, would vanish ends with `dt_min_reached`.
    """

    slow: SlowState

    term_structure: ClassVar = dfx.MultiTerm[tuple[dfx.ODETerm, dfx.ControlTerm]]
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        return 1

    def strong_order(self, terms: Any) -> float:
        return 0.5

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> None:
        return None

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return terms.terms[0].vf(t0, y0, args)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: None, made_jump: Any) -> Any:
        time, noise = terms.terms
        h, dW = time.contr(t0, t1), noise.contr(t0, t1)
        sde = self.slow.sde
        x, v = y0
        normal = sde.normal_space(x, self.slow.v(y0))
        move = h * sde.tangential_drift(x, normal) + sde.diffusion(x, normal) @ dW
        x_star = x + move
        found = gauss_newton_return(sde.loss, x_star, normal.metric, sde.rank)
        regular = found.converged & (found.smallest > self.slow.floor) & jnp.all(jnp.isfinite(found.point))
        if v is not None:
            kept = jnp.exp(-sde.optimizer.c * h)
            v = jax.tree.map(lambda target, now: target + kept * (now - target), sde.equilibrium(x), v)
        y1 = (found.point, v)
        result = dfx.RESULTS.where(regular, dfx.RESULTS.successful, dfx.RESULTS.nonlinear_divergence)
        # A step of fixed length may jump over the point where the rank is lost: does the last eigenvalue reach zero?
        last = jnp.maximum(sde.rank, 1) - 1
        axis = normal.metric.sqrt(normal.lift(jax.nn.one_hot(last, normal.values.shape[0], dtype=x.dtype)[:, None]))
        slope = sde.loss.contract_factors(x, axis, axis) @ move
        result = dfx.RESULTS.where(normal.values[last] + slope > 0, result, dfx.RESULTS.dt_min_reached)
        return y1, None, dict(y0=y0, y1=y1), None, result


class StepBrownianPath(dfx.AbstractBrownianPath):
    """Brownian increments keyed by path and integer step of a fixed grid.

    The same key repeats the same path however a run is batched, chunked or resumed, at the cost of one fold of the key
    a step (a virtual Brownian tree is forty times slower, and is needed only for adaptive steps).
    """

    grid: Float[Array, " steps"]
    key: PRNGKeyArray
    size: int = eqx.field(static=True)
    levy_area: ClassVar = dfx.BrownianIncrement

    @property
    def t0(self) -> Array:
        return self.grid[0]

    @property
    def t1(self) -> Array:
        return self.grid[-1]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Float[Array, " r"]:
        step = jnp.searchsorted(self.grid, (t0 + t1) / 2)
        increment = jr.normal(jr.fold_in(self.key, step), (self.size,), self.grid.dtype)
        return jnp.sqrt(t1 - t0) * increment

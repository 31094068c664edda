"""The slow ODE of noise that does not diffuse, with adaptive steps."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .solve import Ending, Method, Saved, Solved, solve_path
from .solvers.explicit import ReturningSolver
from .solvers.implicit import ExtrapolatedImplicit
from .solvers.landing import LandingController
from .solvers.state import SlowFlow, SlowState, State


def follow(
    slow: SlowState,
    state0: State,
    times: np.ndarray,
    interval: tuple[float, float],
    method: Method,
    shown: dfx.AbstractProgressMeter[Any],
) -> Solved:
    """The slow ODE of noise that does not diffuse, by "tsit5", "implicit" or "auto", saved at `times`.

    "auto" is implicit wherever the metric can be damped: there it takes less time for the same error even on flows that
    are hardly stiff, and follows a singular start, where Runge–Kutta methods do not see their own error.
    """
    dtype = state0[0].dtype
    solver = chosen_solver(slow, state0, method.solver)
    # A singular start needs steps that are short against its own scale of time, in which v grows and S falls.
    shortest = (
        10 * jnp.finfo(dtype).eps * (interval[1] - interval[0]) * jnp.minimum(1, start_contrast(slow, state0) ** -2)
    )
    # Numbers as arrays: one compilation serves all.
    saved, ending = _flow(
        slow,
        state0,
        jnp.asarray(times, dtype),
        jnp.asarray(interval, dtype),
        jnp.asarray(above_rounding(method.rtol, dtype), dtype),
        shortest.astype(dtype),
        solver,
        max_steps=method.max_steps,
        shown=shown,
    )
    return Solved(times, saved, ending, {"solver": solver})


def above_rounding(rtol: float, dtype: Any) -> float:
    """A tolerance that rounding allows to be met."""
    return max(rtol, 100 * float(jnp.finfo(dtype).eps))


def chosen_solver(slow: SlowState, state: State, solver: str) -> str:
    """ "implicit" or "tsit5"; ValueError if `solver` is implicit and the metric cannot be damped."""
    suits = slow.sde.has_sharpness and slow.sde.metric(slow.v(state)).damped(jnp.zeros_like(state[0])) is not None
    if solver == "implicit" and not suits:
        raise ValueError("solver='implicit' needs a metric that can be damped: diagonal, as Adam's; use 'auto'.")
    return "tsit5" if solver == "tsit5" or not suits else "implicit"


@eqx.filter_jit
def start_contrast(slow: SlowState, state: State) -> Array:
    """|S(v) B| over |S(V(Σ)) B|: huge where v starts from 0, as S falls at once from 1/ε, over times ∝ contrast⁻²/c."""
    sde, (x, _) = slow.sde, state
    return jnp.sqrt(sde.power(x, sde.metric(slow.v(state))) / sde.power(x, sde.metric(sde.equilibrium(x))))


@eqx.filter_jit
def _flow(
    slow: SlowState,
    state0: State,
    times: Float[Array, " T"],
    interval: Float[Array, " 2"],
    rtol: Array,
    shortest: Array,
    method: str,
    *,
    max_steps: int,
    shown: dfx.AbstractProgressMeter[Any],
) -> tuple[Saved, Ending]:
    controller: Any = dfx.PIDController(rtol=0.0, atol=1.0, dtmin=shortest, force_dtmin=False)
    if method == "tsit5":
        solver: Any = ReturningSolver(dfx.Tsit5(), slow, rtol)
    else:
        solver = ExtrapolatedImplicit(slow, rtol)
        controller = LandingController(controller, times)  # it has no dense output of its order
    saved, ending = solve_path(
        slow,
        dfx.ODETerm(SlowFlow(slow)),
        solver,
        controller,
        state0,
        times,
        (interval[0], interval[1]),
        max_steps,
        shown,
    )
    return jax.tree.map(lambda leaf: leaf[None], (saved, ending))

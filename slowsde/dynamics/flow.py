"""The slow ODE of noise that does not diffuse, with adaptive steps."""

from functools import partial
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .solve import Ending, Method, Saved, Solved, patiently, solve_path
from .solvers.explicit import ReturningSolver
from .solvers.impatient import ImpatientController
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
    chosen = chosen_solver(slow, state0, method.solver)
    # A singular start needs steps that are short against its own scale of time, in which v grows and S falls.
    shortest = (
        10 * jnp.finfo(dtype).eps * (interval[1] - interval[0]) * jnp.minimum(1, start_contrast(slow, state0) ** -2)
    )
    # Numbers as arrays: one compilation serves all.
    solve = partial(
        _flow,
        slow,
        state0,
        jnp.asarray(times, dtype),
        jnp.asarray(interval, dtype),
        jnp.asarray(above_rounding(method.rtol, dtype), dtype),
        shortest.astype(dtype),
        chosen,
        max_steps=method.max_steps,
        shown=shown,
    )
    found = patiently(slow, solve, lambda found: found[1])
    saved, ending = jax.tree.map(lambda leaf: leaf[None], found)
    return Solved(times, saved, ending, chosen.stats())


def above_rounding(rtol: float, dtype: Any) -> float:
    """A tolerance that rounding allows to be met."""
    return max(rtol, 100 * float(jnp.finfo(dtype).eps))


class Chosen(NamedTuple):
    """The solver of a flow, and whether its damping couples parameters."""

    name: str  # "implicit" or "tsit5"
    coupled: bool = False

    def stats(self) -> dict[str, Any]:
        """What a run tells of it."""
        return {"solver": self.name, "coupled": self.coupled}

    def made(self, slow: SlowState, rtol: Any) -> Any:
        """The Diffrax solver."""
        if self.name == "tsit5":
            return ReturningSolver(dfx.Tsit5(), slow, rtol)
        return ExtrapolatedImplicit(slow, rtol, coupled=self.coupled)


def chosen_solver(slow: SlowState, state: State, solver: str) -> Chosen:
    """What `solver` stands for here; ValueError if it is implicit and the steps cannot be damped.

    The second derivative of the sharpness is diagonal for diagonal networks, and cheap for any. Where it couples
    parameters its diagonal damps too little at sparse and low-rank ends, where S reaches 1/ε (a factorization of 8×8
    took more than 1500 steps to t = 20 where the whole matrix takes 42), so that the whole is taken if it is small.
    """
    sde, x = slow.sde, state[0]
    if not sde.has_sharpness or solver == "tsit5":
        return Chosen("tsit5")
    metric = sde.metric(slow.v(state))
    diagonal = metric.damped(jnp.zeros_like(x)) is not None
    whole = sde.loss.has_whole_curvature(x)
    if whole and (not diagonal or bool(_couples(slow, state))):
        return Chosen("implicit", coupled=True)
    if diagonal:
        return Chosen("implicit")
    if solver == "implicit":
        raise ValueError(
            "solver='implicit' needs a metric that can be damped: a diagonal one, as Adam's, or a small problem (m "
            "residuals and p parameters with m p³ ≤ 5e8); use 'auto'."
        )
    return Chosen("tsit5")


@eqx.filter_jit
def _couples(slow: SlowState, state: State) -> Array:
    return slow.sde.loss.couples(state[0])


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
    chosen: Chosen,
    patience: Array,
    *,
    max_steps: int,
    shown: dfx.AbstractProgressMeter[Any],
) -> tuple[Saved, Ending]:
    controller: Any = dfx.PIDController(rtol=0.0, atol=1.0, dtmin=shortest, force_dtmin=False)
    controller = ImpatientController(controller, patience)
    if chosen.name == "implicit":
        controller = LandingController(controller, times)  # it has no dense output of its order
    return solve_path(
        slow,
        dfx.ODETerm(SlowFlow(slow)),
        chosen.made(slow, rtol),
        controller,
        state0,
        times,
        (interval[0], interval[1]),
        max_steps,
        shown,
    )

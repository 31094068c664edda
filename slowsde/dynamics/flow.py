"""The slow ODE of noise that does not diffuse, with adaptive steps."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from manifolds.support.arrays import filled
from manifolds.support.compilation import compiled, compiled_once, form_of
from manifolds.support.precision import on_device, to_numpy

from ..support.pieces import Pieces
from .solve import Ending, Method, Saved, Solved, kink_of, saved_at
from .solvers.explicit import ReturningSolver
from .solvers.implicit import ExtrapolatedImplicit
from .solvers.state import SlowFlow, SlowState, State
from .stepping import ENDLESS, PATIENCE, Limits, Way, advance, ending_of, unfinished, way_from

# Of a flow on its way, as many steps as this and with that patience: where it is, whether at its end, and how far.
Stretch = Callable[[Way, int, int], tuple[Way, bool, float | str]]


def follow(
    slow: SlowState,
    state0: State,
    times: np.ndarray,
    interval: tuple[float, float],
    method: Method,
    pieces: Pieces,
    stage: str = "flow",
) -> Solved:
    """The slow ODE of noise that does not diffuse, by "tsit5", "implicit" or "auto", saved at `times`.

    "auto" is implicit wherever the metric can be damped: there it takes less time for the same error even on flows that
    are hardly stiff, and follows a singular start, where Runge–Kutta methods do not see their own error.
    """
    dtype, scales = state0[0].dtype, start_scales(slow, state0)
    chosen = chosen_solver(slow, state0, method.solver, scales)
    t0, t1 = interval
    # A singular start needs steps that are short against its own scale of time, in which v grows and S falls.
    shortest = 10 * float(jnp.finfo(dtype).eps) * (t1 - t0) * min(1.0, scales.contrast**-2)
    # The times filled, so that another number of them seldom compiles anew.
    rows, limits = filled(times), limits_of(shortest, method.max_steps, dtype)
    numbers = on_device([np.asarray(number, dtype) for number in (rows, t1, above_rounding(method.rtol, dtype))])

    def flow(way: Way, bound: int, patience: int, save: bool = False) -> tuple[Way, Array, Saved, Ending]:
        limited, save_now = limits(bound, patience), on_device(np.asarray(save))
        return _flow(way, slow, *numbers, limited, save_now, chosen=chosen)  # pyright: ignore[reportCallIssue]

    def on(way: Way, steps: int, patience: int) -> tuple[Way, bool, float]:
        way, finished, *_ = flow(way, int(way.count) + steps, patience)
        return way, bool(finished), (float(way.t) - t0) / (t1 - t0)

    first = way_from(state0, chosen.memory(slow, state0), t0, first_step(scales, t1 - t0), rows)
    way, patience = patiently(slow, first, on, pieces, stage)
    _, _, *found = flow(way, 0, patience, save=True)
    saved, ending = jax.tree.map(lambda leaf: np.asarray(leaf)[None], found)
    saved = jax.tree.map(lambda leaf: leaf[:, : times.size], saved)
    return Solved(times, saved, ending, chosen.stats())


def limits_of(shortest: float, max_steps: int, dtype: Any) -> Callable[[int, int], Limits]:
    """The `Limits` of a flow, once a bound on its steps and a patience are given."""

    def limits(bound: int, patience: int) -> Limits:
        numbers = np.asarray(shortest, dtype), *(np.asarray(number) for number in (patience, max_steps, bound))
        return Limits(*on_device(numbers))

    return limits


def patiently(
    slow: SlowState,
    first: Way,
    on: Callable[[Way, int, int], tuple[Way, bool, float | str]],
    pieces: Pieces,
    stage: str,
) -> tuple[Way, int]:
    """Where on(way, steps, patience) leads to from `first`, in pieces, and the patience that it took.

    With an end to patience first, as a flow would slide along a kink for ever; without one where the loss is smooth.
    """
    way = pieces.carry_out(stage, first, lambda way, steps: on(way, steps, PATIENCE))
    if pieces.interrupted or int(way.excess) <= PATIENCE or kink_of(slow, way.state, way.t) is not None:
        return way, PATIENCE
    return pieces.carry_out(f"{stage}, on", way, lambda way, steps: on(way, steps, ENDLESS)), ENDLESS


def above_rounding(rtol: float, dtype: Any) -> float:
    """A tolerance that rounding allows to be met."""
    return max(rtol, 100 * float(jnp.finfo(dtype).eps))


class Scales(NamedTuple):
    """What a start says about the flow from there."""

    contrast: float  # |S(v) B| over |S(V(Σ)) B|: huge where v starts from 0, as S falls at once from 1/ε
    falling: float  # the time in which it falls, contrast⁻²/c; infinite where v has no motion of its own
    crossing: float  # the time in which a flow crosses its own size
    couples: bool  # whether second derivatives of residuals couple parameters


class Chosen(NamedTuple):
    """The solver of a flow, and whether its damping couples parameters."""

    name: str  # "implicit" or "tsit5"
    coupled: bool = False

    @property
    def lands(self) -> bool:
        """Whether its steps end on the times to be saved: the implicit one has no dense output of its order."""
        return self.name == "implicit"

    def stats(self) -> dict[str, Any]:
        """What a run tells of it."""
        return {"solver": self.name, "coupled": self.coupled}

    def made(self, slow: SlowState, rtol: Any) -> Any:
        """The Diffrax solver."""
        if self.name == "tsit5":
            return ReturningSolver(dfx.Tsit5(), slow, rtol)
        return ExtrapolatedImplicit(slow, rtol, coupled=self.coupled)

    def memory(self, slow: SlowState, state: State) -> Any:
        """The shapes and types of what the solver remembers from step to step."""
        return _remembered(self, slow, state)


@form_of
def _remembered(chosen: Chosen, slow: SlowState, state: State) -> Any:
    t = jnp.zeros((), state[0].dtype)
    return chosen.made(slow, t).init(dfx.ODETerm(SlowFlow(slow)), t, t, state, None)


def chosen_solver(slow: SlowState, state: State, solver: str, scales: Scales) -> Chosen:
    """What `solver` stands for here; ValueError if it is implicit and the steps cannot be damped.

    The second derivative of the sharpness is diagonal for diagonal networks, and cheap for any. Where it couples
    parameters its diagonal damps too little at sparse and low-rank ends, where S reaches 1/ε (a factorization of 8×8
    took more than 1500 steps to t = 20 where the whole matrix takes 42), so that the whole is taken if it is small.
    """
    sde, x = slow.sde, state[0]
    if not sde.has_sharpness or solver == "tsit5":
        return Chosen("tsit5")
    diagonal = _damped(slow, state) is not None
    whole = sde.loss.has_whole_curvature(x)
    if whole and (not diagonal or scales.couples):
        return Chosen("implicit", coupled=True)
    if diagonal:
        return Chosen("implicit")
    if solver == "implicit":
        raise ValueError(
            "solver='implicit' needs a metric that can be damped: a diagonal one, as Adam's, or a small problem (m "
            "residuals and p parameters with m p³ ≤ 5e8); use 'auto'."
        )
    return Chosen("tsit5")


@form_of
def _damped(slow: SlowState, state: State) -> Any:
    return slow.sde.metric(slow.v(state)).damped(state[0])


def start_scales(slow: SlowState, state: State) -> Scales:
    """The `Scales` of a state."""
    contrast, crossing, couples = to_numpy(_scales(slow, state))
    optimizer = slow.sde.optimizer
    still = optimizer.quasi_static or not jax.tree.leaves(state[1])
    # Adam: v = ctV(Σ) outgrows ε² at t = ε²/(cV), and |S(0)B|/|S(V)B| is about √V/ε.
    falling = np.inf if still else 1 / (float(optimizer.c) * float(contrast) ** 2)
    return Scales(float(contrast), falling, float(crossing), bool(couples))


@compiled_once
def _scales(slow: SlowState, state: State) -> tuple[Array, Array, Array]:
    sde, (x, _) = slow.sde, state
    v, target = slow.v(state), sde.equilibrium(x)
    metric, now, later = sde.metric(v), 1.0, 1.0
    if jax.tree.leaves(v):
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), v, target)
        now, later = jax.lax.map(lambda state: sde.power(x, sde.metric(state)), both)
    couples = sde.loss.couples(x) if sde.loss.has_whole_curvature(x) else jnp.asarray(False)
    return jnp.sqrt(jnp.asarray(now / later)), sde.crossing_time(x, metric), couples


def first_step(scales: Scales, length: float) -> float:
    """The length of the first step of a flow: a hundredth of the shortest time in which something changes."""
    return min(length, 0.01 * min(scales.crossing, scales.falling))


# Of functions of where a flow is, of a `SlowState`, and of more.
compiled_by_size = partial(compiled, once=lambda _, slow, *__, **___: slow.sde.loss.is_small)


@compiled_by_size
def _flow(
    way: Way,
    slow: SlowState,
    times: Float[Array, " T"],
    t1: Array,
    rtol: Array,
    limits: Limits,
    save: Array,
    *,
    chosen: Chosen,
) -> tuple[Way, Array, Saved, Ending]:
    """The flow on its way, as its limits allow; whether it is finished; what was saved, if it is to `save`; its end."""
    way = advance(slow, chosen.made(slow, rtol), way, t1, times, limits, lands=chosen.lands)
    ending = ending_of(way, t1, limits)

    def saved(state: State) -> Saved:
        regular = jnp.asarray(True)
        if not chosen.lands:  # an interpolant leaves Γ (a linear one was off by 6e-3)
            state, regular = slow.returned(state)
        found = saved_at(slow, state)
        return eqx.tree_at(lambda s: s.residual, found, jnp.where(regular, found.residual, jnp.nan))

    # Here, not in the loop: what is saved is computed in one place, and for a time that was reached.
    reached = (times <= ending.time) & jnp.append(True, times[1:] > times[:-1]) & save
    form = jax.eval_shape(saved, way.state)
    none = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.inf, leaf.dtype), form)
    found = jax.lax.map(lambda row: jax.lax.cond(row[0], saved, lambda _: none, row[1]), (reached, way.rows))
    lost = jnp.any(reached & ~jnp.isfinite(found.residual))
    ending = eqx.tree_at(lambda e: e.failed, ending, ending.failed | lost)
    return way, ~unfinished(way, t1, limits), found, ending

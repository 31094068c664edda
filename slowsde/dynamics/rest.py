"""The slow flow to its end: until it is stationary, and the way there at times that are known only then.

An extrapolated method with error control wanders about an end at 20 times its tolerance and never comes to rest. Where
the flow is nearly still, so that its basin is decided, plain implicit steps take over: their fixed points are exactly
the stationary points, and their length h grows as what is left falls (pseudo-transient continuation with switched
evolution relaxation; Kelley and Keyes, SIAM J. Numer. Anal. 35, 1998). With h large and v = V(Σ) a step minimizes a
quadratic model of ⟨H, S⟩ on Γ at the S of where it starts: Newton's step for SGD, iterative reweighting for Adam.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manifolds.normal.constraints import LOOSE, TIGHT
from manifolds.support.compilation import compiled_once
from manifolds.support.precision import on_device, to_numpy

from ..support.pieces import Pieces
from .flow import (
    Chosen,
    Scales,
    above_rounding,
    chosen_solver,
    compiled_by_size,
    first_step,
    follow,
    limits_of,
    patiently,
    start_scales,
)
from .result import Result
from .solve import Ending, Method, Saved, Solved, saved_at
from .solvers.implicit import ExtrapolatedImplicit
from .solvers.state import SlowState, State
from .stepping import Limits, Way, advance, ending_of, unfinished, way_from

NEARLY = 100.0  # a flow is nearly still at a stillness of this many tolerances rtol: it wanders at 20 of them
FAR = 1e3  # a flow that has gone this many times its size at the start leaves for infinity
LONG = 1e12  # as does one that moves after this many times the time in which it crosses its own size
DRIFTS = 0.1  # or one that the search for a rest takes this share of its size away, without one
CONTINUED = 1000  # plain implicit steps at most: linear convergence at a rate of 0.98 takes them to 1e-9
VANISHED = 1e-5  # what a coordinate is left with of its start and of the others that is on its way to zero
ROUNDED = 7  # roots of rounding: at a singular end r ∝ |δx|² does not tell x from what is nearer, relative to |x|
LONGEST = 1e8  # their length, in units of the same time: longer ones leave constraints to the ridge of their kernel


class Rest(NamedTuple):
    """Where a flow ended, and why there."""

    ending: Ending  # without a leading axis
    still: bool  # whether it is stationary there
    escapes: bool  # whether it leaves for infinity


def follow_to_rest(
    slow: SlowState, state0: State, t0: float, count: int, method: Method, pieces: Pieces, start: str = ""
) -> Solved:
    """The slow ODE until it is stationary, saved at `count` times of the way, the last of them its end; the names of
    its stages begin with `start`."""
    scales = start_scales(slow, state0)
    chosen = chosen_solver(slow, state0, method.solver, scales)
    rest = solve_to_rest(slow, state0, t0, method, chosen, scales, pieces, start)
    t1 = float(rest.ending.time)
    times = graded_times(t0, t1, count)
    if count == 2 or pieces.interrupted:  # nothing between start and end is asked for, or there is no time
        times = times[[0, -1]]
        found = _start_and_end(slow, state0, rest.ending, times, chosen)
    else:
        # Over the same stretch, but with ends of steps on the saved times.
        longer = method._replace(max_steps=2 * method.max_steps + count)
        found = follow(slow, state0, times, (t0, t1), longer, pieces, start + "flow to rest")
        found = found._replace(saved=_with_last(slow, found.saved, rest.ending.state))
        if bool(rest.ending.chattered):  # at a kink, which the second flow may not have met before its end
            found = found._replace(ending=_leading(rest.ending))
    moving = Result.ESCAPES if rest.escapes else Result.NOT_STATIONARY
    moving = Result.INTERRUPTED if pieces.interrupted else moving
    verdict = Result.SUCCESS if rest.still else moving
    about = found.stats | (_direction(slow, state0, rest.ending.state) if verdict == Result.ESCAPES else {})
    return found._replace(verdict=verdict, stats=about)


def _direction(slow: SlowState, start: State, end: State) -> dict[str, Any]:
    """The share of each leaf of params in the square of the way from start to end."""
    way = end[0] - start[0]
    parts = slow.sde.chart.unravel_arrays(way / jnp.linalg.norm(way))
    leaves = jax.tree_util.tree_flatten_with_path(parts)[0]
    return {"leaving": {jax.tree_util.keystr(path): float(jnp.sum(leaf**2)) for path, leaf in leaves}}


def graded_times(t0: float, t1: float, count: int) -> np.ndarray:
    """`count` times from t0 to t1, geometric over four decades: the flow is fast at first and slow at its end."""
    return t0 + (t1 - t0) * np.concatenate([[0.0], np.geomspace(1, 1e-4, count - 1)[::-1]])


def _with_last(slow: SlowState, saved: Saved, state: State) -> Saved:
    """`saved` with the state found at rest as its last: the steps between saved times end near it only."""

    def replaced(rows: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.concatenate([rows[:, :-1], np.asarray(end)[None, None]], axis=1)

    return jax.tree.map(replaced, saved, saved_at(slow, state))


def _start_and_end(slow: SlowState, state0: State, ending: Ending, times: np.ndarray, chosen: Chosen) -> Solved:
    ends = saved_at(slow, state0), saved_at(slow, ending.state)
    saved = jax.tree.map(lambda *leaves: np.stack(leaves)[None], *to_numpy(ends))
    # Too long is for the verdict to say: the last steps may have come to rest all the same.
    ending = eqx.tree_at(lambda e: e.failed, ending, ending.failed & ~ending.too_long)
    return Solved(times, saved, _leading(ending), chosen.stats())


def _leading(ending: Ending) -> Ending:
    """An ending of one path, with the axis of paths."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], ending)


def solve_to_rest(
    slow: SlowState,
    state0: State,
    t0: float,
    method: Method,
    chosen: Chosen,
    scales: Scales,
    pieces: Pieces,
    start: str = "",
) -> Rest:
    """The slow ODE until it is stationary to `tol` (see `SlowSDE.stillness`), leaves, or takes too long."""
    dtype = state0[0].dtype
    rtol, tol = above_rounding(method.rtol, dtype), max(method.tol, 1e3 * float(jnp.finfo(dtype).eps))
    last = chosen_solver(slow, state0, "auto", scales) if chosen.name == "tsit5" else chosen
    implicit = last.name == "implicit"
    # A flow without an implicit step has nothing but a tighter tolerance to come to rest by.
    nearly = max(tol, NEARLY * rtol) if implicit else tol
    rtol = rtol if implicit else above_rounding(min(rtol, tol / NEARLY), dtype)
    h0 = first_step(scales, np.inf)
    numbers = on_device([np.asarray(number, dtype) for number in (t0, rtol, nearly)])
    # Whether a flow is nearly still is asked at every step.
    accuracy = LOOSE if nearly >= 1e3 * LOOSE else TIGHT
    limits = limits_of(float(jnp.finfo(dtype).eps) * h0, method.max_steps, dtype)

    def flow(way: Way, bound: int, patience: int) -> tuple[Way, Array, Ending, Array]:
        given = slow, state0, *numbers, limits(bound, patience)
        return _until_still(way, *given, chosen=chosen, accuracy=accuracy)  # pyright: ignore[reportCallIssue]

    def on(way: Way, steps: int, patience: int) -> tuple[Way, bool, str]:
        way, finished, *_ = flow(way, int(way.count) + steps, patience)
        return way, bool(finished), f"{int(way.count)} of at most {method.max_steps} steps"

    first = way_from(state0, chosen.memory(slow, state0), t0, h0, np.zeros(0))
    way, patience = patiently(slow, first, on, pieces, start + "until still")
    _, _, ending, escapes = flow(way, 0, patience)
    if pieces.interrupted:
        return Rest(ending, False, False)

    def still_at(state: State) -> float:
        return float(stillness(slow, state0[0], state, ending.time)[1])

    begun = still_at(ending.state)
    nearly_still = begun <= nearly or not (bool(ending.failed) or bool(escapes))
    # From anywhere else plain steps would come to rest as well, in a basin that the flow has not chosen.
    if not (implicit and nearly_still):
        return Rest(ending, nearly_still, bool(escapes))
    # A flow may end so near to zeros that what is left of them is rounding: returns move them by 10⁻⁷, and no step
    # makes the flow stiller (AdamE ¼ wandered for 1000).
    vanished = _without_vanished(slow, ending.state, state0)
    if vanished is not None and still_at(vanished) <= tol:
        return Rest(eqx.tree_at(lambda e: e.state, ending, vanished), True, False)
    tolerances = tuple(on_device([np.asarray(number, dtype) for number in (rtol, nearly, tol)]))

    def search(at: Search, steps: int) -> tuple[Search, bool, str]:
        bound = on_device(np.asarray(int(at.count) + steps))
        at, finished = _search(at, slow, state0, ending.time, tolerances, bound, chosen=last)
        return at, bool(finished), f"{int(at.count)} of at most {CONTINUED} steps of the search for its rest"

    found = pieces.carry_out(start + "search", Search.begun(ending.state, begun), search)
    still = bool(found.stillness <= tol) or bool(found.there)
    # What is zero to rounding is zero at the end of the flow, if that is as still.
    zeros = _zeros(found.state)
    state = zeros if still_at(zeros) < float(found.stillness) else found.state
    # A unit that saturates wanders outwards with no end, on a slope that dies out exponentially.
    x, before = np.asarray(state[0]), np.asarray(ending.state[0])
    drifts = not still and float(np.linalg.norm(x - before)) > DRIFTS * float(np.linalg.norm(before))
    ending = eqx.tree_at(lambda e: (e.state, e.steps), ending, (state, ending.steps + found.count))
    return Rest(ending, still, bool(escapes) or drifts)


@compiled_by_size
def _until_still(
    way: Way,
    slow: SlowState,
    state0: State,
    t0: Array,
    rtol: Array,
    nearly: Array,
    limits: Limits,
    *,
    chosen: Chosen,
    accuracy: float,
) -> tuple[Way, Array, Ending, Array]:
    """The flow on its way to where it is nearly still or leaves, as its limits allow; whether it is finished; its end;
    whether it leaves."""
    size = jnp.linalg.norm(state0[0])
    crossing = slow.sde.crossing_time(state0[0], slow.sde.metric(slow.v(state0)))

    def left(t: Any, state: State) -> Array:
        return (jnp.linalg.norm(state[0]) > FAR * size) | (t - t0 > LONG * crossing)

    def at_rest(t: Array, state: State) -> Array:
        return (_stillness(slow, t, state, state0, accuracy) <= nearly) | left(t, state)

    never, solver, none = jnp.full_like(t0, jnp.inf), chosen.made(slow, rtol), jnp.zeros(0, t0.dtype)
    way = advance(slow, solver, way, never, none, limits, lands=chosen.lands, until=at_rest)
    ending = ending_of(way, never, limits)
    return way, ~unfinished(way, never, limits), ending, left(ending.time, ending.state)


class Search(NamedTuple):
    """The state of the search for a rest."""

    begin: State  # where it began
    state: State
    h: Array  # the length of the next step
    stillness: Array
    left: Array  # what the last step left of it, a share
    there: Array  # whether rounding keeps it from getting nearer
    count: Array

    @classmethod
    def begun(cls, state: State, stillness: float) -> "Search":
        """The search from a state, of which the length of the first step is not known yet."""
        dtype = state[0].dtype
        still, one = on_device((np.asarray(stillness, dtype), np.ones((), dtype)))
        return cls(state, state, one, still, one, *on_device((np.asarray(False), np.asarray(0))))


@compiled_by_size
def _search(
    first: Search,
    slow: SlowState,
    state0: State,
    t: Array,
    tolerances: tuple[Array, ...],
    bound: Array,
    *,
    chosen: Chosen,
) -> tuple[Search, Array]:
    """Plain implicit steps from where the flow is nearly still until it is still, or to number `bound`; and whether
    they have come to an end."""
    rtol, nearly, tol = tolerances
    crossing = slow.sde.crossing_time(first.begin[0], slow.sde.metric(slow.v(first.begin)))
    first = first._replace(h=jnp.where(first.count == 0, 0.1 * crossing, first.h))
    if not chosen.coupled:  # there multipliers of what vanishes would be noise in the exact Hessian
        slow = eqx.tree_at(lambda s: s.sde.loss, slow, slow.sde.loss.at_singular_ends())
    solver = ExtrapolatedImplicit(slow, rtol, coupled=chosen.coupled)
    rounded = ROUNDED * jnp.finfo(state0[0].dtype).eps ** 0.5

    def goes_on(at: Search) -> Array:
        return (at.stillness > tol) & ~at.there & (at.count < CONTINUED) & (at.h > 1e-12 * crossing)

    def step(at: Search) -> Search:
        new, falls = solver.plain_step(at.state, t, at.h)
        after = _stillness(slow, t, new, state0)
        left = after / at.stillness
        # One that climbs, is not a step on Γ, or stirs up what was still, is taken again at a fifth of its length.
        taken = falls & (after < jnp.maximum(3 * at.stillness, nearly))
        # A long step is Newton's: what it moves is how far off the end is. At rounding it gets no nearer.
        near = jnp.linalg.norm(new[0] - at.state[0]) < rounded * jnp.linalg.norm(at.state[0])
        there = taken & near & (left > 0.9) & (at.h > 10 * crossing) & (after < 1e3 * tol)
        # The less is left, the longer the steps, unless their length no longer matters: reweighting halves what is left
        # at any length, and longer steps lose digits (S spreads over decades).
        longer = jnp.where((left < 0.7) & (left > 0.95 * at.left), 1.0, jnp.clip(1.5 / left, 0.75, 15.0))
        h = jnp.minimum(at.h * longer, LONGEST * crossing)
        accepted = Search(at.begin, new, h, after, left, there, at.count + 1)
        refused = at._replace(h=at.h / 5, count=at.count + 1)
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), accepted, refused)

    end = jax.lax.while_loop(lambda at: goes_on(at) & (at.count < bound), step, first)
    return end, ~goes_on(end)


def _without_vanished(slow: SlowState, state: State, start: State) -> State | None:
    """`state` on Γ with zeros where x has vanished since the start, and v = V(Σ) there: not where x is small as it was,
    and may grow. None where it is not clear which have."""
    x, before, v = np.asarray(state[0]), np.abs(np.asarray(start[0])), state[1]
    size = np.sqrt(np.mean(x**2))
    gone = (np.abs(x) < VANISHED * before) & (np.abs(x) < VANISHED * size)
    # With some of them zero and others not yet the equations may leave no way to move, and what moves would look still.
    if np.any(~gone & (np.abs(x) < VANISHED**0.4 * size)):
        return None
    return _settled(slow, (on_device(np.where(gone, 0, x).astype(x.dtype)), v))


@compiled_once
def _settled(slow: SlowState, state: State) -> State:
    (x, _), _ = slow.returned(state)
    return slow.initial(x, slow.sde.equilibrium(x))


def _zeros(state: State) -> State:
    """`state` with what of x is zero to rounding set to zero."""
    x, v = np.asarray(state[0]), state[1]
    rounded = ROUNDED * float(np.finfo(x.dtype).eps) ** 0.5
    return on_device(np.where(np.abs(x) < rounded * np.sqrt(np.mean(x**2)), 0, x).astype(x.dtype)), v


def _stillness(slow: SlowState, t: Any, state: State, start: State, accuracy: float = TIGHT) -> Array:
    return slow.sde.stillness(state[0], slow.v(state), t, start[0], accuracy)[1]


@compiled_once
def stillness(slow: SlowState, x0: Array, state: State, t: Array) -> tuple[Array, Array]:
    """Speed and stillness of a flow from x0 at a state, see `SlowSDE.stillness`."""
    return slow.sde.stillness(state[0], slow.v(state), t, x0)

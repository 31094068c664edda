"""The loops over steps, around solvers with Diffrax's interface: adaptive ones of a flow, and those of a given grid.

Diffrax's own loop would do; it is several times the program of these, in which every kernel appears once, and compiles
again for every number of steps and of saved times.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from manifolds.support.arrays import all_finite
from manifolds.support.step_size import step_factor

from .solve import Ending, Saved, saved_at
from .solvers.state import SlowFlow, SlowState, State

PATIENCE = 100  # rejected steps beyond those accepted; smooth flows reject fewer than they accept
ENDLESS = np.iinfo(np.int32).max


class Limits(NamedTuple):
    """When a flow is given up: after too many steps, where they get too short, or where rejected steps outnumber
    accepted ones by more than a patience, counted anew wherever the difference falls to 0.

    A flow that meets a kink of its loss slides along it from side to side, two of three steps rejected, for ever.
    """

    shortest: Array
    patience: Array
    max_steps: int


class Way(NamedTuple):
    """A flow on its way, with adaptive steps."""

    t: Array
    h: Array  # the length of the next step
    state: State
    memory: PyTree  # of the solver
    count: Int[Array, ""]
    excess: Int[Array, ""]
    rests: Bool[Array, ""]
    fresh: Bool[Array, ""]  # whether the state is one that was not there before
    row: Int[Array, ""]  # of the next time to be saved
    rows: PyTree  # leaves (T, ...)
    seen: Any  # the state of the progress meter


def advance(
    slow: SlowState,
    solver: Any,
    state0: State,
    interval: tuple[Array, Array],
    h0: Array,
    times: Float[Array, " T"],
    limits: Limits,
    *,
    lands: bool,
    until: Callable[[Array, State], Array] | None = None,
    shown: dfx.AbstractProgressMeter[Any] | None = None,
) -> tuple[State, Ending]:
    """The flow from `interval[0]` to `interval[1]`, or until it rests: the states at `times`, leaves (T, ...), of which
    those that were not reached are state0, and the end.

    Steps h ← h `step_factor` for the root mean square of the solver's scaled errors. A solver that `lands` ends a whole
    number of steps on each of the times; the others are interpolated.
    """
    t0, t1 = interval
    terms, meter = dfx.ODETerm(SlowFlow(slow)), dfx.NoProgressMeter() if shown is None else shown
    order = solver.order(terms)
    ends = jnp.append(times, t1) if lands else t1[None]

    def unfinished(at: Way) -> Array:
        gets_on = (at.h >= limits.shortest) & (at.excess <= limits.patience) & (at.count < limits.max_steps)
        return ~at.rests & (at.t < t1) & gets_on

    def step(at: Way) -> Way:
        end = landing(at.t, at.h, ends)
        new, error, dense, memory, _ = solver.step(terms, at.t, end, at.state, None, at.memory, False)
        ratio = _root_mean_square(error)
        taken = ratio < 1
        factor = step_factor(ratio, taken, order)
        row, rows = at.row, at.rows
        if times.size:
            between = solver.interpolation_cls(t0=at.t, t1=end, **dense).evaluate
            reached = jnp.where(taken, end, -jnp.inf)
            row, rows = _written(row, rows, times, reached, (lambda _: new) if lands else between)
        t, state, memory = jax.tree.map(
            lambda a, b: jnp.where(taken, a, b), (end, new, memory), (at.t, at.state, at.memory)
        )
        excess = jnp.where(taken, jnp.maximum(at.excess - 1, 0), at.excess + 1)
        seen = meter.step(at.seen, (t - t0) / (t1 - t0))
        return Way(t, factor * (end - at.t), state, memory, at.count + 1, excess, at.rests, taken, row, rows, seen)

    def on(at: Way) -> Way:
        if until is None:
            return step(at)
        # Before the step, so that a flow that rests at its start stays there; once a state, as it takes the drift.
        rests = jax.lax.cond(at.fresh, until, lambda *_: jnp.asarray(False), at.t, at.state)
        return jax.lax.cond(rests, lambda: at._replace(rests=rests), lambda: step(at))

    no, zero = jnp.asarray(False), jnp.asarray(0)
    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times.size, *leaf.shape)), state0)
    row = jnp.asarray(jnp.sum(times <= t0), int)  # the start, where it is asked for
    memory = solver.init(terms, t0, t0 + h0, state0, None)
    first = Way(t0, h0, state0, memory, zero, zero, no, ~no, row, rows, meter.init())
    end = jax.lax.while_loop(unfinished, on, first)
    meter.close(end.seen)
    done = end.rests | (end.t >= t1)
    return end.rows, Ending(
        time=end.t,
        state=end.state,
        failed=~done,
        too_long=~done & (end.count >= limits.max_steps),
        jumped=no,
        chattered=~done & (end.excess > limits.patience),
        steps=end.count,
    )


def landing(t: Array, h: Array, ends: Float[Array, " T"]) -> Array:
    """The end of a step from t of length h or less, of which a whole number ends on the next of the ascending `ends`.

        h ← (T − t)/⌈(T − t)/h⌉     for the next time T

    Cutting only the last step before T would leave a sliver, from which the step size takes long to recover, or one
    below rounding, which looks like a failure.
    """
    target = ends[jnp.searchsorted(ends[:-1], t, side="right")]
    count = jnp.ceil((target - t) / h - 0.01)  # one per cent longer is no harm
    end = jnp.where(count > 1, t + (target - t) / count, target)
    return jnp.where(jnp.isfinite(target), end, t + h)


def _written(
    row: Array, rows: PyTree, times: Float[Array, " T"], reached: Array, state_at: Callable[[Array], State]
) -> tuple[Array, PyTree]:
    """`rows` with the states at all times up to `reached` from number `row` on, and the number of the next."""

    def due(at: tuple[Array, PyTree]) -> Array:
        return (at[0] < times.size) & (times[jnp.minimum(at[0], times.size - 1)] <= reached)

    def write(at: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        k, rows = at
        return k + 1, jax.tree.map(lambda all, leaf: all.at[k].set(leaf), rows, state_at(times[k]))

    return jax.lax.while_loop(due, write, (row, rows))


def _root_mean_square(error: PyTree) -> Array:
    leaves = jax.tree.leaves(error)
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves) / sum(leaf.size for leaf in leaves))


class March(NamedTuple):
    """A path on its way over a given grid."""

    k: Int[Array, ""]  # steps taken
    state: State
    good: Bool[Array, ""]
    jumped: Bool[Array, ""]  # over a point where the rank is lost
    seen: Any


def march(
    slow: SlowState,
    solver: Any,
    terms: Any,
    state0: State,
    knots: Float[Array, " N"],
    stops: Int[Array, " T"],
    count: Int[Array, ""],
    shown: dfx.AbstractProgressMeter[Any],
) -> tuple[Saved, Ending]:
    """A path by one step from each of the `knots` to the next: what is saved after stops[i] steps, for i < count, rows
    that were not reached infinite, and the end. Of arrays that are longer the rest is not looked at."""
    total = stops[count - 1]

    def step(at: March) -> March:
        t0, t1 = knots[at.k], knots[at.k + 1]
        state, _, _, _, result = solver.step(terms, t0, t1, at.state, None, None, False)
        jumped = result == dfx.RESULTS.dt_min_reached
        good = (result == dfx.RESULTS.successful) & all_finite(state)
        return at._replace(
            k=at.k + 1, state=state, good=good, jumped=jumped, seen=shown.step(at.seen, (at.k + 1) / total)
        )

    # The rows are not in the inner loop, which copies under vmap, at every step, all that it carries.
    def to_row(i: Array, carry: tuple[March, Saved]) -> tuple[March, Saved]:
        at = jax.lax.while_loop(lambda at: (at.k < stops[i]) & at.good, step, carry[0])
        found = jax.tree.map(lambda leaf: jnp.where(at.good, leaf, jnp.inf), saved_at(slow, at.state))
        return at, jax.tree.map(lambda rows, leaf: rows.at[i].set(leaf), carry[1], found)

    form = eqx.filter_eval_shape(saved_at, slow, state0)
    rows = jax.tree.map(lambda leaf: jnp.full((*stops.shape, *leaf.shape), jnp.inf, leaf.dtype), form)
    yes, no = jnp.asarray(True), jnp.asarray(False)
    start = March(jnp.asarray(0), state0, yes, no, shown.init())
    end, rows = jax.lax.fori_loop(0, count, to_row, (start, rows))
    shown.close(end.seen)
    reached = jnp.isfinite(rows.residual) | (jnp.arange(stops.size) >= count)
    return rows, Ending(
        time=knots[end.k],
        state=end.state,
        failed=~(end.good & jnp.all(reached)),
        too_long=no,
        jumped=end.jumped,
        chattered=no,
        steps=end.k,
    )

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
from manifolds.support.precision import on_device
from manifolds.support.step_size import step_factor

from .marching import Window
from .solve import Ending, Saved, saved_at
from .solvers.state import SlowFlow, SlowState, State

PATIENCE = 100  # rejected steps beyond those accepted; smooth flows reject fewer than they accept
ENDLESS = np.iinfo(np.int32).max


class Limits(NamedTuple):
    """When a flow pauses, and when it is given up: after too many steps, where they get too short, or where rejected
    steps outnumber accepted ones by more than a patience, counted anew wherever the difference falls to 0.

    A flow that meets a kink of its loss slides along it from side to side, two of three steps rejected, for ever.
    """

    shortest: Array
    patience: Array
    max_steps: Array
    bound: Array  # the number of the step to pause at


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


def way_from(state0: State, memory: PyTree, t0: Any, h0: Any, times: np.ndarray) -> Way:
    """The `Way` of a flow from state0 at t0, with nothing computed; of the memory shapes and types alone are taken."""
    state0 = jax.tree.map(np.asarray, state0)
    rows = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (times.size, *leaf.shape)), state0)
    memory = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), memory)
    start, h = np.asarray(t0, state0[0].dtype), np.asarray(h0, state0[0].dtype)
    zero, no, yes = np.asarray(0), np.asarray(False), np.asarray(True)
    row = np.asarray(np.sum(times <= t0))  # the start, where it is asked for
    return Way(*on_device((start, h, state0, memory, zero, zero, no, yes, row, rows)))


def advance(
    slow: SlowState,
    solver: Any,
    way: Way,
    t1: Array,
    times: Float[Array, " T"],
    limits: Limits,
    *,
    lands: bool,
    until: Callable[[Array, State], Array] | None = None,
) -> Way:
    """The flow on its way to t1, or until it rests, or to its pause: the rows are the states at `times`,
    of which those that were not reached are the state that it began from.

    Steps h ← h `step_factor` for the root mean square of the solver's scaled errors. A solver that `lands` ends a whole
    number of steps on each of the times; the others are interpolated.
    """
    terms = dfx.ODETerm(SlowFlow(slow))
    order = solver.order(terms)
    ends = jnp.append(times, t1) if lands else t1[None]

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
        return Way(t, factor * (end - at.t), state, memory, at.count + 1, excess, at.rests, taken, row, rows)

    def on(at: Way) -> Way:
        if until is None:
            return step(at)
        # Before the step, so that a flow that rests at its start stays there; once a state, as it takes the drift.
        rests = jax.lax.cond(at.fresh, until, lambda *_: jnp.asarray(False), at.t, at.state)
        return jax.lax.cond(rests, lambda: at._replace(rests=rests), lambda: step(at))

    first = jax.lax.cond(
        way.count == 0, lambda: solver.init(terms, way.t, way.t + way.h, way.state, None), lambda: way.memory
    )
    return jax.lax.while_loop(
        lambda at: unfinished(at, t1, limits) & (at.count < limits.bound), on, way._replace(memory=first)
    )


def unfinished(at: Way, t1: Array, limits: Limits) -> Bool[Array, ""]:
    """Whether a flow on its way to t1 is neither there nor to be given up."""
    gets_on = (at.h >= limits.shortest) & (at.excess <= limits.patience) & (at.count < limits.max_steps)
    return ~at.rests & (at.t < t1) & gets_on


def ending_of(at: Way, t1: Array, limits: Limits) -> Ending:
    """How a flow on its way to t1 has ended; not failed where it can go on."""
    done = at.rests | (at.t >= t1) | unfinished(at, t1, limits)
    return Ending(
        time=at.t,
        state=at.state,
        failed=~done,
        too_long=~done & (at.count >= limits.max_steps),
        jumped=jnp.asarray(False),
        chattered=~done & (at.excess > limits.patience),
        steps=at.count,
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

    @classmethod
    def begun(cls, states: State) -> "March":
        """Paths at the start of the grid, leaves with a leading axis, of NumPy."""
        count = states[0].shape[0]
        none, yes, no = np.zeros(count, int), np.ones(count, bool), np.zeros(count, bool)
        return cls(none, states, yes, no)  # pyright: ignore[reportArgumentType]


def march(
    slow: SlowState, solver: Any, terms: Any, at: March, knots: Float[Array, " N"], window: Window
) -> tuple[March, Saved]:
    """A path by one step from each of the `knots` to the next, through a `window` of stops: where it is after it, and
    what is saved at each stop, infinite where the path has failed."""

    def step(at: March) -> March:
        t0, t1 = knots[at.k], knots[at.k + 1]
        state, _, _, _, result = solver.step(terms, t0, t1, at.state, None, None, False)
        jumped = result == dfx.RESULTS.dt_min_reached
        good = (result == dfx.RESULTS.successful) & all_finite(state)
        return March(at.k + 1, state, good, jumped)

    # The rows are not in the inner loop, which copies under vmap, at every step, all that it carries.
    def to_row(i: Array, carry: tuple[March, Saved]) -> tuple[March, Saved]:
        at = jax.lax.while_loop(lambda at: (at.k < window.stops[i]) & at.good, step, carry[0])
        found = jax.tree.map(lambda leaf: jnp.where(at.good, leaf, jnp.inf), saved_at(slow, at.state))
        return at, jax.tree.map(lambda rows, leaf: rows.at[i].set(leaf), carry[1], found)

    form = eqx.filter_eval_shape(saved_at, slow, at.state)
    rows = jax.tree.map(lambda leaf: jnp.full((*window.stops.shape, *leaf.shape), jnp.inf, leaf.dtype), form)
    return jax.lax.fori_loop(0, window.count, to_row, (at, rows))

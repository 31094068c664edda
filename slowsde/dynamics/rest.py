"""The slow flow to its end: until it is stationary, and the way there at times that are known only then."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .flow import above_rounding, chosen_solver, follow
from .solve import Ending, Method, Saved, Solved, ending_of
from .solvers.explicit import ReturningSolver
from .solvers.implicit import ExtrapolatedImplicit
from .solvers.state import SlowFlow, SlowState, State


def follow_to_rest(
    slow: SlowState, state0: State, t0: float, count: int, method: Method, shown: dfx.AbstractProgressMeter[Any]
) -> Solved:
    """The slow ODE until it is stationary, saved at `count` times of the way, the last of them its end."""
    rest = solve_to_rest(slow, state0, t0, method)
    t1 = float(rest.time[0])
    times = graded_times(t0, t1, count)
    # Over the same stretch, but with ends of steps on the saved times.
    again = method._replace(max_steps=2 * method.max_steps + count)
    found = follow(slow, state0, times, (t0, t1), again, shown)
    return found._replace(saved=_with_last(slow, found.saved, rest), rests=not bool(rest.too_long[0]))


def graded_times(t0: float, t1: float, count: int) -> np.ndarray:
    """`count` times from t0 to t1, geometric over four decades: the flow is fast at first and slow at its end."""
    return t0 + (t1 - t0) * np.concatenate([[0.0], np.geomspace(1, 1e-4, count - 1)[::-1]])


def _with_last(slow: SlowState, saved: Saved, rest: Ending) -> Saved:
    """`saved` with the state found at rest as its last: other steps, those between saved times, end near it only."""
    v = jax.vmap(slow.v)(rest.state)

    def put(rows: Any, last: Any) -> Any:
        return rows.at[:, -1].set(last)

    return eqx.tree_at(lambda s: (s.x, s.v), saved, (put(saved.x, rest.state[0]), jax.tree.map(put, saved.v, v)))


def solve_to_rest(slow: SlowState, state0: State, t0: float, method: Method) -> Ending:
    """The slow ODE until it is stationary to `tol` (see `SlowSDE.stillness`); `too_long` says that it was not."""
    dtype = state0[0].dtype
    ending = _to_rest(
        slow,
        state0,
        jnp.asarray(t0, dtype),
        jnp.asarray(above_rounding(method.rtol, dtype), dtype),
        jnp.asarray(max(method.tol, 1e3 * float(jnp.finfo(dtype).eps)), dtype),
        chosen_solver(slow, state0, method.solver),
        max_steps=method.max_steps,
    )
    return jax.tree.map(lambda leaf: leaf[None], ending)


@eqx.filter_jit
def _to_rest(slow: SlowState, state0: State, t0: Array, rtol: Any, tol: Any, method: str, *, max_steps: int) -> Ending:
    def at_rest(t: Any, state: State, args: Any, **_: Any) -> Array:
        return slow.sde.stillness(state[0], slow.v(state), t, state0[0])[1] <= tol

    controller = dfx.PIDController(rtol=0.0, atol=1.0)
    solver: Any = ReturningSolver(dfx.Tsit5(), slow, rtol) if method == "tsit5" else ExtrapolatedImplicit(slow, rtol)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(SlowFlow(slow)),
        solver,
        t0,
        jnp.inf,
        None,
        state0,
        saveat=dfx.SaveAt(t1=True),
        stepsize_controller=controller,
        adjoint=dfx.ForwardMode(),
        event=dfx.Event(at_rest),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None
    return ending_of(solution, solution.ts[-1], jax.tree.map(lambda leaf: leaf[-1], solution.ys))


@eqx.filter_jit
def stillness(slow: SlowState, saved: Saved, times: Float[Array, " T"]) -> tuple[Array, Array]:
    """(paths,) each: speed and stillness of a flow at its last saved time, see `SlowSDE.stillness`."""

    def at(x0: Array, x: Array, v: PyTree) -> tuple[Array, Array]:
        return slow.sde.stillness(x, v, times[-1], x0)

    return jax.vmap(at)(saved.x[:, 0], saved.x[:, -1], jax.tree.map(lambda leaf: leaf[:, -1], saved.v))

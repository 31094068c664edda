"""Run the real optimizer: many discrete runs on the slow clock, to hold against the slow SDE."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.coordinates import check_parameters
from manifolds.flow_limit import as_rank, check_limit, limit_point
from manifolds.precision import cast, to_numpy, working_precision

from . import checks
from .metrics import as_metrics, check_metrics, evaluate
from .optimizers import AGM
from .problems import AbstractProblem
from .progress import meter
from .slow_sde import SlowSDE, equilibrium, slow_sde
from .trajectory import Result, Trajectory, finish

State = tuple[Float[Array, " p"], Float[Array, " p"], PyTree]  # (θ, m, v)


def run_discrete(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    v0: PyTree = None,
    paths: int = 64,
    key: PRNGKeyArray | None = None,
    save_at: Any = 101,
    metrics: Any = (),
    project: bool = True,
    route: str = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
) -> Trajectory:
    """`paths` independent runs of the optimizer itself at learning rate η = lr, k = t1/η² steps each.

        m ← β1 m + (1−β1) g,   v ← β2 v + (1−β2) V(g gᵀ),   θ ← θ − η S(v) m,      β2 = 1 − cη²

    with m = 0 at the start and v updated before it is used. Only the saved iterates are kept, on the slow clock
    t = kη²; each is returned to Γ by Φ_{S(v)}, the limit map in its own metric, so that it can be compared with the
    slow SDE, unless `project=False` (then any loss will do, near a manifold or not).

    Args:
        problem, optimizer, params0, t1, paths, key, save_at, metrics, route, rank, dtype, throw, progress: as in
            `simulate`. Saved times are rounded to whole steps.
        lr: the learning rate η.
        v0: optimizer state at the start; None for the equilibrium V(Σ(params0)).
        project: whether to return the saved iterates to Γ.

    Returns: `Trajectory` with leaves (paths, T, ...); `ts` are the true times kη². `stats` holds lr, b2, num_steps,
        residual (paths, T) of the saved iterates, and seconds.
    Raises: ValueError on bad input (cη² > 1 among it); `RunError` when a path turns non-finite or its iterates leave
        the basin of Γ.

    Example:
        >>> fast = run_discrete(problem, adam(c=10.0), params0, t1=1.0, lr=0.01, paths=64, metrics=("trace_hessian",))
        >>> fast.metrics["trace_hessian"].shape
        (64, 101)
    """
    started = time.perf_counter()
    checks.check_concrete("run_discrete", problem, optimizer, params0, v0, t1, lr)
    b2 = _second_momentum(optimizer, lr)
    steps = _saved_steps(checks.save_times(save_at, 0.0, t1), lr)
    paths = checks.check_paths(paths)
    key = checks.check_key(key)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        chart, x0 = checks.check_inputs(problem, optimizer, params0)
        sde = slow_sde(problem, optimizer, chart, route)
        v0 = equilibrium(sde, x0) if v0 is None else v0
        checks.check_state(sde, x0, v0)
        check_metrics(named, sde, x0, v0)
        if project:
            sde = _at_rank(sde, x0, v0, rank)
        xs, vs = _run(
            sde,
            (x0, jnp.zeros_like(x0), v0),
            key,
            jnp.asarray(steps),
            jnp.asarray(lr, precision),
            jnp.asarray(b2, precision),
            paths=paths,
            progress=meter("run_discrete", progress),
        )
        finite = np.asarray(jnp.all(jnp.isfinite(xs), axis=-1))
        landed = np.ones_like(finite)
        if project:
            xs, landed = to_numpy(_project(sde, xs, vs))
        found = evaluate(named, sde, xs, vs)
        residual = _residuals(sde, xs)
        xs, vs, found, residual = to_numpy((xs, vs, found, residual))
    times = steps * lr**2
    codes = np.where(
        finite.all(axis=1), np.where(landed.all(axis=1), Result.SUCCESS, Result.LEFT_MANIFOLD), Result.NON_FINITE
    )
    good = finite & landed
    trajectory = Trajectory(
        ts=times,
        params=chart.unravel(np.where(good[..., None], xs, np.nan)),
        v=vs,
        metrics={name: np.where(good, found[name], np.nan) for name in named},
        stats={
            "lr": float(lr),
            "b2": b2,
            "num_steps": int(steps[-1]),
            "projected": project,
            "residual": residual,
            "seconds": time.perf_counter() - started,
        },
        result=codes,
        label="discrete",
    )
    return finish(trajectory, times[np.argmin(good, axis=1)], throw)


def _second_momentum(optimizer: AGM, lr: float) -> float:
    if not (checks.is_finite(lr) and lr > 0):
        raise ValueError(f"lr={lr!r} must be a positive number.")
    if not isinstance(optimizer, AGM):
        raise ValueError(f"optimizer={optimizer!r} must be an AGM, such as sgd(), adam(c=1.0) or AGM(V, S, c).")
    if optimizer.quasi_static:
        raise ValueError("c=inf is a limit of the slow SDE; a discrete run needs a finite c = (1 − β2)/η².")
    b2 = 1 - float(optimizer.c) * lr**2
    if b2 < 0:
        raise ValueError(f"lr={lr} is too large for c={optimizer.c}: β2 = 1 − cη² = {b2:.3g} is negative.")
    return b2


def _saved_steps(times: np.ndarray, lr: float) -> np.ndarray:
    """The step numbers k ≈ t/η² of the saved times, strictly increasing."""
    steps = np.unique(np.rint(times / lr**2).astype(int))
    if steps[-1] == 0:
        raise ValueError(f"t1={times[-1]} is less than one step: lr² = {lr**2:.3g}. Slow time is t = kη².")
    if steps.size < times.size:
        raise ValueError(f"save_at asks for {times.size} times, but there are fewer than that many steps of lr={lr}.")
    return steps


def _at_rank(sde: SlowSDE, x0: Array, v0: PyTree, rank: int | None) -> SlowSDE:
    """The slow SDE with the rank of H found at the end of the flow from x0; a ManifoldError there comes early."""
    start = _limit(sde.loss, x0, sde.metric(v0), as_rank(rank, x0.size))
    try:
        check_limit(start)
    except ValueError as error:
        error.add_note("To run the optimizer without returning its iterates to a manifold, pass project=False.")
        raise
    return eqx.tree_at(lambda s: s.rank, sde, start.rank, is_leaf=lambda leaf: leaf is None)


_limit = eqx.filter_jit(limit_point)


@eqx.filter_jit
def _run(
    sde: SlowSDE,
    state0: State,
    key: PRNGKeyArray,
    steps: Array,
    lr: Array,
    b2: Array,
    *,
    paths: int,
    progress: Any,
) -> tuple[Float[Array, "paths T p"], PyTree]:
    """The iterates and states of every path after the given numbers of steps."""
    optimizer, chart = sde.optimizer, sde.chart

    def one_step(state: State, key: PRNGKeyArray) -> State:
        theta, m, v = state
        g = sde.stochastic_gradient(theta, key)
        m = optimizer.b1 * m + (1 - optimizer.b1) * g
        v = jax.tree.map(lambda old, new: b2 * old + (1 - b2) * new, v, optimizer.V(chart.unravel_arrays(g)))
        return theta - lr * sde.metric(v)(m), m, v

    def advance(key: PRNGKeyArray, state: State, start: Array, stop: Array) -> State:
        return jax.lax.fori_loop(start, stop, lambda k, s: one_step(s, jr.fold_in(key, k)), state)

    keys = jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(paths))
    states0 = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (paths, *leaf.shape)), state0)

    def to_next_save(carry: tuple[State, Any], bounds: tuple[Array, Array]) -> tuple[tuple[State, Any], Any]:
        states, shown = carry
        start, stop = bounds
        states = jax.vmap(advance, (0, 0, None, None))(keys, states, start, stop)
        return (states, progress.step(shown, stop / steps[-1])), (states[0], states[2])

    starts = jnp.concatenate([jnp.zeros_like(steps[:1]), steps[:-1]])
    (_, shown), saved = jax.lax.scan(to_next_save, (states0, progress.init()), (starts, steps))
    progress.close(shown)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), saved)


@eqx.filter_jit
def _project(sde: SlowSDE, xs: Float[Array, "paths T p"], vs: PyTree) -> tuple[Array, Array]:
    """Φ_{S(v)} of every saved iterate, and whether the flow arrived."""
    points = jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), (xs, vs))

    def one(point: tuple[Array, PyTree]) -> tuple[Array, Array]:
        x, v = point
        found = limit_point(sde.loss, x, sde.metric(v), sde.rank, rtol=1e-6, max_steps=1000)
        return found.point, found.converged

    flat, landed = jax.lax.map(one, points, batch_size=16)
    return flat.reshape(xs.shape), landed.reshape(xs.shape[:2])


@eqx.filter_jit
def _residuals(sde: SlowSDE, xs: Float[Array, "paths T p"]) -> Array:
    flat = jax.lax.map(sde.loss.residual, xs.reshape((-1, xs.shape[-1])), batch_size=64)
    return flat.reshape(xs.shape[:2])

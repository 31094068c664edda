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
from .slow_sde import SlowSDE
from .start import initial_state, limit
from .trajectory import Result, Trajectory, finish

State = tuple[Float[Array, " p"], Float[Array, " p"], PyTree]  # (θ, m, v)


def run_discrete(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    t0: float = 0.0,
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

    with m = 0 at the start and v updated before it is used; with a schedule the rate is η s(kη²), with weight decay θ
    also loses η²sω θ, and with bias correction m/(1−β1^k) and v/(1−β2^k) take the place of m and v. Only the saved
    iterates are kept, on the slow clock t = kη²; each is returned to Γ by Φ_{S(v)}, the limit map in its own metric,
    to be compared with the slow SDE, unless `project=False` (then any loss will do, near a manifold or not).

    Args:
        problem, optimizer, params0, t1, paths, key, save_at, metrics, route, rank, dtype, throw, progress: as in
            `simulate`. Saved times are rounded to whole steps.
        lr: the learning rate η.
        t0: slow time at the start, for schedules and bias correction and to go on from another run.
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
    checks.check_concrete("run_discrete", problem, optimizer, params0, v0, t0, t1, lr)
    b2 = _second_momentum(optimizer, lr)
    steps = _saved_steps(checks.save_times(save_at, t0, t1), t0, lr)
    paths = checks.check_paths(paths)
    key = checks.check_key(key)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        sde, x0 = checks.on_flat_coordinates(problem, optimizer, params0, route)
        v0 = initial_state(sde, x0, v0, t0)
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
    good = finite & landed
    stats = {"lr": float(lr), "b2": b2, "num_steps": int(steps[-1] - steps[0]), "projected": project}
    stats |= {"residual": residual, "seconds": time.perf_counter() - started}
    trajectory = Trajectory(
        ts=steps[1:] * lr**2,
        params=sde.chart.unravel(np.where(good[..., None], xs, np.nan)),
        v=vs,
        metrics={name: np.where(good, found[name], np.nan) for name in named},
        stats=stats,
        result=_codes(finite, landed),
        label="discrete",
    )
    return finish(trajectory, trajectory.ts[np.argmin(good, axis=1)], throw)


def _codes(finite: np.ndarray, landed: np.ndarray) -> np.ndarray:
    """(paths,) `Result` codes."""
    arrived = np.where(landed.all(axis=1), Result.SUCCESS, Result.LEFT_MANIFOLD)
    return np.where(finite.all(axis=1), arrived, Result.NON_FINITE)


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


def _saved_steps(times: np.ndarray, t0: float, lr: float) -> np.ndarray:
    """The step number k ≈ t0/η² of the start, and those of the saved times, strictly increasing."""
    start = round(t0 / lr**2)
    steps = np.unique(np.rint(times / lr**2).astype(int))
    if steps[-1] == start:
        raise ValueError(f"t1={times[-1]} is less than one step: lr² = {lr**2:.3g}. Slow time is t = kη².")
    if steps.size < times.size:
        raise ValueError(f"save_at asks for {times.size} times, but there are fewer than that many steps of lr={lr}.")
    return np.concatenate([[start], steps])


def _at_rank(sde: SlowSDE, x0: Array, v0: PyTree, rank: int | None) -> SlowSDE:
    """The slow SDE with the rank of H found at the end of the flow from x0; a ManifoldError there comes early."""
    start = limit(sde.loss, x0, sde.metric(v0), as_rank(rank, x0.size))
    try:
        check_limit(start)
    except ValueError as error:
        error.add_note("To run the optimizer without returning its iterates to a manifold, pass project=False.")
        raise
    return eqx.tree_at(lambda s: s.rank, sde, start.rank, is_leaf=lambda leaf: leaf is None)


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
    """The iterates and states of every path after steps[1:] steps, counted from steps[0]."""
    optimizer, chart = sde.optimizer, sde.chart

    def one_step(k: Array, state: State, key: PRNGKeyArray) -> State:
        theta, m, v = state
        rate = lr * optimizer.pace(k * lr**2)
        g = sde.stochastic_gradient(theta, key)
        m = optimizer.b1 * m + (1 - optimizer.b1) * g
        # A corrected v is the mean of V(g gᵀ) with weights β2^(k−j), j ≤ k, so that step k adds (1−β2)/(1−β2^k) of it.
        new = (1 - b2) / -jnp.expm1((k + 1) * jnp.log(b2)) if optimizer.bias_correction else 1 - b2
        v = jax.tree.map(lambda old, add: old + new * (add - old), v, optimizer.V(chart.unravel_arrays(g)))
        heading = m / (1 - optimizer.b1 ** (k + 1)) if optimizer.bias_correction else m
        move = rate * sde.metric(v)(heading)
        return theta - (move + rate * lr * optimizer.decay(chart) * theta if optimizer.decays else move), m, v

    def advance(key: PRNGKeyArray, state: State, start: Array, stop: Array) -> State:
        return jax.lax.fori_loop(start, stop, lambda k, s: one_step(k, s, jr.fold_in(key, k)), state)

    keys = jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(paths))
    states0 = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (paths, *leaf.shape)), state0)

    def to_next_save(carry: tuple[State, Any], bounds: tuple[Array, Array]) -> tuple[tuple[State, Any], Any]:
        states, shown = carry
        start, stop = bounds
        states = jax.vmap(advance, (0, 0, None, None))(keys, states, start, stop)
        return (states, progress.step(shown, (stop - steps[0]) / (steps[-1] - steps[0]))), (states[0], states[2])

    (_, shown), saved = jax.lax.scan(to_next_save, (states0, progress.init()), (steps[:-1], steps[1:]))
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

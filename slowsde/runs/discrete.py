"""Run the real optimizer: many discrete runs on the slow clock, to hold against the slow SDE."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.maps.limit_map import as_rank, check_limit, compiled_limit_point
from manifolds.support.coordinates import Coordinates, check_parameters
from manifolds.support.precision import on_device, working_precision
from manifolds.support.user_functions import shown

from ..dynamics.digest import arrays_digest, drawn_digest, traced_digest
from ..dynamics.ensemble import block_size, map_points
from ..dynamics.marching import Marched, march_paths, stepped
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..metrics.sharpness import adaptive_sharpness
from ..optimizers.agm import AGM
from ..optimizers.optax_fit import accumulation, check_injected_rate, check_updates
from ..optimizers.sgd import no_state, sgd
from ..problems.abstract import AbstractProblem
from ..problems.accumulated import accumulated
from ..support.arguments import check_lr, flag, positive_integer
from ..support.effort import MOST_STEPS, check_steps
from ..support.pieces import EVERY
from .frame import diverged, run
from .landing import Landed, arrives, land
from .request import Outcome, Request, key_stats, request
from .stacked import attempted, scattered, stack_leaves, start_of
from .steps import AGMStep, OptaxStep, State, agm_run, is_transformation, optax_run
from .trajectory import Trajectory


def run_discrete(
    problem: AbstractProblem,
    optimizer: Any,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    t0: float = 0.0,
    v0: PyTree = None,
    like: AGM | None = None,
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
    max_steps: int = MOST_STEPS,
    memory: float | None = None,
    checkpoint: Any = None,
    checkpoint_every: float = EVERY,
    stacked: bool = False,
) -> Trajectory:
    """`paths` independent runs of the optimizer itself at learning rate η = lr, k = t1/η² steps each.

        m ← β1 m + (1−β1) g,   v ← β2 v + (1−β2) V(g gᵀ),   θ ← θ − η S(v) m,      β2 = 1 − cη²

    with m = 0 at the start and v updated before it is used; with a schedule the rate is η s(kη²), with weight decay θ
    also loses η²sω θ, and with bias correction m/(1−β1^k) and v/(1−β2^k) take the place of m and v. Only the saved
    iterates are kept, on the slow clock t = kη²; each is returned to Γ by Φ_{S(v)}, the limit map in its own metric,
    to be compared with the slow SDE, unless `project=False` (then any loss will do, near a manifold or not).

    `optimizer` may also be an `optax.GradientTransformation`. Then the update is Optax's own, g from the same keys, and
    lr is the clock only: pass the rate that the transformation was made with (where Optax adds up gradients, as in
    `optax.sgd(rate, momentum=β)`, lr = rate/(1−β)). `like` is the AGM that it is in the limit η → 0. It says what the
    second moment in Optax's state means: corrected for bias if `like` is, that is the `v` of the trajectory, S(v)
    is the metric of the return to Γ and of metrics that ask for it, and β2, which is measured, must be that of like.c.
    Without `like`, v is None and the return Euclidean: the points move by O(η), as much as the gap itself, so give
    it to compare with a slow SDE. (Random numbers that the transformation draws for itself are those of all paths.)
    `optax.MultiSteps(transformation, K)` takes K gradients, each with the noise of `problem`, for a step: k and
    num_steps count steps, and the slow SDE is that of `accumulated(problem, K)`, with Σ/K.

    Args:
        problem, params0, t1, paths, key, save_at, metrics, route, rank, dtype, throw, progress, checkpoint,
            checkpoint_every, stacked: as in `simulate`. Saved times are rounded to whole steps.
        optimizer: an `AGM`, or an `optax.GradientTransformation`.
        lr: the learning rate η.
        t0: slow time at the start, for schedules and bias correction and to go on from another run.
        v0: optimizer state at the start; None for the equilibrium V(Σ(params0)). With Optax its own state, from a
            training loop say; None for a fresh one.
        like: with Optax, the AGM that describes it.
        project: whether to return the saved iterates to Γ.
        max_steps: what a run may take, so that a slip in lr or t1 does not ask for years.
        memory: bytes that it may take; None for those of this machine.

    Returns: `Trajectory` with leaves (paths, T, ...); `ts` are the true times kη². `stats` holds lr, b2 (where known),
        num_steps, residual (paths, T) of the saved iterates, and seconds. An iterate that does not return to Γ is NaN,
        and so is all that follows a step to infinity; every other point of its path is there.
    Raises: ValueError on bad input (cη² > 1, or `like` with another β2 than Optax, among it); `RunError` when a path
        turns non-finite or its iterates leave the basin of Γ (throw=False for what there is: `compare` takes it).

    Example:
        >>> fast = run_discrete(problem, adam(c=10.0), params0, t1=1.0, lr=0.01, paths=64, metrics=("trace_hessian",))
        >>> fast.metrics["trace_hessian"].shape
        (64, 101)
        >>> import optax
        >>> fast = run_discrete(problem, optax.adam(0.01, b2=0.999), params0, t1=1.0, lr=0.01,
        ...                     like=adam(c=10.0, bias_correction=True))
    """
    agm = described(optimizer, like)
    asked = request(
        "run_discrete",
        (problem, optimizer, params0, v0, like, lr),
        t0=t0,
        t1=t1,
        save_at=save_at,
        paths=paths,
        key=key,
        metrics=metrics,
        route=route,
        rank=rank,
        dtype=dtype,
        throw=throw,
        progress=progress,
        memory=memory,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        stacked=stacked,
    )
    lr = check_lr(lr)
    positive_integer("max_steps", max_steps)
    flag("project", project)
    taken, remedy = (asked.t1 - asked.t0) / lr**2, "raise lr or lower t1 (t = k·lr²)"
    check_steps(taken, max_steps, f"lr={lr:g} to t1={t1:g}", remedy)
    b2 = second_momentum(agm, lr) if agm is optimizer else None
    if agm is not optimizer and like is None and adaptive_sharpness in asked.metrics.values():
        raise ValueError(
            "metrics: adaptive_sharpness is tr S(v)H, and Optax does not tell S: pass like=adam(...), say."
        )
    steps, start = saved_steps(asked.times, t0, lr), start_of(params0, 0) if asked.stacked else params0
    every = gradients_per_step(optimizer, start, like, int(steps[-1]), dtype, lr=lr, v0=v0)
    check_steps(every * taken, max_steps, f"lr={lr:g} to t1={t1:g}, {every} gradients a step,", remedy)
    settings = {"optimizer": optimizer, "lr": lr, "b2": b2, "steps": every * steps, "every": every}
    iterate = partial(_iterate, project=project, **settings)
    own, given = agm is optimizer, (problem, agm, params0, v0)
    how = {
        "own_state": not own,
        "described": own or like is not None,
        "settings": partial(belonging_of, project=project, **settings),
    }
    how["belongs"] = accumulated(problem, every) if every > 1 else problem
    return run(asked, *given, iterate, "discrete", **how)


def gradients_per_step(
    optimizer: Any, params0: PyTree, like: AGM | None, steps: int, dtype: Any, *, lr: Any = None, v0: PyTree = None
) -> int:
    """How many gradients a step of `optimizer` takes; ValueError where it does not fit what it is said to be `like`, or
    lr, if that is given, is not the rate in its state."""
    if not is_transformation(optimizer):
        return 1
    check_parameters(params0)
    with working_precision(dtype) as precision:
        chart = Coordinates.of(params0)
        params = chart.unravel_arrays(jnp.zeros(chart.size, precision))
        every = accumulation(optimizer, params, steps)
        check_updates(optimizer, params, every, like is not None)
        if lr is not None and like is not None and like.schedule is None:
            check_injected_rate(optimizer.init(params) if v0 is None else v0, lr)
        return every


def begun_by(
    sde: SlowSDE, optimizer: Any, x0: Array, v0: PyTree, t0: float, lr: float, b2: float | None, every: int = 1
) -> tuple[AGMStep | OptaxStep, State, float | None]:
    """The step of an optimizer, its state at x0, and its β2, which is measured where it is not given (Optax)."""
    if b2 is None:
        return optax_run(sde, optimizer, x0, v0, lr, every)
    return *agm_run(sde, x0, v0, t0, lr, b2), b2


class _Begun(NamedTuple):
    """A run at its start."""

    sde: SlowSDE  # at the rank with which its iterates are returned
    step: AGMStep | OptaxStep
    state: State
    b2: float | None


def _begun(
    asked: Request,
    sde: SlowSDE,
    x0: Array,
    *,
    v0: PyTree,
    optimizer: Any,
    lr: float,
    b2: float | None,
    every: int,
    project: bool,
) -> _Begun:
    step, state, b2 = begun_by(sde, optimizer, x0, v0, asked.t0, lr, b2, every)
    return _Begun(_at_rank(sde, x0, state[2], asked.rank) if project else sde, step, state, b2)


def _iterate(
    asked: Request, sde: SlowSDE, x0: Array, v0: PyTree, *, lr: float, steps: np.ndarray, project: bool, **settings: Any
) -> Outcome:
    """Steps of the optimizer from x0, or from each of many starts."""
    begin = partial(_begun, asked, sde, v0=v0, lr=lr, project=project, **settings)
    if not asked.stacked:
        begun, numbers = [begin(x0)], np.arange(asked.paths)
    else:
        tried = attempted(begin, x0)
        numbers = np.array([number for number, one in enumerate(tried) if isinstance(one, _Begun)], int)
        if not numbers.size:
            raise ValueError(f"None of the {asked.paths} starts leads to a run. The first: {tried[0][-1]}")
        begun = [tried[number] for number in numbers]
    states = stack_leaves([one.state for one in begun])
    ranks = [one.sde.rank for one in begun]
    found = go_on(asked, begun[0].sde, begun[0].step, states, numbers, ranks, begun[0].b2, lr, steps, project)
    return scattered(found, numbers, tried) if asked.stacked else found


def go_on(
    asked: Request,
    sde: SlowSDE,
    step: AGMStep | OptaxStep,
    states: State,
    numbers: np.ndarray,
    ranks: list[Any],
    b2: float | None,
    lr: float,
    steps: np.ndarray,
    project: bool,
) -> Outcome:
    """Steps of the paths of these numbers from their states, with leading axis one or `numbers.size`, as are the ranks
    with which they are returned to Γ; what is saved of them is, at the end."""
    (xs, vs), end, reached = _run(sde, step, states, numbers, asked, steps)
    project = project and not asked.pieces.interrupted  # which takes a while
    finite = np.isfinite(xs).all(axis=-1) | ~reached
    ran_off = diverged(np.where(reached[..., None], xs, 0.0), states[0])
    known = np.array([-1 if rank is None else int(rank) for rank in ranks])
    if project:
        xs, landed, residual = _landed(sde, known, xs, vs)
    else:
        landed, residual = ~ran_off, _residuals(sde, xs)
    good, ts = finite & landed & reached, steps[1:] // step.every * lr**2
    stats = {
        "lr": float(lr),
        **({} if b2 is None else {"b2": b2}),
        "num_steps": int(steps[-1] - steps[0]) // step.every,
        **({} if step.every == 1 else {"gradients_per_step": step.every}),
        "projected": project,
        "residual": residual,
        # What `resume` needs besides the states.
        "landed_at_ranks": known,
        **key_stats(asked.key),
    }
    codes = _codes(finite, landed, ran_off)
    return Outcome(sde, ts, xs, vs, good, codes, ts[np.argmin(good, axis=1)], stats, tuple(jax.tree.leaves(end)))


def _landed(sde: SlowSDE, ranks: np.ndarray, xs: np.ndarray, vs: PyTree) -> Landed:
    """The iterates returned to Γ, each path at the rank of its start, negative where it is counted anew."""
    different = np.unique(ranks)
    if different.size == 1:
        return land(_ranked(sde, int(different[0])), xs, vs)
    paths = [np.flatnonzero(ranks == rank) for rank in different]
    parts = [
        land(_ranked(sde, int(rank)), xs[some], jax.tree.map(lambda leaf, some=some: leaf[some], vs))
        for rank, some in zip(different, paths, strict=True)
    ]
    order = np.argsort(np.concatenate(paths))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)


def _ranked(sde: SlowSDE, rank: int) -> SlowSDE:
    return sde.at_rank(None if rank < 0 else on_device(np.asarray(rank)))


def belonging_of(
    sde: SlowSDE,
    x0: Array,
    *,
    optimizer: Any,
    lr: float,
    b2: float | None,
    steps: np.ndarray,
    every: int,
    project: bool,
    end: Any = None,
) -> Any:
    """What a checkpoint of a discrete run belongs to besides what any does; `end` is that of the run that goes on."""
    known = {"lr": float(lr), "b2": b2, "gradients": drawn_digest(sde, x0), "start": int(steps[0]), "project": project}
    known |= {} if end is None else {"end": arrays_digest(end)}
    if b2 is None:
        params = sde.chart.unravel_arrays(x0)
        known["transformation"] = traced_digest(optimizer.update, params, optimizer.init(params), params)
    return known


def _codes(finite: np.ndarray, landed: np.ndarray, ran_off: np.ndarray) -> np.ndarray:
    """(paths,) `Result` codes."""
    lost = np.where(ran_off.any(axis=1), Result.DIVERGED, Result.LEFT_MANIFOLD)
    arrived = np.where(landed.all(axis=1), Result.SUCCESS, lost)
    return np.where(finite.all(axis=1), arrived, Result.NON_FINITE)


def described(optimizer: Any, like: AGM | None) -> AGM:
    """The AGM that `optimizer` is, or is like; plain gradient descent for an Optax transformation of unknown kind."""
    if like is not None and (isinstance(optimizer, AGM) or not isinstance(like, AGM)):
        raise ValueError(
            f"like={shown(like)} must be the AGM that an Optax transformation is like, such as adam(c=1.0, "
            "bias_correction=True); leave it out where optimizer is an AGM itself."
        )
    if is_transformation(optimizer):
        return sgd() if like is None else like
    if not isinstance(optimizer, AGM):
        raise ValueError(
            f"optimizer={shown(optimizer)} must be an AGM, such as sgd(), adam(c=1.0) or AGM(V, S, c), or an "
            "optax.GradientTransformation."
        )
    return optimizer


def second_momentum(optimizer: AGM, lr: float) -> float:
    if optimizer.quasi_static:
        raise ValueError("c=inf is a limit of the slow SDE; a discrete run needs a finite c = (1 − β2)/η².")
    if optimizer.V is no_state:
        return 0.0  # nothing is remembered by it, at any lr
    b2 = 1 - float(optimizer.c) * lr**2
    if b2 < 0:
        raise ValueError(f"lr={lr} is too large for c={optimizer.c}: β2 = 1 − cη² = {b2:.3g} is negative.")
    return b2


def saved_steps(times: np.ndarray, t0: float, lr: float) -> np.ndarray:
    """The step number k ≈ t0/η² of the start, and those of the saved times, strictly increasing."""
    start = round(t0 / lr**2)
    steps = np.unique(np.rint(times / lr**2).astype(int))
    if steps[-1] == start:
        raise ValueError(f"t1={times[-1]} is less than one step: lr² = {lr**2:.3g}. Slow time is t = kη².")
    if steps.size < times.size:
        raise ValueError(f"save_at asks for {times.size} times, but there are fewer than that many steps of lr={lr}.")
    return np.concatenate([[start], steps])


def _at_rank(sde: SlowSDE, x0: Array, v0: PyTree, rank: int | None) -> SlowSDE:
    """The slow SDE with the rank of H found at the end of the flow from x0, where a rank is asked for.

    A ManifoldError there comes early.
    """
    # From a start near Γ the program that returns the iterates tells as well, and the other is never compiled.
    if sde.crosses_singular_points and arrives(sde, x0, v0):
        return sde
    start = compiled_limit_point(sde.loss, x0, sde.metric(v0), as_rank(rank, x0.size))
    try:
        check_limit(start, sde.loss, sde.metric(v0), rank_for=sde.rank_for)
    except ValueError as error:
        error.add_note("To run the optimizer without returning its iterates to a manifold, pass project=False.")
        raise
    if sde.crosses_singular_points:
        # Sparse ends: eigenvalues that were regular at the start die on the way, and landing with the rank of the start
        # would divide by what is left of them. Every landing counts its own.
        return sde
    return sde.at_rank(start.rank)


def _run(
    sde: SlowSDE,
    step: AGMStep | OptaxStep,
    states: State,
    numbers: np.ndarray,
    asked: Request,
    steps: np.ndarray,
) -> Marched:
    """The iterates and states of the paths of these numbers after steps[1:] steps, counted from steps[0]; their states
    at the start have a leading axis of one, or of them all."""
    shared, x0 = (sde, step, asked.key), states[0][0]
    states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (numbers.size, *leaf.shape[1:])), states)
    size = block_size(sde, x0, eigenpairs=False)
    found = march_paths(_path, shared, (numbers, states), int(steps[0]), steps[1:], size, asked.pieces)
    return found._replace(states=found.states[1])


def _path(shared: Any, numbered: tuple[Array, State]) -> tuple[tuple[Array, State], Any]:
    ((sde, step, key), window), (index, state) = shared, numbered
    key = jr.fold_in(key, index)

    def one_step(k: Array, state: State) -> State:
        own = jr.fold_in(key, k // step.every)
        if step.every > 1:
            own = jr.fold_in(own, k % step.every)
        return step(sde, k, state, sde.stochastic_gradient(state[0], own))

    state, saved = stepped(window, one_step, state, lambda state: (state[0], state[2]))
    return (index, state), saved


def _residuals(sde: SlowSDE, xs: Float[np.ndarray, "paths T p"]) -> np.ndarray:
    return map_points(_residual, sde, xs, block_size(sde, xs[0, 0], eigenpairs=False))


def _residual(sde: SlowSDE, x: Array) -> Array:
    return sde.loss.residual(x)

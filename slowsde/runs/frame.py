"""The frame of every run: what is asked, the problem on flat coordinates, a solve, and the trajectory it makes.

    request → prepared → solve → recorded

A kind of run adds its own mathematics alone, a function solve(asked, sde, x0, v0) -> `Outcome`; `run` does the rest.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from manifolds.support.arrays import ORIGIN
from manifolds.support.coordinates import check_parameters
from manifolds.support.precision import cast, to_numpy, working_precision

from ..dynamics import checks
from ..dynamics.digest import differences, digests
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..metrics.metric import check_metrics, evaluate
from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..support.effort import check_memory
from ..support.files import is_array
from .kept import belonging, finished, keep_finished
from .request import Outcome, Request
from .stacked import flat_starts, start_of, tell
from .trajectory import Trajectory, finish, repeated

SAVED_STATS = 7  # numbers about a saved point: residual, rank, eigenvalues, ...
FAR = 1e10  # how much larger than its start a path that diverged is


def check_digest(problem: Any, optimizer: Any, trajectory: Trajectory, name: str) -> None:
    """ValueError unless problem and optimizer are those that a trajectory belongs to, as far as it tells."""
    kept = trajectory.stats.get("digest")
    if not kept or not isinstance(problem, AbstractProblem) or not isinstance(optimizer, AGM):
        return
    first = jax.tree.map(lambda leaf: leaf[0, 0] if is_array(leaf) else leaf, trajectory.params)
    try:
        found = digests(problem, optimizer, first)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(
            f"problem does not fit {name}.params, with leaves of shapes {jax.tree.map(np.shape, first)}: {error}. Pass "
            f"the problem of the run that {name} is."
        ) from error
    others = differences(kept, found)
    if others:
        then, c = trajectory.stats.get("c"), float(optimizer.c)
        which = "" if then is None or np.isclose(then, c) else f" (optimizer.c={c:g}, and c={then:g} then)"
        raise ValueError(
            f"{name} was made with {' and '.join(others)}{which}: pass the problem and the optimizer of that run."
        )


@contextmanager
def prepared(
    asked: Request,
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    v0: PyTree,
    own_state: bool = False,
    check: Callable[[SlowSDE], None] | None = None,
) -> Iterator[tuple[SlowSDE, Array, PyTree]]:
    """In the working precision: the slow SDE of problem and optimizer, the flat params0, and v0, all of it cast.

    Everything that can be checked by forms and shapes is, before anything is compiled. `own_state` says that v0 is not
    the state of an `AGM`, and is left alone; `check` is the run's own."""
    check_parameters(params0)
    with working_precision(asked.dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        sde, x0 = checks.fitted(problem, optimizer, params0, asked.route)
        check_metrics(asked.metrics, sde, x0, sde.state_shapes())
        if v0 is not None and not own_state:
            checks.check_state_form(sde, sde.arranged(v0))
        checks.check_rank(asked.rank, sde)
        if check is not None:
            check(sde)
        check_memory(memory_needed(asked, sde), asked.memory)
        checks.check_pace(optimizer, asked.t0, asked.times)
        checks.check_numbers(sde, x0)
        # The yield is within the context: whatever a solve computes is in the working precision.
        yield sde, x0, v0


def memory_needed(asked: Request, sde: SlowSDE) -> dict[str, tuple[float, str]]:
    """{what: (bytes, remedy)} of the largest things that a run holds."""
    p, of_state = sde.chart.size, sum(leaf.size for leaf in jax.tree.leaves(sde.state_shapes()))
    size = np.dtype(asked.dtype).itemsize
    # What is saved, twice: as it comes from a device, and in order.
    each = p + of_state + len(asked.metrics) + SAVED_STATS
    needed = {
        f"{asked.paths:,} paths of {p:,} parameters at {asked.times.size:,} times": (
            2.0 * size * asked.paths * asked.times.size * each,
            "fewer paths, or fewer times in save_at",
        )
    }
    if sde.loss.route == "dense":
        needed[f"Hessians of {p:,} parameters"] = (
            4.0 * size * p**2,
            "the dense route is for up to about 2000 parameters; write the loss as LeastSquares or Classification",
        )
    if sde.problem.noise is not None and sde.diffuses:
        columns = jax.eval_shape(sde.factor, jax.ShapeDtypeStruct((p,), asked.dtype)).shape[1]
        needed[f"A noise factor B of {p:,} × {columns:,} numbers"] = (2.0 * size * p * columns, "fewer columns")
    return needed


def run(
    asked: Request,
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    v0: PyTree,
    solve: Callable[[Request, SlowSDE, Array, PyTree], Outcome],
    label: str,
    described: bool = True,
    settings: Callable[[SlowSDE, Array], dict[str, Any]] = lambda sde, x0: {},
    belongs: AbstractProblem | None = None,
    **how: Any,
) -> Trajectory:
    """The trajectory of a run: prepared (`how` are keywords of `prepared`), solved, recorded.

    `described` says whether `optimizer` is what is run, or stands in for one that is not known; `settings` are those of
    this kind of run, to which its checkpoint belongs; `belongs` is the problem whose slow SDE is its limit, if that is
    not `problem`. `RunError` where a path failed, if the request says so, and
    `Interrupted` after Ctrl-C. Of many starts `solve` gets all, (starts, p)."""
    given = problem, optimizer, start_of(params0, 0) if asked.stacked else params0
    with prepared(asked, *given, v0, **how) as (sde, x0, v0):
        if asked.stacked:
            x0 = flat_starts(params0, asked.paths, x0)
        digest = digests(belongs or problem, *given[1:], known=described)
        keeps = asked.pieces.checkpoint
        if keeps is not None:
            keeps.open(belonging(asked, sde, x0, v0, digest | settings(sde, x0[0] if asked.stacked else x0)))
        found = None if keeps is None else finished(keeps, sde)
        if found is None:
            found = solve(asked, sde, x0, v0)
            found.stats["digest"] = digest
            if keeps is not None and not asked.pieces.interrupted:
                keep_finished(keeps, found)
        if asked.pieces.interrupted:
            cut = (found.result == Result.SUCCESS) & ~found.good[:, -1]
            found = found._replace(result=np.where(cut, Result.INTERRUPTED, found.result))
        return recorded(asked, found, label)


def recorded(asked: Request, found: Outcome, label: str) -> Trajectory:
    """The trajectory of what a solve found, with its metrics; NaN wherever a path had failed."""
    values = evaluate(asked.metrics, found.sde, found.xs, found.vs)
    xs, vs, values = blanked(found.good, to_numpy((found.xs, found.vs, values)))
    trajectory = Trajectory(
        ts=found.ts,
        params=found.sde.chart.unravel(xs),
        v=vs,
        metrics={name: values[name] for name in asked.metrics},
        stats=found.stats,
        result=found.result,
        label=label,
        end=found.end,
    )
    copies = asked.paths // trajectory.paths  # of a flow one path is solved, as all are equal
    trajectory = repeated(trajectory, copies)
    _tell_undefined(trajectory, np.repeat(np.asarray(found.good), copies, axis=0))
    # With compilation and metrics, from the call on.
    trajectory.stats["seconds"] = time.perf_counter() - asked.started
    messages = found.stats.get("messages", {})
    if messages and len(messages) < trajectory.paths:
        tell(messages, trajectory.paths)
        return finish(trajectory, found.ended, False)
    return finish(trajectory, np.repeat(found.ended, copies), asked.throw)


def _tell_undefined(trajectory: Trajectory, good: np.ndarray) -> None:
    """A warning where a metric is NaN or infinite at points that are finite, and in `stats` at how many of them."""
    counts = {name: int(np.sum(good & ~np.isfinite(values))) for name, values in trajectory.metrics.items()}
    counts = {name: count for name, count in counts.items() if count}
    trajectory.stats["undefined"] = counts
    for name, count in counts.items():
        first = trajectory.ts[np.any(good & ~np.isfinite(trajectory.metrics[name]), axis=0)][0]
        warnings.warn(
            f"metrics[{name!r}] is not finite at {count} of {int(good.sum())} points that are, from t={first:.4g} on: "
            "means over paths leave them out.",
            UserWarning,
            stacklevel=5,  # the call of the run
        )


def diverged(xs: Any, x0: Any) -> np.ndarray:
    """(paths, T) whether a path is 10¹⁰ times as far out as its start: no number of it means anything, though it is
    finite still (a run beyond the edge of stability was at 3·10⁸⁹ when it ended)."""
    size = float(np.max(np.abs(np.asarray(x0))))
    with np.errstate(over="ignore"):
        far = np.abs(xs).max(axis=-1) > FAR * (size if size > ORIGIN else 1.0)
    # What has once been so far out does not come back.
    return np.logical_or.accumulate(far, axis=1)


def blanked(good: np.ndarray, saved: PyTree) -> PyTree:
    """NaN wherever a path had failed, in leaves (paths, T, ...)."""

    def blank(leaf: np.ndarray) -> np.ndarray:
        # Diffrax leaves inf in rows that were not reached, and a failed path its last state: both would pass for
        # results.
        return np.where(good.reshape(good.shape + (1,) * (leaf.ndim - 2)), leaf, np.nan)

    return jax.tree.map(blank, saved)

"""The frame of every run: what is asked, the problem on flat coordinates, a solve, and the trajectory it makes.

    request → prepared → solve → recorded

A kind of run adds its own mathematics alone, a function solve(asked, sde, x0, v0) -> `Outcome`; `run` does the rest.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from manifolds.support.arrays import ORIGIN
from manifolds.support.coordinates import check_parameters
from manifolds.support.precision import cast, to_numpy, working_precision

from ..dynamics import checks
from ..dynamics.digest import differences, digests
from ..dynamics.slow_sde import SlowSDE
from ..metrics.metric import Metric, check_metrics, evaluate
from ..metrics.named import as_metrics
from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route, as_route
from ..support import arguments
from ..support.effort import check_memory
from ..support.progress import meter
from .files import is_array
from .trajectory import Trajectory, finish, repeated

SAVED_STATS = 7  # numbers about a saved point: residual, rank, eigenvalues, ...
FAR = 1e10  # how much larger than its start a path that diverged is


@dataclass(frozen=True)
class Request:
    """What any run is asked, checked: which paths, times and metrics, and how it is computed and told."""

    name: str  # of the call, for its messages and its progress line
    t0: float
    t1: float  # inf for a run to rest
    times: np.ndarray  # (T,) those to be saved; of a run to rest as if it ended at t0 + 1
    paths: int
    key: PRNGKeyArray
    metrics: dict[str, Metric]
    route: str | Route
    rank: int | None
    dtype: Any
    throw: bool
    progress: bool | None
    memory: float | None  # bytes that the run may take; None for those of this machine
    started: float  # seconds, on the clock of `time.perf_counter`

    @property
    def endless(self) -> bool:
        """Whether the run is to go on until it rests."""
        return self.t1 == np.inf

    def meter(self) -> dfx.AbstractProgressMeter[Any]:
        """The progress line of the run, which starts now."""
        return meter(self.name, self.progress)


def request(
    name: str,
    given: tuple[Any, ...],
    *,
    t1: Any,
    save_at: Any,
    metrics: Any,
    t0: Any = 0.0,
    paths: Any = 1,
    key: Any = None,
    route: str | Route = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
    memory: float | None = None,
    may_rest: bool = False,
) -> Request:
    """The `Request`; ValueError on what no run can be asked. `given` are the other arguments whose values must be
    known, `may_rest` says whether t1 may be infinite."""
    started = time.perf_counter()
    # First of all, as every other check looks at values.
    arguments.check_concrete(name, *given, t0, t1)
    endless = may_rest and arguments.is_number(t1) and t1 == np.inf
    if endless and np.ndim(save_at) > 0:
        raise ValueError(f"save_at={save_at}: a run to t1=inf has no end that is known before; pass a number of times.")
    return Request(
        name=name,
        t0=t0,
        t1=t1,
        times=arguments.save_times(save_at, t0, t0 + 1 if endless else t1),
        paths=arguments.positive_integer("paths", paths),
        key=arguments.check_key(key),
        metrics=as_metrics(metrics),
        route=as_route(route),
        rank=arguments.as_given_rank(rank),
        dtype=dtype,
        throw=arguments.flag("throw", throw),
        progress=None if progress is None else arguments.flag("progress", progress),
        memory=None if memory is None else arguments.number("memory", memory, "bytes.", above=0, infinite=True),
        started=started,
    )


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


class Outcome(NamedTuple):
    """What a solve found: the saved points of every path, and how each path ended."""

    sde: SlowSDE  # in which metrics are evaluated, at the rank of Γ
    ts: np.ndarray  # (T,)
    xs: Any  # (paths, T, p)
    vs: PyTree  # leaves (paths, T, ...)
    good: np.ndarray  # (paths, T) whether the path had not failed by then
    result: np.ndarray  # (paths,) `Result` codes
    ended: np.ndarray  # (paths,) when a path that failed did so
    stats: dict[str, Any]


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
    **how: Any,
) -> Trajectory:
    """The trajectory of a run: prepared (`how` are keywords of `prepared`), solved, recorded.

    `described` says whether `optimizer` is what is run, or stands in for one that is not known. `RunError` where a path
    failed, if the request says so."""
    given = problem, optimizer, params0
    with prepared(asked, *given, v0, **how) as (sde, x0, v0):
        found = solve(asked, sde, x0, v0)
        found.stats["digest"] = digests(*given, known=described)
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
    )
    copies = asked.paths // trajectory.paths  # of a flow one path is solved, as all are equal
    trajectory = repeated(trajectory, copies)
    _tell_undefined(trajectory, np.repeat(np.asarray(found.good), copies, axis=0))
    # With compilation and metrics, from the call on.
    trajectory.stats["seconds"] = time.perf_counter() - asked.started
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

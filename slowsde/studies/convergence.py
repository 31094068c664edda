"""How fast discrete runs approach the slow SDE as the learning rate falls: weak errors and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from manifolds.support.coordinates import Coordinates, check_parameters
from manifolds.support.user_functions import shown

from ..dynamics.result import Result
from ..dynamics.slow_sde import slow_sde
from ..metrics.named import as_metrics
from ..optimizers.agm import AGM
from ..optimizers.sgd import no_state
from ..plot.cards import card, in_columns
from ..plot.orders import plot_convergence
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..runs.discrete import run_discrete
from ..runs.simulate import simulate
from ..runs.trajectory import Trajectory
from ..support import arguments
from .order_fit import OrderFit, fit_order

HEADER = ("observable", "lr", "paths", "slow", "error", "s.e.", "error/s.e.")
WIDTHS = (10, 8, 13, 12, 11, 12)  # of its columns behind the first
SLOW_PATHS = 16  # slow paths for each discrete one: they are the cheaper ones


@dataclass(frozen=True, repr=False)
class ConvergenceStudy:
    """Weak error of discrete runs against the slow SDE at the end of a run, per observable and learning rate.

    Attributes (n learning rates):
        lrs: (n,) learning rates η, as given.
        ts: (n,) slow times of the comparison, t1 rounded to whole steps of each learning rate.
        paths: (n,) discrete runs.
        slow_paths: slow runs; 1 where nothing diffuses.
        reference, reference_error: name -> (n,) mean of the slow SDE at `ts` and its standard error.
        errors: name -> (n,), discrete mean − slow mean, in the units of the observable.
        covariance: name -> (n, n) of `errors`: the discrete runs are independent, the slow ones are shared.
        fits: name -> `OrderFit`.
    """

    lrs: np.ndarray
    ts: np.ndarray
    paths: np.ndarray
    slow_paths: int
    reference: dict[str, np.ndarray]
    reference_error: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    covariance: dict[str, np.ndarray]
    fits: dict[str, OrderFit]

    @property
    def standard_errors(self) -> dict[str, np.ndarray]:
        """name -> (n,), of `errors`: of the discrete and the slow mean together."""
        return {name: np.sqrt(np.diag(matrix)) for name, matrix in self.covariance.items()}

    @property
    def order(self) -> dict[str, float]:
        """name -> the exponent q of |error| ~ η^q; nan where the errors are not resolved."""
        return {name: fit.order for name, fit in self.fits.items()}

    @property
    def order_interval(self) -> dict[str, tuple[float, float]]:
        """name -> (low, high), the 95 % interval of `order`."""
        return {name: fit.interval for name, fit in self.fits.items()}

    def verdict(self, name: str) -> str:
        """One plain sentence on this observable."""
        fit = self.fits[name]
        if fit.refusal:
            return f"no order: {fit.refusal}"
        misfit = f"; no straight line, chi2/dof = {fit.misfit:.1f}, so the interval is wider" if fit.misfit > 1 else ""
        return f"order {fit.order:.3f}, 95 % interval ({fit.interval[0]:.3f}, {fit.interval[1]:.3f}){misfit}"

    def table(self) -> str:
        """Slow mean, error and standard error of every observable at every learning rate, and the order."""
        lines = [self._title, in_columns(HEADER, WIDTHS)]
        for name in self.errors:
            lines += [in_columns(row, WIDTHS) for row in self._rows(name)]
            lines.append(f"  -> {self.verdict(name)}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        verdicts = "; ".join(f"{name}: {self.verdict(name)}" for name in self.errors)
        return f"<ConvergenceStudy at {self.lrs.size} learning rates: {verdicts}>"

    def _repr_html_(self) -> str:
        rows = [row for name in self.errors for row in self._rows(name)]
        notes = [f"{name}: {self.verdict(name)}" for name in self.errors]
        return card(self._title, HEADER, rows, notes=notes, draw=self.plot)

    def _rows(self, name: str) -> list[list[str]]:
        """The cells of an observable at every learning rate."""
        columns = self.lrs, self.paths, self.reference[name], self.errors[name], self.standard_errors[name]
        rows = [
            [f"{lr:.4g}", str(paths), f"{slow:.6g}", f"{error:.3g}", f"{s:.2g}", f"{error / s:.1f}" if s > 0 else "-"]
            for lr, paths, slow, error, s in zip(*columns, strict=True)
        ]
        return [[name if row == 0 else "", *cells] for row, cells in enumerate(rows)]

    @property
    def _title(self) -> str:
        return f"weak error at t={np.median(self.ts):.4g}: discrete mean − slow mean ({self.slow_paths} slow paths)"

    def plot(self, ax: Any = None, *, name: str | None = None, **kw: Any) -> Any:
        """|error| against lr with error bars, the fitted line and its interval; of `name`, by default the first."""
        return plot_convergence(self, ax=ax, name=name, **kw)


def convergence_study(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    lrs: Sequence[float],
    paths: int | Sequence[int],
    key: PRNGKeyArray | None = None,
    observables: Any,
    slow_paths: int | None = None,
    v0: PyTree = None,
    solver: str = "auto",
    dt: float | None = None,
    rtol: float = 1e-8,
    route: str | Route = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    progress: bool | None = None,
) -> ConvergenceStudy:
    """The weak error at slow time t1 of the optimizer at falling learning rates η, and its order q.

        error(η) = mean of f over discrete runs of k = t1/η² steps − mean of f over the slow SDE,    |error| ~ η^q

    The order is the slope of log|error| on log η by least squares, weighted by the covariance of log|error|, that of
    the errors over error² (delta method). Its 95 % interval is ± 1.96 standard errors; where χ² per degree of freedom
    exceeds 1, the line does not fit within the noise, so that √(χ²/dof) and Student's t with n − 2 degrees of freedom
    widen it. No line is drawn, and the order is nan, unless every |error| exceeds 4 standard errors and all have one
    sign; `table()` then says which do not, and how many paths it would take.

    The slow mean is that of one path where nothing diffuses (label noise) and otherwise of `slow_paths` independent
    paths, used at every learning rate. Every mean is taken at the same time on both sides, t1 rounded to whole steps.

    Args:
        problem, optimizer, params0, v0, route, rank, dtype, progress: as in `simulate`.
        t1: slow time, t = kη².
        lrs: at least two different learning rates.
        paths: discrete runs for every learning rate, or one number for each. The error falls like η, so equally
            resolved errors take about 1/η² paths.
        key: random key; None for `jax.random.key(0)`.
        observables: names from `slowsde.metrics`, `Metric` objects, or {name: fn(params) -> scalar}.
        slow_paths: paths of a slow SDE that diffuses; None for 16 times the largest of `paths`.
        solver, dt, rtol: as in `simulate`, of the slow SDE. Its own error, O(dt) or O(rtol), is part of what is
            measured: keep it below the errors of interest.

    Returns: `ConvergenceStudy`.
    Raises: ValueError on bad input, before any run (c·lr² > 1 among it); `RunError` if a run fails.

    Example:
        >>> start = to_manifold(problem, params0)
        >>> study = convergence_study(problem, sgd(), start, 0.5, lrs=(0.08, 0.04, 0.02), paths=64,
        ...                           observables="trace_hessian")
        >>> print(study.table())
    """
    arguments.save_times(2, 0.0, t1)
    rates = _learning_rates(lrs, optimizer, t1)
    counts = _numbers_of_paths(paths, rates.size)
    named = as_metrics(observables)
    if not named:
        raise ValueError(f"observables={observables!r} is empty: name at least one, such as 'trace_hessian'.")
    base = arguments.check_key(key)
    check_parameters(params0)
    arguments.check_tolerance("rtol", rtol)
    # Of a flow one path is the mean: more would be equal.
    diffuses = slow_sde(problem, optimizer, Coordinates.of(params0), route).diffuses
    copies = _slow_copies(slow_paths, counts) if diffuses else 1
    where = problem, optimizer, params0
    shared: dict[str, Any] = {"v0": v0, "metrics": named, "route": route, "rank": rank}
    shared |= {"dtype": dtype, "progress": progress}
    # The discrete run ends on a whole step, up to η²/2 from t1: the slow mean at that very time, or the error would
    # have a part of order η².
    ends = np.maximum(1, np.rint(t1 / rates**2)) * rates**2
    times, at = np.unique(ends, return_inverse=True)
    # Keys of their own for the slow paths and for every rate: runs that share noise would share errors, which the
    # covariance knows nothing of.
    slowly = {"paths": copies, "key": jr.fold_in(base, 0), "solver": solver, "dt": dt, "rtol": rtol, **shared}
    slow = simulate(*where, times[-1], save_at=times, **slowly)
    runs = [
        run_discrete(*where, end, save_at=[end], lr=lr, paths=count, key=jr.fold_in(base, 1 + index), **shared)
        for index, (end, lr, count) in enumerate(zip(ends.tolist(), rates.tolist(), counts.tolist(), strict=True))
    ]
    return study_of_runs(slow, at, runs)


def _slow_copies(slow_paths: int | None, counts: np.ndarray) -> int:
    copies = SLOW_PATHS * int(counts.max()) if slow_paths is None else arguments.positive_integer("paths", slow_paths)
    if copies < 2:
        raise ValueError(f"slow_paths={slow_paths} must be at least 2 where the slow SDE diffuses: 1 has no spread.")
    return copies


def study_of_runs(slow: Trajectory, at: Sequence[int] | np.ndarray, runs: Sequence[Trajectory]) -> ConvergenceStudy:
    """The study of discrete runs, each by its last saved time, against the saved times `slow.ts[at]`.

    Failed paths are left out.
    """
    at = np.asarray(at)
    lrs = np.array([run.stats["lr"] for run in runs])
    counts = np.array([np.sum(run.result == Result.SUCCESS) for run in runs])
    reference, reference_error, errors, covariance = {}, {}, {}, {}
    for name in slow.metrics:
        samples = slow.metrics[name][slow.result == Result.SUCCESS][:, at]
        finals = [run.metrics[name][run.result == Result.SUCCESS, -1] for run in runs]
        # The slow ensemble is shared by all rates, so that its error is correlated between them: by its times a full
        # matrix.
        of_slow = np.zeros((at.size, at.size))
        if len(samples) > 1:
            of_slow = np.atleast_2d(np.cov(samples, rowvar=False)) / len(samples)
        reference[name], reference_error[name] = samples.mean(axis=0), np.sqrt(np.diag(of_slow))
        errors[name] = np.array([final.mean() for final in finals]) - reference[name]
        covariance[name] = of_slow + np.diag([final.var(ddof=1) / final.size for final in finals])
    fits = {name: fit_order(lrs, errors[name], covariance[name], counts, reference[name]) for name in errors}
    ts = np.array([run.ts[-1] for run in runs])
    return ConvergenceStudy(lrs, ts, counts, slow.paths, reference, reference_error, errors, covariance, fits)


def _learning_rates(lrs: Any, optimizer: AGM, t1: float) -> np.ndarray:
    try:
        rates = np.asarray(lrs)
        rates = rates.astype(float) if rates.dtype.kind in "iuf" else np.zeros(0)
    except (TypeError, ValueError):
        rates = np.zeros(0)
    # All different: two equal ones determine no slope.
    if rates.ndim != 1 or not (np.isfinite(rates) & (rates > 0)).all() or np.unique(rates).size < max(2, rates.size):
        raise ValueError(
            f"lrs={shown(lrs)} must be at least two different positive learning rates, such as (0.04, 0.02)."
        )
    if not isinstance(optimizer, AGM):
        raise ValueError(f"optimizer={shown(optimizer)} must be an AGM, such as sgd(), adam(c=1.0) or AGM(V, S, c).")
    if optimizer.quasi_static:
        raise ValueError("c=inf is a limit of the slow SDE; discrete runs need a finite c = (1 − β2)/η².")
    largest, c = float(rates.max()), float(optimizer.c)
    if c * largest**2 > 1 and optimizer.V is not no_state:
        raise ValueError(
            f"lrs contains {largest:g}, too large for c={c:g}: β2 = 1 − cη² is negative. Keep lrs below {c**-0.5:.3g}."
        )
    if t1 < largest**2:
        raise ValueError(
            f"lrs contains {largest:g}, but t1={t1} is less than one step of it, lr² = {largest**2:.3g}. Slow time is "
            "t = kη²: raise t1 or lower the learning rate."
        )
    return rates


def _numbers_of_paths(paths: Any, n: int) -> np.ndarray:
    each = [paths] * n if np.ndim(paths) == 0 else list(paths)
    counts = np.array([arguments.positive_integer("paths", count) for count in each])
    if counts.size != n:
        raise ValueError(f"paths={paths!r} has {counts.size} numbers for {n} lrs: give one number, or one for each.")
    if counts.min() < 2:
        raise ValueError(f"paths={paths!r} must be at least 2: a single run has no standard error.")
    return counts

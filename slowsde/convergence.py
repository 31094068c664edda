"""How fast discrete runs approach the slow SDE as the learning rate falls: weak errors and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.random as jr
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree
from scipy.special import ndtri, stdtrit

from manifolds.coordinates import Coordinates, check_parameters

from . import checks
from .comparison import RESOLVED, ROUNDING
from .discrete import run_discrete
from .integrate import simulate
from .metrics import as_metrics
from .optimizers import AGM
from .problems import AbstractProblem
from .route import Route
from .slow_sde import slow_sde
from .trajectory import Result, Trajectory

LEVEL = 0.95
SLOW_PATHS = 16  # slow paths for each discrete one: they are the cheaper ones


@dataclass(frozen=True)
class OrderFit:
    """A straight line through log|error| against log lr.

    Attributes:
        order: its slope; nan if it was not fitted.
        interval: (low, high), 95 %.
        centre: (lr, |error|), the point through which the lines of every slope within the interval pass.
        misfit: χ² per degree of freedom; nan for two learning rates, which any line fits.
        refusal: why it was not fitted; empty if it was.
    """

    order: float
    interval: tuple[float, float]
    centre: tuple[float, float]
    misfit: float
    refusal: str = ""


@dataclass(frozen=True)
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
        lines = [
            f"weak error at t={np.median(self.ts):.4g}: discrete mean − slow mean ({self.slow_paths} slow paths)",
            f"{'observable':<28}{'lr':>10}{'paths':>8}{'slow':>13}{'error':>12}{'s.e.':>11}{'error/s.e.':>12}",
        ]
        for name, errors in self.errors.items():
            for row, (lr, error, spread) in enumerate(zip(self.lrs, errors, self.standard_errors[name], strict=True)):
                ratio = f"{error / spread:12.1f}" if spread > 0 else f"{'-':>12}"
                lines.append(
                    f"{name if row == 0 else '':<28}{lr:10.4g}{self.paths[row]:8d}{self.reference[name][row]:13.6g}"
                    f"{error:12.3g}{spread:11.2g}{ratio}"
                )
            lines.append(f"  -> {self.verdict(name)}")
        return "\n".join(lines)

    def plot(self, ax: Any = None, *, name: str | None = None, **kw: Any) -> Any:
        """|error| against lr with error bars, the fitted line and its interval; of `name`, by default the first."""
        from . import plot

        return plot.plot_convergence(self, ax=ax, name=name, **kw)


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
        >>> study = convergence_study(problem, sgd(), start, 1.0, lrs=(0.04, 0.02, 0.01), paths=256,
        ...                           observables="trace_hessian")
        >>> print(study.table())
    """
    checks.save_times(2, 0.0, t1)
    rates = _learning_rates(lrs, optimizer, t1)
    counts = _numbers_of_paths(paths, rates.size)
    named = as_metrics(observables)
    if not named:
        raise ValueError(f"observables={observables!r} is empty: name at least one, such as 'trace_hessian'.")
    key = checks.check_key(key)
    check_parameters(params0)
    if slow_sde(problem, optimizer, Coordinates.of(params0), route).diffuses:
        copies = SLOW_PATHS * int(counts.max()) if slow_paths is None else checks.check_paths(slow_paths)
        if copies < 2:
            raise ValueError(
                f"slow_paths={slow_paths} must be at least 2 where the slow SDE diffuses: 1 has no spread."
            )
    else:
        copies = 1
    shared: dict[str, Any] = {"v0": v0, "metrics": named, "route": route, "rank": rank}
    shared |= {"dtype": dtype, "progress": progress}
    ends = np.maximum(1, np.rint(t1 / rates**2)) * rates**2
    times, at = np.unique(ends, return_inverse=True)
    slow = simulate(
        problem,
        optimizer,
        params0,
        times[-1],
        paths=copies,
        key=jr.fold_in(key, 0),
        save_at=times,
        solver=solver,
        dt=dt,
        rtol=rtol,
        **shared,
    )
    runs = [
        run_discrete(
            problem,
            optimizer,
            params0,
            end,
            lr=lr,
            paths=count,
            key=jr.fold_in(key, 1 + index),
            save_at=[end],
            **shared,
        )
        for index, (end, lr, count) in enumerate(zip(ends.tolist(), rates.tolist(), counts.tolist(), strict=True))
    ]
    return study_of_runs(slow, at, runs)


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
        of_slow = np.zeros((at.size, at.size))
        if len(samples) > 1:
            of_slow = np.atleast_2d(np.cov(samples, rowvar=False)) / len(samples)
        reference[name], reference_error[name] = samples.mean(axis=0), np.sqrt(np.diag(of_slow))
        errors[name] = np.array([final.mean() for final in finals]) - reference[name]
        covariance[name] = of_slow + np.diag([final.var(ddof=1) / final.size for final in finals])
    fits = {name: fit_order(lrs, errors[name], covariance[name], counts, reference[name]) for name in errors}
    ts = np.array([run.ts[-1] for run in runs])
    return ConvergenceStudy(lrs, ts, counts, slow.paths, reference, reference_error, errors, covariance, fits)


def fit_order(
    lrs: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    covariance: Float[np.ndarray, "n n"],
    paths: np.ndarray | int = 1,
    reference: np.ndarray | float = 0.0,
) -> OrderFit:
    """Slope of log|error| on log lr with its 95 % interval; refused unless the errors are resolved and of one sign.

    `paths` (n,) only serves to say how many would do; `reference` (n,) is the size against which rounding is judged.
    """
    refusal = _refusal(lrs, errors, np.sqrt(np.diag(covariance)), np.broadcast_to(paths, lrs.shape), reference)
    if refusal:
        return OrderFit(np.nan, (np.nan, np.nan), (np.nan, np.nan), np.nan, refusal)
    x, y = np.log(lrs), np.log(np.abs(errors))
    # Errors without any noise weigh equally: a relative variance far below every misfit.
    noise = covariance / np.outer(errors, errors) + 1e-20 * np.eye(x.size)
    weights = np.linalg.inv(noise)
    total = weights.sum()
    x0, y0 = weights.sum(axis=0) @ x / total, weights.sum(axis=0) @ y / total
    dx, dy = x - x0, y - y0
    information = dx @ weights @ dx
    slope = float(dx @ weights @ dy / information)
    misfit, wide = np.nan, ndtri((1 + LEVEL) / 2)
    if x.size > 2:
        rest = dy - slope * dx
        misfit = float(rest @ weights @ rest / (x.size - 2))
        if misfit > 1:
            wide = stdtrit(x.size - 2, (1 + LEVEL) / 2) * np.sqrt(misfit)
    half = float(wide / np.sqrt(information))
    return OrderFit(slope, (slope - half, slope + half), (float(np.exp(x0)), float(np.exp(y0))), misfit)


def _refusal(
    lrs: np.ndarray, errors: np.ndarray, spread: np.ndarray, paths: np.ndarray, reference: np.ndarray | float
) -> str:
    """Why no line can be drawn through these errors; empty if one can."""
    floor = np.broadcast_to(ROUNDING * np.maximum(np.abs(reference), ROUNDING), errors.shape)
    lost = ~(np.abs(errors) > RESOLVED * spread + floor)
    if lost.any():
        clauses = []
        for i in np.flatnonzero(lost):
            if not RESOLVED * spread[i] > floor[i]:
                clauses.append(f"lr={lrs[i]:g} ({errors[i]:.2g} is rounding: use a larger lr)")
                continue
            size = np.abs(errors[i]) / spread[i]
            needed = int(np.ceil(paths[i] * (RESOLVED / max(size, 1.0)) ** 2 * 1.2))
            bound = "about" if size > 1 else "more than"
            clauses.append(f"lr={lrs[i]:g} ({size:.1f} s.e.; {bound} {needed} paths would resolve it)")
        return f"not beyond {RESOLVED:g} s.e. at " + ", ".join(clauses)
    if np.ptp(np.sign(errors)) > 0:
        sign = np.sign(errors[np.argmin(lrs)])
        others = ", ".join(f"{lr:g}" for lr in lrs[np.sign(errors) != sign])
        return f"the error changes its sign (lr={others} against the smallest): no power of lr; use smaller lrs"
    return ""


def _learning_rates(lrs: Any, optimizer: AGM, t1: float) -> np.ndarray:
    try:
        rates = np.asarray(lrs, dtype=float)
    except (TypeError, ValueError):
        rates = np.zeros(0)
    if rates.ndim != 1 or not (np.isfinite(rates) & (rates > 0)).all() or np.unique(rates).size < max(2, rates.size):
        raise ValueError(f"lrs={lrs!r} must be at least two different positive learning rates, such as (0.04, 0.02).")
    if not isinstance(optimizer, AGM):
        raise ValueError(f"optimizer={optimizer!r} must be an AGM, such as sgd(), adam(c=1.0) or AGM(V, S, c).")
    if optimizer.quasi_static:
        raise ValueError("c=inf is a limit of the slow SDE; discrete runs need a finite c = (1 − β2)/η².")
    largest, c = float(rates.max()), float(optimizer.c)
    if c * largest**2 > 1:
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
    counts = np.array([checks.check_paths(count) for count in each])
    if counts.size != n:
        raise ValueError(f"paths={paths!r} has {counts.size} numbers for {n} lrs: give one number, or one for each.")
    if counts.min() < 2:
        raise ValueError(f"paths={paths!r} must be at least 2: a single run has no standard error.")
    return counts

"""How well a slow trajectory describes discrete runs: gaps with standard errors, a table, a verdict, a picture."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from manifolds.support.user_functions import shown

from ..dynamics.digest import differences
from ..dynamics.result import Result
from ..plot.cards import card, in_columns
from ..plot.comparisons import plot_comparison
from ..plot.verdicts import shade_untrusted
from ..runs.change_of_clock import clock_of
from ..runs.trajectory import Trajectory
from .order_fit import RESOLVED, ROUNDING
from .prediction import Prediction
from .validity import VERDICTS, Validity, validity_of_run

SIZES = ("small gap", "visible gap", "LARGE gap")
SMALL, LARGE = 0.05, 0.2  # of the range that the slow observable runs through: what the verdicts of `validity` promise
FEW = 5  # saved times through which no curve is drawn
WIDTHS = (8, 13, 13, 12, 11, 10)  # of its columns behind the first
COMFORTABLE = 0.1  # the most that "comfortable" allows for


@dataclass(frozen=True, repr=False)
class Comparison:
    """The gap between a discrete ensemble and the slow SDE, or a prediction, per observable.

    Attributes:
        ts: (T,) slow times, those of the discrete runs at which there is something to compare.
        slow_mean, discrete_mean: name -> (T,), over the paths that are finite at that time; NaN where there are none.
        gap: name -> (T,), discrete mean − slow mean; of those observables alone that are finite in both somewhere after
            the start (`missing` names the others).
        standard_error: name -> (T,), of the gap; NaN where one discrete path of several is left, 0 where there is one.
            Of a prediction both its errors are in it.
        slow, discrete: the trajectories compared; of a prediction `slow` is `Prediction.as_trajectory()`.
        validity: whether the slow SDE may be trusted at the learning rate of the discrete runs; None if unknown.
        counts: name -> (T,), how many discrete paths were there.
        missing: what was left out, in words: points of the discrete runs, observables; "" for nothing.
    """

    ts: np.ndarray
    slow_mean: dict[str, np.ndarray]
    discrete_mean: dict[str, np.ndarray]
    gap: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    slow: Trajectory
    discrete: Trajectory
    validity: Validity | None = None
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    missing: str = ""

    def relative_gap(self, name: str) -> float:
        """The largest |gap| over time, as a fraction of the range that the slow observable runs through."""
        return float(np.nanmax(np.abs(self.gap[name]))) / self._range(name)

    def resolved(self, name: str) -> np.ndarray:
        """(T,) whether the gap exceeds four standard errors, so that it is not chance. The start is left out."""
        rounding = ROUNDING * np.maximum(np.abs(self.slow_mean[name]), ROUNDING)
        beyond = np.abs(self.gap[name]) > RESOLVED * self.standard_error[name] + rounding
        return beyond & (self.ts > self.ts[0])

    def verdict(self, name: str) -> str:
        """One plain sentence on this observable."""
        if self.discrete.paths == 1:
            return "one discrete run: no error bars; run more paths to judge"
        if not np.isfinite(self.standard_error[name]).any():
            return f"one discrete run is left: no error bars; run more paths to judge{self._left_over(name)}"
        if not np.isfinite(self.gap[name][1:]).any():
            return f"nothing to judge: no time after the start at which both are finite{self._left_over(name)}"
        relative = self.relative_gap(name)
        percent = "" if np.isnan(relative) else f" ({100 * relative:.2g} % of its change)"
        worst = np.nanmax(np.abs(self.gap[name]))
        noise = RESOLVED * np.nanmax(self.standard_error[name])
        if not self.resolved(name).any():
            said = f"agree: no gap beyond 4 s.e. (largest gap {worst:.2g}, 4 s.e. up to {noise:.2g})"
        else:
            share = np.mean(self.resolved(name)[1:])
            size = SIZES[_level(relative)]
            said = f"{size}: up to {worst:.2g}{percent}, beyond 4 s.e. at {100 * share:.0f} % of times"
        return said + self._left_over(name)

    @property
    def trust(self) -> str:
        """One sentence on trust: what `validity` expected, set right by what was measured where the two differ."""
        if self.validity is None:
            return ""
        expected, measured = VERDICTS.index(self.validity.verdict), self._measured
        if measured is None or expected == _level(measured) or (expected == 0 and measured < COMFORTABLE):
            return self.validity.summary
        reason = f", {self.validity.reasons[0]}" if self.validity.reasons else ""
        than = "larger" if expected > _level(measured) else "smaller"
        return (
            f"at lr={self.validity.lr:g}: measured up to {100 * measured:.2g} %, {than} gaps were expected "
            f"({self.validity.verdict}{reason}): go by what was measured, for these observables and times"
        )

    def table(self) -> str:
        """Start, middle and end of every observable with gap and standard error, a verdict each, and `trust`."""
        lines = [self._title, in_columns(self._header, WIDTHS)]
        for name in self.gap:
            lines += self._rows(name)
            lines.append(f"  -> {self.verdict(name)}")
        if self.missing:
            lines.append(f"left out: {self.missing}")
        if self.validity is not None:
            lines.append(self.trust)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        verdicts = "; ".join(f"{name}: {self.verdict(name)}" for name in self.gap)
        return f"<Comparison at {self.ts.size} times: {verdicts}>"

    def _repr_html_(self) -> str:
        rows = [[name if row == 0 else "", *cells] for name in self.gap for row, cells in enumerate(self._shown(name))]
        notes = [f"{name}: {self.verdict(name)}" for name in self.gap]
        notes += [f"left out: {self.missing}"] if self.missing else []
        return card(self._title, self._header, rows, notes=[*notes, self.trust], draw=self._figure)

    def _figure(self, ax: Any) -> None:
        self.plot(ax).legend(fontsize="small", frameon=False)

    def plot(self, ax: Any = None, *, name: str | None = None, **kw: Any) -> Any:
        """The slow curve, the discrete mean, its band and single runs; of observable `name`, by default the first.

        Times at which the slow SDE is not valid are shaded.
        """
        labels: dict[str, Any] = {}
        if self.slow.label == "predicted":
            labels["slow_label"] = f"predicted at $\\eta$={self.slow.stats['lr']:g}"
        ax = plot_comparison(self, ax=ax, name=name, **(labels | kw))
        return ax if self.validity is None else shade_untrusted(self.validity, ax)

    @property
    def _measured(self) -> float | None:
        """The largest relative gap of the observables; None where error bars are too wide to tell how large it is."""
        if self.discrete.paths == 1:
            return None
        sizes = {name: self.relative_gap(name) for name in self.gap if self._tells_size(name)}
        largest = max(sizes.values(), default=np.nan)
        decided = len(sizes) == len(self.gap) or largest >= LARGE
        return largest if decided and np.isfinite(largest) else None

    def _tells_size(self, name: str) -> bool:
        """Whether a gap of this observable is no chance, or would be seen if it were not small."""
        noise = RESOLVED * np.max(np.nan_to_num(self.standard_error[name], nan=np.inf)) / self._range(name)
        return bool(self.resolved(name).any() or noise < SMALL)

    def _range(self, name: str) -> float:
        """How far the slow observable runs; nan where it stands still."""
        slow = self.slow_mean[name]
        travelled = float(np.nanmax(slow) - np.nanmin(slow))
        return travelled if travelled > 1e-12 * np.nanmax(np.abs(slow)) else np.nan

    @property
    def _title(self) -> str:
        lr, steps = self.discrete.stats.get("lr", float("nan")), self.discrete.stats.get("num_steps", "?")
        runs = f"{self.discrete.paths} paths, lr={lr:g}, {steps} steps"
        model = self._model if self._model == "predicted" else f"slow ({self.slow.paths} paths)"
        return f"{model} against discrete ({runs})"

    @property
    def _model(self) -> str:
        return "predicted" if self.slow.label == "predicted" else "slow"

    @property
    def _header(self) -> tuple[str, ...]:
        return ("observable", "t", self._model, "discrete", "gap", "s.e.", "gap/s.e.")

    def _rows(self, name: str) -> list[str]:
        return [in_columns([name if row == 0 else "", *cells], WIDTHS) for row, cells in enumerate(self._shown(name))]

    def _shown(self, name: str) -> list[list[str]]:
        """The cells of start, middle and end of an observable, as far as there is a gap."""
        there = np.flatnonzero(np.isfinite(self.gap[name]))
        if not there.size:
            return []
        return [self._cells(name, row) for row in sorted({int(there[0]), int(there[len(there) // 2]), int(there[-1])})]

    def _cells(self, name: str, row: int) -> list[str]:
        gap, error, slow = self.gap[name][row], self.standard_error[name][row], self.slow_mean[name][row]
        known = error > ROUNDING * max(abs(slow), ROUNDING)
        means = [f"{self.ts[row]:.3g}", f"{slow:.6g}", f"{self.discrete_mean[name][row]:.6g}", f"{gap:.3g}"]
        return [*means, f"{error:.2g}" if np.isfinite(error) else "-", f"{gap / error:.1f}" if known else "-"]

    def _left_over(self, name: str) -> str:
        """How many paths the means of this observable are over, where that is not all of them at every time."""
        counts = self.counts.get(name, np.array([self.discrete.paths]))
        if not self.missing:
            return ""
        return f"; means over {counts.min()} to {counts.max()} of {self.discrete.paths} paths, see what was left out"


def _level(relative: float) -> int:
    """0, 1, 2 for a small, a visible, a large gap; what cannot be measured in the range of the observable is large."""
    return 0 if relative < SMALL else 1 if relative < LARGE else 2


def compare(slow: Trajectory | Prediction, discrete: Trajectory, validity: Validity | None = None) -> Comparison:
    """The gap, discrete mean − slow mean, of every observable that both trajectories carry, with its standard error.

        s.e.² = Var(discrete)/paths + Var(slow)/paths,    of the same many starts (stacked=True) Var(gaps)/starts

    The slow means are interpolated (monotone cubic) to the discrete times, which are whole steps; a slow run saved at
    fewer than 5 times is compared at those alone. At every time the paths count whose observable is finite, so that
    a path or a point that failed takes nothing else away; what was left out is told (`missing`), as are means over few
    paths by their standard errors.

    `validity` says where to trust the slow SDE (see `slowsde.validity`); None to judge by what `slow.stats` tell about
    stability, relaxation and momentum at the learning rate of the discrete runs, where they do. Where the measured gap
    says otherwise, the measurement has the last word (`Comparison.trust`).

    In place of `slow` a `Prediction` for that learning rate may stand, which is judged as the slow SDE is, its standard
    and model error counted in; `validity` then has no say.

    Raises: ValueError if the two are not of one problem and one optimizer (`stats["digest"]`) on one clock, share no
        observable or do not overlap in time, if nothing of one is finite, or if a prediction is for another rate.

    Example:
        >>> print(compare(slow, fast).table())
    """
    errors = None
    if isinstance(slow, Prediction):
        _check_rate(slow, discrete)
        slow, errors = slow.as_trajectory(), {name: (slow.error[name], slow.model_error[name]) for name in slow.mean}
    _check_sides(slow, discrete)
    names = [name for name in slow.metrics if name in discrete.metrics]
    if not names:
        raise ValueError(
            f"slow has metrics {sorted(slow.metrics)} and discrete {sorted(discrete.metrics)}: none in common. Pass "
            "the same metrics= to simulate and run_discrete."
        )
    slack = 1e-9 + 0.5 * float(discrete.stats.get("lr", 0.0)) ** 2  # discrete times are rounded to whole steps
    inside = (discrete.ts >= slow.ts[0] - slack) & (discrete.ts <= slow.ts[-1] + slack)
    if not inside.any() or slow.ts.size < 2:
        raise ValueError(
            f"slow covers t in [{slow.ts[0]:g}, {slow.ts[-1]:g}] and discrete [{discrete.ts[0]:g}, "
            f"{discrete.ts[-1]:g}]: no common times. Give both the same t1 and save_at."
        )
    if slow.ts.size < FEW:
        # No curve through so few points: a straight line once made a gap of 18 % of one of 12 %.
        inside &= np.min(np.abs(discrete.ts[:, None] - slow.ts), axis=1) <= slack
    if not inside.any():
        raise ValueError(
            f"slow was saved at {slow.ts.size} times, too few to interpolate, and none of them is one of discrete's: "
            "save more of slow (save_at), or both at the same times."
        )
    undefined = {name: _nowhere(name, slow, discrete) for name in names}
    names = [name for name in names if not undefined[name]]
    if not names:
        raise ValueError(f"Nothing can be compared: {_joined(undefined)}.")
    given = {} if errors is None else errors
    moments = {name: _side_by_side(slow, discrete, name, slack, given.get(name)) for name in names}
    there = inside & np.any([np.isfinite(found.slow + found.discrete) for found in moments.values()], axis=0)
    if not there.any():
        raise ValueError("slow and discrete are finite at no common time: every path of one failed before the other.")
    means = {side: {name: getattr(m, side)[there] for name, m in moments.items()} for side in ("slow", "discrete")}
    if validity is None and errors is None:
        validity = validity_of_run(slow, discrete.stats.get("lr", 0.0))
    return Comparison(
        ts=discrete.ts[there],
        slow_mean=means["slow"],
        discrete_mean=means["discrete"],
        gap={name: means["discrete"][name] - means["slow"][name] for name in names},
        standard_error={name: found.error[there] for name, found in moments.items()},
        slow=slow,
        discrete=discrete,
        validity=validity,
        counts={name: found.count[there] for name, found in moments.items()},
        missing="; ".join(filter(None, (_left_out(discrete, names, inside, there), _joined(undefined)))),
    )


def _check_sides(slow: Any, discrete: Any) -> None:
    """ValueError unless one is a model and the other a discrete run, on one clock."""
    for name, run in (("slow", slow), ("discrete", discrete)):
        if not isinstance(run, Trajectory):
            raise ValueError(f"{name}={shown(run)} must be a Trajectory.")
    if slow.label == "discrete":
        swapped = ": the two are swapped" if discrete.label != "discrete" else ""
        raise ValueError(f"slow is a discrete trajectory{swapped}. Pass compare(slow, discrete).")
    if discrete.label == "slow":
        raise ValueError("discrete is a slow trajectory: pass a run of run_discrete as the second argument.")
    clocks = clock_of(slow), clock_of(discrete)
    if clocks[0] != clocks[1]:
        raise ValueError(
            f"slow is kept on the clock t = {clocks[0]}, discrete on t = {clocks[1]}: bring both to one, as by "
            "on_slow_clock(trajectory)."
        )
    for name, side in (("slow", slow), ("discrete", discrete)):
        own = np.asarray(side.stats.get("times", side.ts), float)
        if not np.allclose(own, side.ts):
            raise ValueError(
                f"{name} has many starts, each saved at times of its own (t1=inf, see stats['times']): simulate to a "
                "finite t1 to compare."
            )
    same = slow.label in ("slow", "predicted")
    others = differences(slow.stats.get("digest"), discrete.stats.get("digest")) if same else []
    if others:
        raise ValueError(f"slow and discrete do not belong together: one is of {' and '.join(others)} than the other.")


def _check_rate(prediction: Prediction, discrete: Any) -> None:
    """ValueError where the runs are known to be at another learning rate than the prediction is for."""
    rate = discrete.stats.get("lr", prediction.lr) if isinstance(discrete, Trajectory) else prediction.lr
    if not np.isclose(rate, prediction.lr, rtol=1e-6):
        raise ValueError(
            f"slow is a prediction for lr={prediction.lr:g}, and discrete was run at lr={rate:g}: predict at that one."
        )


def _joined(reasons: dict[str, str]) -> str:
    return "; ".join(filter(None, reasons.values()))


def _nowhere(name: str, slow: Trajectory, discrete: Trajectory) -> str:
    """Why an observable says nothing about the gap, in words; "" if it does."""
    for run in (slow, discrete):
        values = run.metrics[name][run.result == Result.SUCCESS]
        if not values.size:  # every path failed: what there was until then may still be compared
            values = run.metrics[name]
        after = np.isfinite(values[:, 1:] if run.ts.size > 1 else values)
        if not after.any():
            why = "every path failed" if not (run.result == Result.SUCCESS).any() else "its paths are finite, it is not"
            return f"{name} of the {run.label} trajectory is nowhere finite after the start ({why})"
    return ""


@dataclass(frozen=True)
class _Moments:
    """Both means, the standard error of their difference and the number of discrete paths at the discrete times."""

    slow: np.ndarray
    discrete: np.ndarray
    error: np.ndarray
    count: np.ndarray


def _side_by_side(
    slow: Trajectory, discrete: Trajectory, name: str, slack: float, given: tuple[np.ndarray, np.ndarray] | None = None
) -> _Moments:
    """`given` is the error of the slow mean where that is no matter of its paths, and what of it no pairs show."""
    if _same_starts(slow, discrete):
        found = _in_pairs(slow, discrete, name, slack)
        unseen = 0.0 if given is None else np.interp(discrete.ts, slow.ts, given[1])
        return replace(found, error=np.hypot(found.error, unseen))
    from scipy.interpolate import PchipInterpolator

    slow_mean, slow_error, slow_count = _mean_and_error(slow, name)
    slow_error = slow_error if given is None else given[0]
    mean, error, count = _mean_and_error(discrete, name)
    known = slow_count > 0
    ts, ends = slow.ts[known], slow.ts[known][[0, -1]]
    reached = (discrete.ts >= ends[0] - slack) & (discrete.ts <= ends[1] + slack)
    at = np.clip(discrete.ts, *ends)
    curve = PchipInterpolator(ts, slow_mean[known])(at) if ts.size > 1 else np.full(at.shape, slow_mean[known][0])
    error = np.hypot(error, np.interp(at, ts, slow_error[known]))
    return _Moments(np.where(reached, curve, np.nan), mean, error, count)


def _same_starts(slow: Trajectory, discrete: Trajectory) -> bool:
    """Whether path i of both is from start i of many (stacked=True)."""
    return "messages" in slow.stats and "messages" in discrete.stats and slow.paths == discrete.paths > 1


def _in_pairs(slow: Trajectory, discrete: Trajectory, name: str, slack: float) -> _Moments:
    """Means over the starts, and the standard error of the mean of their gaps: the spread of starts drops out."""
    from scipy.interpolate import PchipInterpolator

    at = np.clip(discrete.ts, *slow.ts[[0, -1]])
    reached = np.abs(discrete.ts - at) <= slack
    curves = np.full(discrete.metrics[name].shape, np.nan)
    for curve, values in zip(curves, slow.metrics[name], strict=True):
        known = np.isfinite(values)
        if known.sum() > 1:
            curve[:] = PchipInterpolator(slow.ts[known], values[known], extrapolate=False)(at)
    gaps = np.where(reached, discrete.metrics[name] - curves, np.nan)
    there = np.isfinite(gaps)
    count = there.sum(axis=0)
    means = [
        np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1) for values in (curves, discrete.metrics[name])
    ]
    squares = np.where(there, gaps - (means[1] - means[0]), 0) ** 2
    error = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1) / np.maximum(count, 1))
    slow_mean, mean = (np.where(count > 0, values, np.nan) for values in means)
    return _Moments(slow_mean, mean, np.where(count > 1, error, np.nan), count)


def _mean_and_error(trajectory: Trajectory, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) each: mean over the paths that are finite then, its standard error and their number."""
    values = trajectory.metrics[name]
    there = np.isfinite(values)
    if not there.any():
        raise ValueError(
            f"{name} of the {trajectory.label} trajectory is nowhere finite: every path failed, and there is nothing "
            "to compare."
        )
    count = there.sum(axis=0)
    mean = np.where(count > 0, np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    squares = np.where(there, values - mean, 0) ** 2
    error = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1) / np.maximum(count, 1))
    return mean, np.where((count > 1) | (trajectory.paths == 1), error, np.nan), count


def _left_out(discrete: Trajectory, names: list[str], inside: np.ndarray, there: np.ndarray) -> str:
    """Which of the discrete points within the common times are missing for some observable, and why."""
    good = np.all([np.isfinite(discrete.metrics[name]) for name in names], axis=0)[:, inside]
    if good.all() and there[inside].all():
        return ""
    times, codes = discrete.ts[inside], np.unique(discrete.result[~good.all(axis=1)])
    why = ", ".join(Result(int(code)).name for code in codes if code != Result.SUCCESS)
    empty = np.count_nonzero(~there[inside])
    return (
        f"{np.count_nonzero(~good)} of {good.size} discrete points"
        + (f" ({why})" if why else "")
        + (f", from t={times[np.argmin(good.all(axis=0))]:.3g} on" if not good.all() else "")
        + (f"; nothing to compare at {empty} of {times.size} times" if empty else "")
        + "; means are over the paths that are left"
    )

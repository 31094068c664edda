"""How well a slow trajectory describes discrete runs: gaps with standard errors, a table, a verdict, a picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dynamics.result import Result
from ..plot.comparisons import plot_comparison
from ..plot.verdicts import shade_untrusted
from ..runs.trajectory import Trajectory
from .order_fit import RESOLVED, ROUNDING
from .validity import Validity, validity_of_run


@dataclass(frozen=True)
class Comparison:
    """The gap between a discrete ensemble and the slow SDE, per observable.

    Attributes:
        ts: (T,) slow times, those of the discrete runs.
        slow_mean, discrete_mean: name -> (T,).
        gap: name -> (T,), discrete mean − slow mean.
        standard_error: name -> (T,), of the gap.
        slow, discrete: the trajectories compared.
        validity: whether the slow SDE may be trusted at the learning rate of the discrete runs; None if unknown.
    """

    ts: np.ndarray
    slow_mean: dict[str, np.ndarray]
    discrete_mean: dict[str, np.ndarray]
    gap: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    slow: Trajectory
    discrete: Trajectory
    validity: Validity | None = None

    def relative_gap(self, name: str) -> float:
        """The largest |gap| over time, as a fraction of the range that the slow observable runs through."""
        travelled = float(np.ptp(self.slow_mean[name]))
        scale = travelled if travelled > 1e-12 * np.max(np.abs(self.slow_mean[name])) else np.nan
        return float(np.max(np.abs(self.gap[name]))) / scale

    def resolved(self, name: str) -> np.ndarray:
        """(T,) whether the gap exceeds four standard errors, so that it is not chance. The start is left out."""
        rounding = ROUNDING * np.maximum(np.abs(self.slow_mean[name]), ROUNDING)
        beyond = np.abs(self.gap[name]) > RESOLVED * self.standard_error[name] + rounding
        return beyond & (self.ts > self.ts[0])

    def verdict(self, name: str) -> str:
        """One plain sentence on this observable."""
        if self.discrete.paths == 1:
            return "one discrete run: no error bars; run more paths to judge"
        relative = self.relative_gap(name)
        percent = "" if np.isnan(relative) else f" ({100 * relative:.2g} % of its change)"
        worst = np.max(np.abs(self.gap[name]))
        noise = RESOLVED * np.max(self.standard_error[name])
        if not self.resolved(name).any():
            return f"agree: no gap beyond 4 s.e. (largest gap {worst:.2g}, 4 s.e. up to {noise:.2g})"
        size = "small gap" if relative < 0.05 else "visible gap" if relative < 0.2 else "LARGE gap"
        share = np.mean(self.resolved(name)[1:])
        return f"{size}: up to {worst:.2g}{percent}, beyond 4 s.e. at {100 * share:.0f} % of times"

    def table(self) -> str:
        """Start, middle and end of every observable with gap and standard error, a verdict each, and `validity`."""
        lr = self.discrete.stats.get("lr", float("nan"))
        lines = [
            f"slow ({self.slow.paths} paths) against discrete ({self.discrete.paths} paths, lr={lr:g}, "
            f"{self.discrete.stats.get('num_steps', '?')} steps)",
            f"{'observable':<28}{'t':>8}{'slow':>13}{'discrete':>13}{'gap':>12}{'s.e.':>11}{'gap/s.e.':>10}",
        ]
        rows = sorted({0, len(self.ts) // 2, len(self.ts) - 1})
        for name in self.gap:
            for row in rows:
                gap, error = self.gap[name][row], self.standard_error[name][row]
                known = error > ROUNDING * max(abs(self.slow_mean[name][row]), ROUNDING)
                ratio = f"{gap / error:10.1f}" if known else f"{'-':>10}"
                lines.append(
                    f"{name if row == rows[0] else '':<28}{self.ts[row]:8.3g}{self.slow_mean[name][row]:13.6g}"
                    f"{self.discrete_mean[name][row]:13.6g}{gap:12.3g}{error:11.2g}{ratio}"
                )
            lines.append(f"  -> {self.verdict(name)}")
        if self.validity is not None:
            lines.append(self.validity.summary)
        return "\n".join(lines)

    def plot(self, ax: Any = None, *, name: str | None = None, **kw: Any) -> Any:
        """The slow curve, the discrete mean, its band and single runs; of observable `name`, by default the first.

        Times at which the slow SDE is not valid are shaded.
        """
        ax = plot_comparison(self, ax=ax, name=name, **kw)
        return ax if self.validity is None else shade_untrusted(self.validity, ax)


def compare(slow: Trajectory, discrete: Trajectory, validity: Validity | None = None) -> Comparison:
    """The gap, discrete mean − slow mean, of every observable that both trajectories carry, with its standard error.

        s.e.² = Var(discrete)/paths + Var(slow)/paths

    The slow means are interpolated (monotone cubic) to the discrete times, which are whole steps. Failed paths are
    left out, and at least one of each must have succeeded.

    `validity` says where to trust the slow SDE (see `slowsde.validity`); None to judge by what `slow.stats` tell about
    stability, relaxation and momentum at the learning rate of the discrete runs, where they do.

    Raises: ValueError if the two share no observable or do not overlap in time.

    Example:
        >>> print(compare(slow, fast).table())
    """
    from scipy.interpolate import PchipInterpolator

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
    ts = discrete.ts[inside]
    means: dict[str, dict[str, np.ndarray]] = {"slow": {}, "discrete": {}}
    errors: dict[str, np.ndarray] = {}
    for name in names:
        slow_mean, slow_error = _mean_and_error(slow, name)
        fast_mean, fast_error = _mean_and_error(discrete, name)
        at = np.clip(ts, slow.ts[0], slow.ts[-1])
        means["slow"][name] = PchipInterpolator(slow.ts, slow_mean)(at)
        means["discrete"][name] = fast_mean[inside]
        errors[name] = np.hypot(fast_error[inside], np.interp(at, slow.ts, slow_error))
    gap = {name: means["discrete"][name] - means["slow"][name] for name in names}
    if validity is None:
        validity = validity_of_run(slow, discrete.stats.get("lr", 0.0))
    return Comparison(ts, means["slow"], means["discrete"], gap, errors, slow, discrete, validity)


def _mean_and_error(trajectory: Trajectory, name: str) -> tuple[np.ndarray, np.ndarray]:
    good = trajectory.result == Result.SUCCESS
    if not good.any():
        raise ValueError(f"Every path of the {trajectory.label} trajectory failed: there is nothing to compare.")
    values = trajectory.metrics[name][good]
    spread = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    return values.mean(axis=0), spread

"""Slow SDE against discrete runs: curves, bands and gaps."""

from __future__ import annotations

from typing import Any

from .results import Comparison
from .style import (
    DISCRETE,
    LABELS,
    SLOW,
    axes_for,
    draw_ensemble,
    finished,
    mean_over_paths,
    observable,
)


def plot_comparison(
    comparison: Comparison,
    *,
    ax: Any = None,
    name: str | None = None,
    runs: int = 8,
    slow_label: str | None = "slow SDE",
    discrete_label: str | None = None,
    slow_style: dict[str, Any] | None = None,
    discrete_style: dict[str, Any] | None = None,
) -> Any:
    """Slow curve, discrete mean with a band of ± 2 standard deviations of a run, and `runs` single runs.

    Example:
        >>> plot.plot_comparison(compare(slow, fast), name="trace_hessian")
    """
    name = observable(comparison.gap, name)
    ax = axes_for(ax)
    slow_style, discrete_style = SLOW | (slow_style or {}), DISCRETE | (discrete_style or {})
    discrete = comparison.discrete
    if discrete_label is None:
        discrete_label = f"discrete, $\\eta$={discrete.stats.get('lr', float('nan')):g} (mean of {discrete.paths})"
    draw_ensemble(ax, discrete, name, runs, discrete_style)
    ax.plot(comparison.ts, comparison.discrete_mean[name], label=discrete_label, **discrete_style)
    # The slow curve at its own times, not at those of the comparison: it may be saved more finely.
    draw_ensemble(ax, comparison.slow, name, 0, slow_style)
    ax.plot(comparison.slow.ts, mean_over_paths(comparison.slow, name), label=slow_label, **slow_style)
    return finished(ax, name)


def plot_gap(comparison: Comparison, *, ax: Any = None, name: str | None = None, **kw: Any) -> Any:
    """The gap over time with a band of ± 4 standard errors: where the band misses zero, the gap is real.

    Example:
        >>> plot.plot_gap(compare(slow, fast), name="trace_hessian")
    """
    name = observable(comparison.gap, name)
    ax = axes_for(ax)
    style = DISCRETE | {"linestyle": "-"} | kw
    gap, error = comparison.gap[name], comparison.standard_error[name]
    ax.axhline(0, color="0.5", linewidth=0.8)
    # Four, as `compare` judges.
    ax.fill_between(comparison.ts, gap - 4 * error, gap + 4 * error, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(comparison.ts, gap, **style)
    finished(ax, name)
    ax.set_ylabel(f"gap in {LABELS.get(name, name)}  (± 4 s.e.)")
    return ax

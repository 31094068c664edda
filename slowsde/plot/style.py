"""What all figures share: styles, labels, axes, and the drawing of an ensemble."""

from __future__ import annotations

from typing import Any

import numpy as np

from .results import Trajectory

# Readable in grey: the slow curve is dark and solid, the discrete mean lighter and marked, bands are faint.
SLOW = {"color": "#10263f", "linewidth": 2.0, "zorder": 4}
DISCRETE = {"color": "#d1652a", "linewidth": 1.4, "linestyle": "--", "zorder": 5}
COLOURS = ("#10263f", "#d1652a", "#3b7f8c", "#8a5a9e", "#b08a1e", "0.55")
"""The colours of one curve after the other, as in `plot_test_error`."""
MARKERS = "osv^Dx"
"""Their markers, which tell them apart in grey."""
DASHES = ("-", "--", "-.", ":")
LABELS = {
    "loss": "loss $L$",
    "trace_hessian": r"$\mathrm{tr}\,H$",
    "trace_sqrt_diag_hessian": r"$\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$",
    "adaptive_sharpness": r"$\mathrm{tr}\,S(v)H$",
    "r_med": r"$R_{\mathrm{med}}$",
    "distance": r"distance from the start",
}
"""Name of an observable -> its label on an axis; others have their names."""
TIME = r"slow time  $t = k\eta^2$"
"""The label of an axis of slow time."""
CLOCKS = {"k·lr²": TIME, "k·lr": r"time  $t = k\eta$"}
"""`stats["clock"]` of a trajectory -> the label of its axis of time."""


def draw_ensemble(ax: Any, trajectory: Trajectory, name: str, runs: int, style: dict[str, Any]) -> None:
    """A band of ± 2 standard deviations of a single run, and `runs` runs; nothing if all agree."""
    values = trajectory.metrics[name]
    count = np.isfinite(values).sum(axis=0)
    mean = mean_over_paths(trajectory, name)
    spread = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.where(count > 1, count - 1, np.nan))
    if not np.any(spread > 0):
        return
    ax.fill_between(trajectory.ts, mean - 2 * spread, mean + 2 * spread, color=style["color"], alpha=0.15, linewidth=0)
    for run in values[:runs]:
        ax.plot(trajectory.ts, run, color=style["color"], alpha=0.3, linewidth=0.5, zorder=2)


def mean_over_paths(trajectory: Trajectory, name: str) -> np.ndarray:
    """(T,) the mean over the paths that are finite at each time; NaN where none is."""
    values = trajectory.metrics[name]
    count = np.isfinite(values).sum(axis=0)
    return np.nansum(values, axis=0) / np.where(count > 0, count, np.nan)


def observable(available: dict[str, Any], name: str | None) -> str:
    """`name`, or the first one available for None; ValueError, with the names there are, for another."""
    if name is None and available:
        return next(iter(available))
    if name not in available:
        raise ValueError(f"name={name!r} is not an observable of this result; it has {sorted(available)}.")
    return name


def axes_for(ax: Any) -> Any:
    """`ax`, or new axes of the size that figures here have for None."""
    if ax is not None:
        return ax
    # Imported by the first figure: runs on machines without a display, or without Matplotlib, need none.
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4.5, 3.2), layout="constrained")[1]


def finished(ax: Any, name: str) -> Any:
    """The axes with slow time below and the label of observable `name` beside, open above and on the right."""
    ax.set_xlabel(TIME)
    ax.set_ylabel(LABELS.get(name, name))
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)
    return ax

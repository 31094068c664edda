"""Observables along trajectories, one against another, and test errors over sample sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .results import Trajectory
from .style import (
    CLOCKS,
    COLOURS,
    DASHES,
    DISCRETE,
    LABELS,
    MARKERS,
    SLOW,
    axes_for,
    draw_ensemble,
    finished,
    mean_over_paths,
    observable,
)


def plot_metric(trajectory: Trajectory, *, ax: Any = None, name: str | None = None, runs: int = 8, **kw: Any) -> Any:
    """The mean of one observable over the paths of a trajectory, its band of ± 2 standard deviations, single runs.

    Example:
        >>> plot.plot_metric(fast, name="trace_hessian")
    """
    name = observable(trajectory.metrics, name)
    ax = axes_for(ax)
    style = (SLOW if trajectory.label == "slow" else DISCRETE) | kw
    draw_ensemble(ax, trajectory, name, runs, style)
    ax.plot(trajectory.ts, mean_over_paths(trajectory, name), **({"label": trajectory.label} | style))
    finished(ax, name)
    ax.set_xlabel(CLOCKS[trajectory.stats.get("clock", "k·lr²")])
    return ax


def plot_sharpness(
    *trajectories: Trajectory,
    x: str = "trace_hessian",
    y: str = "trace_sqrt_diag_hessian",
    labels: Sequence[str] | None = None,
    ax: Any = None,
    **kw: Any,
) -> Any:
    """One sharpness against another along each trajectory, means over its paths: which of the two does it lower?

    Slow trajectories are solid lines, others dashed with their saved times marked; a filled dot is the end of each.
    `x` and `y` name observables that all carry (ValueError otherwise), `labels` the trajectories.

    Example:
        >>> both = ("trace_hessian", "trace_sqrt_diag_hessian")
        >>> with_sgd, with_adam = (simulate(problem, o, params0, 1.0, metrics=both) for o in (sgd(), adam(c=10.0)))
        >>> plot.plot_sharpness(with_sgd, with_adam, labels=("SGD", "Adam"))
    """
    if not trajectories:
        raise ValueError("plot_sharpness was given no trajectory: pass one or more.")
    labels = [trajectory.label for trajectory in trajectories] if labels is None else labels
    if len(labels) != len(trajectories):
        raise ValueError(f"labels={labels!r} names {len(labels)} trajectories; there are {len(trajectories)}.")
    ax = axes_for(ax)
    for number, (trajectory, label) in enumerate(zip(trajectories, labels, strict=True)):
        across, up = (mean_over_paths(trajectory, observable(trajectory.metrics, name)) for name in (x, y))
        slow = trajectory.label == "slow"
        style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.8 if slow else 1.0, "label": label}
        style |= {"linestyle": "-"} if slow else {"linestyle": "--", "marker": "o", "markersize": 3, "mfc": "white"}
        (line,) = ax.plot(across, up, **style | kw)
        ax.plot(across[-1:], up[-1:], "o", color=line.get_color(), markersize=6, zorder=line.get_zorder() + 1)
    finished(ax, y)
    ax.margins(0.05)
    ax.set_xlabel(LABELS.get(x, x))
    ax.legend(fontsize="small", frameon=False)
    return ax


def plot_test_error(samples: Sequence[int], errors: Mapping[str, Any], *, ax: Any = None, **kw: Any) -> Any:
    """Test error against the number of samples: means over seeds ± 2 standard errors (none for a single seed).

    The optimizers stand a little aside of one another, by up to 1 % of the range of `samples`, so that bars stay apart.

    Args:
        samples: (N,) sizes of the training set.
        errors: name of an optimizer -> (seeds, N) test errors.
        ax: axes to draw on; None for new ones.
        kw: style of all curves.
    Raises: ValueError unless every array is (seeds, N).

    Example:
        >>> errors = {"SGD": [[0.4, 0.2, 0.1], [0.5, 0.1, 0.1]], "Adam": [[0.3, 0.2, 0.1], [0.2, 0.1, 0.0]]}
        >>> plot.plot_test_error((8, 12, 20), errors)  # each (seeds, 3)
    """
    sizes = np.asarray(samples, float)
    if not errors:
        raise ValueError("plot_test_error was given no errors: pass {name: (seeds, N)} with at least one name.")
    arrays = {name: np.asarray(values, float) for name, values in errors.items()}
    for name, values in arrays.items():
        if values.ndim != 2 or values.shape[0] == 0 or values.shape[1:] != sizes.shape:
            raise ValueError(
                f"errors[{name!r}] has shape {values.shape}; it must be (seeds, {sizes.size}), one column for each of "
                "samples."
            )
    ax = axes_for(ax)
    # Bars at one abscissa would hide each other.
    aside = np.linspace(-0.01, 0.01, len(arrays)) * np.ptp(sizes) if len(arrays) > 1 else np.zeros(1)
    for number, (name, values) in enumerate(arrays.items()):
        seeds = len(values)
        spread = 2 * values.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else None
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        style |= {"linestyle": DASHES[number % len(DASHES)], "markersize": 5, "capsize": 2, "label": name}
        ax.errorbar(sizes + aside[number], values.mean(axis=0), spread, **style | kw)
    ax.set_xlabel("samples")
    ax.set_ylabel("test error  (± 2 s.e.)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize="small", frameon=False)
    return ax

"""Weak errors against the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np

from .results import ConvergenceStudy
from .style import (
    DISCRETE,
    LABELS,
    SLOW,
    axes_for,
    finished,
    observable,
)


def plot_convergence(
    study: ConvergenceStudy,
    *,
    ax: Any = None,
    name: str | None = None,
    guides: tuple[float, ...] = (0.5, 1.0),
    **kw: Any,
) -> Any:
    """|error| against the learning rate, log–log: ± 2 s.e., the fitted line with its 95 % interval, slopes `guides`.

    Hollow symbols are negative errors. Without a fit (see `ConvergenceStudy.verdict`) there is no line.

    Example:
        >>> start = to_manifold(problem, params0)
        >>> study = convergence_study(problem, sgd(), start, 0.5, lrs=(0.08, 0.04, 0.02), paths=64,
        ...                           observables="trace_hessian")
        >>> plot.plot_convergence(study, name="trace_hessian")
    """
    name = observable(study.errors, name)
    ax = axes_for(ax)
    style = SLOW | {"linestyle": "none", "marker": "o", "markersize": 5} | kw
    errors, spread, fit = study.errors[name], study.standard_errors[name], study.fits[name]
    size = np.abs(errors)
    ax.set_xscale("log")
    ax.set_yscale("log")
    lower = np.minimum(2 * spread, 0.9 * size)  # a bar down to zero has no place on a logarithmic axis
    ax.errorbar(study.lrs, size, [lower, 2 * spread], label="discrete − slow (± 2 s.e.)", capsize=2, **style)
    ax.plot(study.lrs[errors < 0], size[errors < 0], **style | {"markerfacecolor": "white", "zorder": 6})
    lrs = np.geomspace(study.lrs.min() / 1.15, study.lrs.max() * 1.15, 50)
    if not fit.refusal:
        # All through the weighted centre, where slope and height of the fit are uncorrelated.
        low, line, high = (fit.centre[1] * (lrs / fit.centre[0]) ** q for q in np.insert(fit.interval, 1, fit.order))
        label = f"order {fit.order:.2f}  ({fit.interval[0]:.2f}, {fit.interval[1]:.2f})"
        ax.plot(lrs, line, label=label, **DISCRETE | {"zorder": 3})
        ax.fill_between(lrs, low, high, color=DISCRETE["color"], alpha=0.2, linewidth=0)
    for slope, dashes in zip(guides, (":", "-.", "--", "-"), strict=False):
        # Half below the errors, so that guides are not taken for fits.
        guide = 0.5 * size[np.argmin(study.lrs)] * (lrs / study.lrs.min()) ** slope
        ax.plot(lrs, guide, color="0.5", linewidth=1, linestyle=dashes, label=f"slope {slope:g}", zorder=1)
    finished(ax, name)
    ax.set_xticks(study.lrs, [f"{lr:g}" for lr in study.lrs])
    ax.tick_params(axis="x", which="minor", labelbottom=False)
    ax.set_xlabel(r"learning rate  $\eta$")
    ax.set_ylabel(f"|weak error| of {LABELS.get(name, name)}")
    ax.legend(fontsize="small", frameon=False)
    return ax

"""Means at a learning rate between the slow SDE and the runs that they were predicted from."""

from __future__ import annotations

from typing import Any

from .results import Prediction
from .style import DASHES, DISCRETE, SLOW, axes_for, finished, mean_over_paths, observable

GREYS = ("0.35", "0.5", "0.65", "0.75")


def plot_prediction(
    prediction: Prediction, *, ax: Any = None, name: str | None = None, label: str | None = None, **kw: Any
) -> Any:
    """The predicted mean with a band of ± 2 errors, the slow SDE (η = 0), and the mean of the runs at each rate.

    Example:
        >>> found = predict(problem, adam(c=2.0), params0, t1=0.5, lr=0.01, metrics="trace_hessian")
        >>> plot.plot_prediction(found)
    """
    name = observable(prediction.mean, name)
    ax = axes_for(ax)
    style = DISCRETE | {"linestyle": "-"} | kw
    mean, error = prediction.mean[name], 2 * prediction.error[name]
    slow = prediction.slow
    ax.plot(slow.ts, mean_over_paths(slow, name), **SLOW | {"linewidth": 1.2}, label=r"slow SDE ($\eta\to 0$)")
    ax.fill_between(prediction.ts, mean - error, mean + error, color=style["color"], alpha=0.25, linewidth=0)
    label = f"predicted at $\\eta$={prediction.lr:g} (± 2 errors)" if label is None else label
    ax.plot(prediction.ts, mean, label=label, **style)
    for run, grey, dashes in zip(prediction.runs, GREYS, DASHES[1:] * 2, strict=False):
        rate = f"runs at $\\eta$={run.stats['lr']:g}"
        ax.plot(run.ts, mean_over_paths(run, name), color=grey, linestyle=dashes, linewidth=1, label=rate)
    return finished(ax, name)

"""Where a slow trajectory may be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np

from .results import Validity
from .style import (
    COLOURS,
    DISCRETE,
    axes_for,
    finished,
)


def plot_validity(validity: Validity, *, ax: Any = None, **kw: Any) -> Any:
    """Every ratio over the threshold above which it is bad, in slow time; shaded where doubtful and where not valid.

    Example:
        >>> plot.plot_validity(validity(problem, adam(c=10.0), slow, lr=0.01))
    """
    ax = axes_for(ax)
    shown = {name: values / validity.thresholds[name][1] for name, values in validity.ratios.items()}
    shown = {name: values for name, values in shown.items() if np.max(values) > 1e-4}  # rounding is no news
    for (name, values), colour in zip(shown.items(), COLOURS, strict=False):
        ax.plot(validity.ts, values, **({"color": colour, "label": name, "linewidth": 1.6} | kw))
    # Ratios have thresholds of their own: drawn over the second one, all share the line 1, and the lowest of the first
    # ones.
    doubtful = min(low / bad for low, bad in validity.thresholds.values())
    top = 3 * max(1.0, *(float(np.nanmax(values)) for values in shown.values())) if shown else 3.0
    ax.axhspan(doubtful, 1, color=DISCRETE["color"], alpha=0.08, linewidth=0)
    ax.axhspan(1, top, color=DISCRETE["color"], alpha=0.25, linewidth=0)
    for height, text in ((top, "not valid"), (1.0, "doubtful"), (doubtful, "comfortable")):
        ax.annotate(
            text,
            (1.01, height),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, -2),
            textcoords="offset points",
            va="top",
            fontsize="small",
            color="0.4",
        )
    ax.set_yscale("log")
    ax.set_ylim(top=top)
    finished(ax, f"ratio / threshold,  $\\eta$={validity.lr:g}")
    ax.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return ax


def shade_untrusted(validity: Validity, ax: Any) -> Any:
    """Vertical bands over the slow times at which the slow SDE is not valid, on axes in slow time such as those of
    `plot_comparison`.

    Example:
        >>> ax = plot.plot_comparison(compare(slow, fast))
        >>> plot.shade_untrusted(validity(problem, adam(c=10.0), slow, lr=0.02), ax)
    """
    bad = np.concatenate([[False], validity.levels == 2, [False]])
    edges = np.flatnonzero(np.diff(bad.astype(int)))
    # Levels are known at saved times: a band reaches half-way to the neighbours, so that a single bad time is seen.
    middles = np.concatenate([validity.ts[:1], (validity.ts[1:] + validity.ts[:-1]) / 2, validity.ts[-1:]])
    for number, (first, last) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        label = "slow SDE not valid" if number == 0 else None
        ax.axvspan(middles[first], middles[last], color="0.5", alpha=0.15, linewidth=0, zorder=0, label=label)
    return ax

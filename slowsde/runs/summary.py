"""A trajectory in one line and as a card."""

from collections import Counter
from typing import Any

import jax
import numpy as np

from ..dynamics.result import Result
from ..plot.cards import card
from ..plot.results import Trajectory
from ..plot.trajectories import plot_metric


def in_words(trajectory: Trajectory) -> str:
    """What it is of, over which times, with which observables, and how many paths failed."""
    ts, paths = trajectory.ts, trajectory.paths
    size = sum(int(np.prod(np.shape(leaf)[2:])) for leaf in _arrays(trajectory.params))
    said = f"{trajectory.label}: {paths} path{'s' * (paths != 1)}, {_times(ts)}, {size} parameters"
    named = f"; metrics {', '.join(trajectory.metrics)}" if trajectory.metrics else ""
    return f"{said}{named}{''.join(f'; {text}' for text in failures(trajectory))}"


def failures(trajectory: Trajectory) -> list[str]:
    """How many paths failed, and how: a sentence, or none."""
    failed = Counter(Result(int(code)).name for code in trajectory.result if code != Result.SUCCESS)
    how = ", ".join(f"{count} {name}" for name, count in failed.items())
    return [f"{sum(failed.values())} of {trajectory.paths} paths failed ({how})"] if failed else []


def as_card(trajectory: Trajectory) -> str:
    """Means over paths at start, middle and end, the spread of a path at the end, and the first observable drawn."""
    rows = sorted({0, len(trajectory.ts) // 2, len(trajectory.ts) - 1})
    spread = trajectory.paths > 1
    header = ["mean over paths", *(f"t={trajectory.ts[row]:.3g}" for row in rows), *["s.d. of a path"] * spread]
    drawn = len(rows) > 1 and any(np.isfinite(values).any() for values in list(trajectory.metrics.values())[:1])
    return card(
        in_words(trajectory).partition(";")[0],
        header,
        [[name, *_cells(values, rows, spread)] for name, values in trajectory.metrics.items()],
        notes=[*failures(trajectory), *_effort(trajectory.stats)],
        draw=(lambda ax: plot_metric(trajectory, ax=ax)) if drawn else None,
    )


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if np.ndim(leaf) >= 2]


def _times(ts: np.ndarray) -> str:
    return f"t={ts[0]:.4g}" if ts.size == 1 else f"{ts.size} times from t={ts[0]:.4g} to {ts[-1]:.4g}"


def _cells(values: np.ndarray, rows: list[int], spread: bool) -> list[str]:
    there = [column[np.isfinite(column)] for column in values[:, rows].T]
    means = [f"{np.mean(column):.5g}" if column.size else "-" for column in there]
    return [*means, *([f"{np.std(there[-1], ddof=1):.2g}" if there[-1].size > 1 else "-"] if spread else [])]


def _effort(stats: dict[str, Any]) -> list[str]:
    said = [f"lr={stats['lr']:g}"] if "lr" in stats else []
    said += [f"{name} {stats[name]}" for name in ("solver", "route") if name in stats]
    said += [f"{int(np.nanmax(stats['num_steps']))} steps"] if "num_steps" in stats else []
    said += [f"{stats['seconds']:.2g} s"] if "seconds" in stats else []
    return [", ".join(said)] if said else []

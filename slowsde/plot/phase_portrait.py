"""A problem of two parameters: Γ, the flow to it, slow paths and discrete iterates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manifolds as mf
from manifolds.maps.curve import curve_through
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import cast, working_precision

from .results import Trajectory
from .style import (
    DISCRETE,
    SLOW,
    axes_for,
)


def plot_phase_portrait(
    problem: Any,
    slow: Trajectory,
    discrete: Trajectory | None = None,
    *,
    optimizer: Any = None,
    ax: Any = None,
    runs: int = 8,
    window: tuple[tuple[float, float], tuple[float, float]] | None = None,
    **kw: Any,
) -> Any:
    """A problem of two parameters: Γ, the flow ẋ = −S∇L whose limits are Φ_S, slow paths and discrete iterates.

    Γ is drawn from the start of `slow` on, as far as it reaches within the window: other components are not looked for.

    Args:
        problem: with two parameters and a Γ of dimension one.
        slow: a run of `simulate`; all of its paths up to `runs` are drawn, their starts as filled dots.
        discrete: a run of `run_discrete`, with project=False to see the iterates themselves; up to `runs` paths.
        optimizer: whose metric S(v) at the start of `slow` the flow has; None for the Euclidean flow.
        ax: axes to draw on; None for new ones.
        runs: paths of each trajectory to draw.
        window: ((x0, x1), (y0, y1)); None for what the paths fill, and a third more.
        kw: style of the slow paths.
    Raises: ValueError unless there are two parameters.

    Example:
        >>> fast = run_discrete(problem, adam(c=10.0), params0, 1.0, lr=0.05, paths=4, project=False)
        >>> plot.plot_phase_portrait(problem, slow, fast, optimizer=adam(c=10.0))
    """
    shown = [_flat_paths(slow)[:runs]] + ([] if discrete is None else [_flat_paths(discrete)[:runs]])
    sizes = {paths.shape[-1] for paths in shown}
    if sizes != {2}:
        raise ValueError(f"A phase portrait has two parameters; these trajectories have {sorted(sizes)}.")
    frame = _window(np.concatenate([paths.reshape(-1, 2) for paths in shown])) if window is None else window
    ax = axes_for(ax)
    grid, velocity, curve = _portrait(problem, optimizer, slow, frame)
    speed = np.hypot(*np.moveaxis(velocity, -1, 0))
    # Directions alone: near Γ speeds fall to zero, and streamlines would end before it.
    directions = np.moveaxis(velocity / np.maximum(speed, 1e-300)[..., None], -1, 0)
    ax.streamplot(*grid, *directions, color="0.8", linewidth=0.7, arrowsize=0.7, density=0.9, zorder=1)
    ax.plot(*curve.T, color="0.35", linewidth=3.5, alpha=0.6, solid_capstyle="butt", label=r"$\Gamma$", zorder=2)
    if discrete is not None:
        for number, path in enumerate(shown[1]):
            label = _run_label(discrete) if number == 0 else None
            style = {"marker": "o", "markersize": 2.5, "mfc": "white", "linewidth": 0.4, "alpha": 0.7, "zorder": 3}
            ax.plot(*path.T, color=DISCRETE["color"], label=label, **style)
    for number, path in enumerate(shown[0]):
        (line,) = ax.plot(*path.T, **SLOW | {"label": "slow SDE" if number == 0 else None} | kw)
        ax.plot(*path[:1].T, "o", color=line.get_color(), markersize=6, zorder=line.get_zorder() + 1)
    ax.set_xlim(*frame[0])
    ax.set_ylim(*frame[1])
    ax.set_aspect("equal")
    ax.set_xlabel(r"$\theta_1$")
    ax.set_ylabel(r"$\theta_2$")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return ax


def _portrait(
    problem: Any, optimizer: Any, slow: Trajectory, window: Any
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """A grid on the window, −S∇L on it (its shape and 2), and the points of Γ through the start of `slow`."""
    first = jax.tree.map(lambda leaf: leaf[0, 0], (slow.params, slow.v))
    grid = np.meshgrid(*(np.linspace(low, high, 41) for low, high in window))
    with working_precision("float64") as precision:
        problem, optimizer, (params, v) = cast((problem, optimizer, first), precision)
        chart = Coordinates.of(params)
        loss = problem.flat_loss(chart, "dense")
        metric = mf.Identity() if optimizer is None else optimizer.metric(v, chart)
        xs = jnp.asarray(np.stack(grid, axis=-1).reshape(-1, 2), precision)
        velocity = -jax.vmap(lambda x: metric(loss.gradient(x)))(xs)
        # Steps of a 400th of the diagonal, and enough of them for three diagonals in either direction.
        step = np.hypot(*np.ptp(np.asarray(window), axis=1)) / 400
        curve = curve_through(loss, ravel(params), step, 1200)
        velocity, curve = np.asarray(velocity).reshape(*grid[0].shape, 2), np.asarray(curve)
    (low_x, high_x), (low_y, high_y) = window
    inside = (curve[:, 0] >= low_x) & (curve[:, 0] <= high_x) & (curve[:, 1] >= low_y) & (curve[:, 1] <= high_y)
    # NaN cuts the line where Γ leaves the window, and lets it come back.
    return (grid[0], grid[1]), velocity, np.where(inside[:, None], curve, np.nan)


def _flat_paths(trajectory: Trajectory) -> np.ndarray:
    """(paths, T, p) of the paths that succeeded, in the order of the flat coordinates."""
    good = trajectory.result == 0
    leaves = [np.asarray(leaf)[good] for leaf in jax.tree.leaves(trajectory.params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1)


def _window(points: np.ndarray) -> Any:
    """What the points fill and a sixth more on each side; no side is shorter than a fifth of the other."""
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    half = 4 / 3 * np.maximum(np.maximum(half, half.max() / 5), 1e-3 * (1 + np.abs(middle)))
    return tuple(zip(middle - half, middle + half, strict=True))


def _run_label(trajectory: Trajectory) -> str:
    lr = trajectory.stats.get("lr")
    return trajectory.label if lr is None else f"{trajectory.label}, $\\eta$={lr:g}"

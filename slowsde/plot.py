"""Figures of finished trajectories: `plot_x(result, *, ax=None, **kw) -> Axes`. No global setting is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .trajectory import Result, Trajectory

if TYPE_CHECKING:  # the results draw themselves through this module
    from .comparison import Comparison
    from .convergence import ConvergenceStudy
    from .optimizers import AGM
    from .problems import AbstractProblem
    from .trust import Validity

# Readable in grey: the slow curve is dark and solid, the discrete mean lighter and marked, bands are faint.
SLOW = {"color": "#10263f", "linewidth": 2.0, "zorder": 4}
DISCRETE = {"color": "#d1652a", "linewidth": 1.4, "linestyle": "--", "zorder": 5}
COLOURS = ("#10263f", "#d1652a", "#3b7f8c", "#8a5a9e", "#b08a1e", "0.55")
MARKERS, DASHES = "osv^Dx", ("-", "--", "-.", ":")
LABELS = {
    "loss": "loss $L$",
    "trace_hessian": r"$\mathrm{tr}\,H$",
    "trace_sqrt_diag_hessian": r"$\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$",
    "adaptive_sharpness": r"$\mathrm{tr}\,S(v)H$",
    "r_med": r"$R_{\mathrm{med}}$",
    "distance": r"distance from the start",
}
TIME = r"slow time  $t = k\eta^2$"
CLOCKS = {"k·lr²": TIME, "k·lr": r"time  $t = k\eta$"}


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
        >>> plot_comparison(compare(slow, fast), name="trace_hessian")
    """
    name = _observable(comparison.gap, name)
    ax = _axes(ax)
    slow_style, discrete_style = SLOW | (slow_style or {}), DISCRETE | (discrete_style or {})
    discrete = comparison.discrete
    if discrete_label is None:
        discrete_label = f"discrete, $\\eta$={discrete.stats.get('lr', float('nan')):g} (mean of {discrete.paths})"
    _ensemble(ax, discrete, name, runs, discrete_style)
    ax.plot(comparison.ts, comparison.discrete_mean[name], label=discrete_label, **discrete_style)
    _ensemble(ax, comparison.slow, name, 0, slow_style)
    ax.plot(comparison.slow.ts, _mean(comparison.slow, name), label=slow_label, **slow_style)
    return _finish(ax, name)


def plot_gap(comparison: Comparison, *, ax: Any = None, name: str | None = None, **kw: Any) -> Any:
    """The gap over time with a band of ± 4 standard errors: where the band misses zero, the gap is real."""
    name = _observable(comparison.gap, name)
    ax = _axes(ax)
    style = DISCRETE | {"linestyle": "-"} | kw
    gap, error = comparison.gap[name], comparison.standard_error[name]
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.fill_between(comparison.ts, gap - 4 * error, gap + 4 * error, color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(comparison.ts, gap, **style)
    _finish(ax, name)
    ax.set_ylabel(f"gap in {LABELS.get(name, name)}  (± 4 s.e.)")
    return ax


def plot_metric(trajectory: Trajectory, *, ax: Any = None, name: str | None = None, runs: int = 8, **kw: Any) -> Any:
    """The mean of one observable over the paths of a trajectory, its band of ± 2 standard deviations, single runs."""
    name = _observable(trajectory.metrics, name)
    ax = _axes(ax)
    style = (SLOW if trajectory.label == "slow" else DISCRETE) | kw
    _ensemble(ax, trajectory, name, runs, style)
    ax.plot(trajectory.ts, _mean(trajectory, name), **({"label": trajectory.label} | style))
    _finish(ax, name)
    ax.set_xlabel(CLOCKS[trajectory.stats.get("clock", "k·lr²")])
    return ax


def _ensemble(ax: Any, trajectory: Trajectory, name: str, runs: int, style: dict[str, Any]) -> None:
    values = trajectory.metrics[name][trajectory.result == Result.SUCCESS]
    if len(values) < 2 or not np.any(np.ptp(values, axis=0)):
        return
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    ax.fill_between(trajectory.ts, mean - 2 * spread, mean + 2 * spread, color=style["color"], alpha=0.15, linewidth=0)
    for run in values[:runs]:
        ax.plot(trajectory.ts, run, color=style["color"], alpha=0.3, linewidth=0.5, zorder=2)


def _mean(trajectory: Trajectory, name: str) -> np.ndarray:
    return trajectory.metrics[name][trajectory.result == Result.SUCCESS].mean(axis=0)


def _observable(available: dict[str, Any], name: str | None) -> str:
    if name is None and available:
        return next(iter(available))
    if name not in available:
        raise ValueError(f"name={name!r} is not an observable of this result; it has {sorted(available)}.")
    return name


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4.5, 3.2), layout="constrained")[1]


def _finish(ax: Any, name: str) -> Any:
    ax.set_xlabel(TIME)
    ax.set_ylabel(LABELS.get(name, name))
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


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
        >>> plot_convergence(study, name="trace_hessian")
    """
    name = _observable(study.errors, name)
    ax = _axes(ax)
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
        low, line, high = (fit.centre[1] * (lrs / fit.centre[0]) ** q for q in np.insert(fit.interval, 1, fit.order))
        label = f"order {fit.order:.2f}  ({fit.interval[0]:.2f}, {fit.interval[1]:.2f})"
        ax.plot(lrs, line, label=label, **DISCRETE | {"zorder": 3})
        ax.fill_between(lrs, low, high, color=DISCRETE["color"], alpha=0.2, linewidth=0)
    for slope, dashes in zip(guides, (":", "-.", "--", "-"), strict=False):
        guide = 0.5 * size[np.argmin(study.lrs)] * (lrs / study.lrs.min()) ** slope
        ax.plot(lrs, guide, color="0.5", linewidth=1, linestyle=dashes, label=f"slope {slope:g}", zorder=1)
    _finish(ax, name)
    ax.set_xticks(study.lrs, [f"{lr:g}" for lr in study.lrs])
    ax.tick_params(axis="x", which="minor", labelbottom=False)
    ax.set_xlabel(r"learning rate  $\eta$")
    ax.set_ylabel(f"|weak error| of {LABELS.get(name, name)}")
    ax.legend(fontsize="small", frameon=False)
    return ax


def plot_validity(validity: Validity, *, ax: Any = None, **kw: Any) -> Any:
    """Every ratio over the threshold above which it is bad, in slow time; shaded where doubtful and where not valid.

    Example:
        >>> plot_validity(validity(problem, optimizer, slow, lr=0.01))
    """
    ax = _axes(ax)
    shown = {name: values / validity.thresholds[name][1] for name, values in validity.ratios.items()}
    shown = {name: values for name, values in shown.items() if np.max(values) > 1e-4}  # rounding is no news
    for (name, values), colour in zip(shown.items(), COLOURS, strict=False):
        ax.plot(validity.ts, values, **({"color": colour, "label": name, "linewidth": 1.6} | kw))
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
    _finish(ax, f"ratio / threshold,  $\\eta$={validity.lr:g}")
    ax.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return ax


def shade_untrusted(validity: Validity, ax: Any) -> Any:
    """Vertical bands over the slow times at which the slow SDE is not valid, on axes in slow time such as those of
    `plot_comparison`."""
    bad = np.concatenate([[False], validity.levels == 2, [False]])
    edges = np.flatnonzero(np.diff(bad.astype(int)))
    middles = np.concatenate([validity.ts[:1], (validity.ts[1:] + validity.ts[:-1]) / 2, validity.ts[-1:]])
    for number, (first, last) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        label = "slow SDE not valid" if number == 0 else None
        ax.axvspan(middles[first], middles[last], color="0.5", alpha=0.15, linewidth=0, zorder=0, label=label)
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
        >>> plot_sharpness(slow_sgd, slow_adam, fast_adam, labels=("SGD", "Adam", "Adam, discrete"))
    """
    if not trajectories:
        raise ValueError("plot_sharpness was given no trajectory: pass one or more.")
    labels = [trajectory.label for trajectory in trajectories] if labels is None else labels
    if len(labels) != len(trajectories):
        raise ValueError(f"labels={labels!r} names {len(labels)} trajectories; there are {len(trajectories)}.")
    ax = _axes(ax)
    for number, (trajectory, label) in enumerate(zip(trajectories, labels, strict=True)):
        across, up = (_mean(trajectory, _observable(trajectory.metrics, name)) for name in (x, y))
        slow = trajectory.label == "slow"
        style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.8 if slow else 1.0, "label": label}
        style |= {"linestyle": "-"} if slow else {"linestyle": "--", "marker": "o", "markersize": 3, "mfc": "white"}
        (line,) = ax.plot(across, up, **style | kw)
        ax.plot(across[-1:], up[-1:], "o", color=line.get_color(), markersize=6, zorder=line.get_zorder() + 1)
    _finish(ax, y)
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
        >>> plot_test_error((8, 12, 20), {"SGD": sgd_errors, "Adam": adam_errors})  # each (seeds, 3)
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
    ax = _axes(ax)
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


def plot_phase_portrait(
    problem: AbstractProblem,
    slow: Trajectory,
    discrete: Trajectory | None = None,
    *,
    optimizer: AGM | None = None,
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
        >>> fast = run_discrete(problem, adam(c=1.0), (1.2, 0.5), 1.0, lr=0.05, paths=4, project=False)
        >>> plot_phase_portrait(problem, slow, fast, optimizer=adam(c=1.0))
    """
    shown = [_flat_paths(slow)[:runs]] + ([] if discrete is None else [_flat_paths(discrete)[:runs]])
    sizes = {paths.shape[-1] for paths in shown}
    if sizes != {2}:
        raise ValueError(f"A phase portrait has two parameters; these trajectories have {sorted(sizes)}.")
    frame = _window(np.concatenate([paths.reshape(-1, 2) for paths in shown])) if window is None else window
    ax = _axes(ax)
    grid, velocity, curve = _portrait(problem, optimizer, slow, frame)
    speed = np.hypot(*np.moveaxis(velocity, -1, 0))
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
    problem: AbstractProblem, optimizer: AGM | None, slow: Trajectory, window: Any
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """A grid on the window, −S∇L on it (its shape and 2), and the points of Γ through the start of `slow`."""
    import jax
    import jax.numpy as jnp

    import manifolds as mf
    from manifolds.coordinates import Coordinates, ravel
    from manifolds.precision import cast, working_precision

    first = jax.tree.map(lambda leaf: leaf[0, 0], (slow.params, slow.v))
    grid = np.meshgrid(*(np.linspace(low, high, 41) for low, high in window))
    with working_precision("float64") as precision:
        problem, optimizer, (params, v) = cast((problem, optimizer, first), precision)
        chart = Coordinates.of(params)
        loss = problem.flat_loss(chart, "dense")
        metric = mf.Identity() if optimizer is None else optimizer.metric(v, chart)
        xs = jnp.asarray(np.stack(grid, axis=-1).reshape(-1, 2), precision)
        velocity = -jax.vmap(lambda x: metric(loss.gradient(x)))(xs)
        step = np.hypot(*np.ptp(np.asarray(window), axis=1)) / 400
        curve = _along(loss, ravel(params), step, 1200)
        velocity, curve = np.asarray(velocity).reshape(*grid[0].shape, 2), np.asarray(curve)
    (low_x, high_x), (low_y, high_y) = window
    inside = (curve[:, 0] >= low_x) & (curve[:, 0] <= high_x) & (curve[:, 1] >= low_y) & (curve[:, 1] <= high_y)
    return (grid[0], grid[1]), velocity, np.where(inside[:, None], curve, np.nan)


def _along(loss: Any, x: Any, step: float, count: int) -> Any:
    """Points of the curve Γ through x, `count` steps along the tangent and back to Γ in either direction.

    Where the return fails, as beyond an end of Γ, the rest is NaN.
    """
    import jax
    import jax.numpy as jnp

    import manifolds as mf
    from manifolds.return_map import gauss_newton_return

    def tangent(y: Any, near: Any) -> Any:
        t = loss.normal_space(y, mf.Identity(), 1).project(near)
        return t / jnp.linalg.norm(t)

    def move(carry: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], Any]:
        y, direction = carry
        direction = tangent(y, direction)
        back = gauss_newton_return(loss, y + step * direction, mf.Identity(), jnp.asarray(1))
        stays = back.converged & (jnp.linalg.norm(back.point - y) < 3 * step)
        y = jnp.where(stays, back.point, jnp.nan)
        return (y, direction), y

    axes = loss.normal_space(x, mf.Identity(), 1).project(jnp.eye(2, dtype=x.dtype))
    start = axes[:, jnp.argmax(jnp.linalg.norm(axes, axis=0))]
    run = jax.jit(lambda sign: jax.lax.scan(move, (x, sign * start), None, length=count)[1])
    return jnp.concatenate([run(-1.0)[::-1], x[None], run(1.0)])


def _flat_paths(trajectory: Trajectory) -> np.ndarray:
    """(paths, T, p) of the paths that succeeded, in the order of the flat coordinates."""
    from jax import tree

    good = trajectory.result == Result.SUCCESS
    leaves = [np.asarray(leaf)[good] for leaf in tree.leaves(trajectory.params)]
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

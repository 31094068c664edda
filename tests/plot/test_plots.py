"""Portraits of two-parameter problems, sharpness against sharpness, test errors: what is drawn is what was computed."""

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import slowsde as ss

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SHARPNESS = ("trace_hessian", "trace_sqrt_diag_hessian")
ELLIPSE = ss.Problem(lambda x: 0.25 * (x[0] ** 2 + 4 * x[1] ** 2 - 1) ** 2, ss.GaussianNoise(0.3))
OPTIMIZER = ss.rmsprop(c=1.0, eps=0.05)
V0 = np.array([0.1, 0.5])
WINDOW = ((-1.5, 1.5), (-0.8, 0.8))


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")


def trajectory(params: Any, v: Any, label: str, **stats: Any) -> ss.Trajectory:
    """Three paths with leaves of params (3, 6, ...) and some observables."""
    metrics = {name: np.random.default_rng(n).uniform(1, 2, (3, 6)) for n, name in enumerate(SHARPNESS)}
    return ss.Trajectory(np.linspace(0, 1, 6), params, v, metrics, stats, np.zeros(3, int), label)


@pytest.fixture(scope="module")
def runs() -> tuple[ss.Trajectory, ss.Trajectory]:
    """Arcs of the ellipse from one point, and the same with noise."""
    angle = 0.5 + np.outer([0.2, 0.5, -0.3], np.linspace(0, 1, 6))
    arcs, v = np.stack([np.cos(angle), np.sin(angle) / 2], axis=-1), np.tile(V0, (3, 6, 1))
    noise = 0.05 * np.random.default_rng(0).normal(size=arcs.shape)
    return trajectory(arcs, v, "slow"), trajectory(arcs + noise, v, "discrete", lr=0.05)


def curve(ax: Axes, label: str) -> np.ndarray:
    """The points of the line with this label."""
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return np.asarray(found.get_xydata())


def test_a_portrait_shows_the_whole_of_the_manifold_and_the_paths(runs: tuple[ss.Trajectory, ss.Trajectory]) -> None:
    """Γ is the ellipse x² + 4y² = 1 to rounding, all around; paths are those of the runs."""
    slow, fast = runs
    own = plt.figure().subplots()
    ax = ss.plot.plot_phase_portrait(ELLIPSE, slow, fast, optimizer=OPTIMIZER, window=WINDOW, ax=own, runs=2)
    assert ax is own
    x, y = curve(ax, r"$\Gamma$").T
    np.testing.assert_allclose(x**2 + 4 * y**2, 1, atol=1e-12)
    assert np.ptp(np.unwrap(np.arctan2(2 * y, x))) > 2 * np.pi
    np.testing.assert_array_equal(curve(ax, "slow SDE"), slow.params[0])
    np.testing.assert_array_equal(curve(ax, r"discrete, $\eta$=0.05"), fast.params[0])
    assert len(ax.get_lines()) == 1 + 2 + 2 * 2  # Γ, discrete paths, slow paths with their starts
    assert ax.get_xlim() == WINDOW[0]


def test_flow_lines_are_those_of_the_metric(runs: tuple[ss.Trajectory, ss.Trajectory]) -> None:
    """At (−0.5, 0.5) −∇L = −(u x, 4u y), u = x² + 4y² − 1; in the metric S(v0) each entry is S times that."""
    for optimizer, scale in ((None, np.ones(2)), (OPTIMIZER, 1 / (np.sqrt(V0) + 0.05))):
        grid, velocity, _ = ss.plot.phase_portrait._portrait(ELLIPSE, optimizer, runs[0], ((-0.5, 1.5), (-0.5, 0.5)))
        x, y = grid[0][-1, 0], grid[1][-1, 0]
        assert (x, y) == (-0.5, 0.5)
        u = x**2 + 4 * y**2 - 1
        np.testing.assert_allclose(velocity[-1, 0], -scale * u * np.array([x, 4 * y]), rtol=1e-12)


def test_a_portrait_frames_what_it_shows_and_cuts_the_manifold_there(
    runs: tuple[ss.Trajectory, ss.Trajectory],
) -> None:
    ax = ss.plot.plot_phase_portrait(ELLIPSE, runs[0])
    x, y = runs[0].params.reshape(-1, 2).T
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left < x.min() < x.max() < right
    assert low < y.min() < y.max() < high
    points = curve(ax, r"$\Gamma$")
    inside = points[np.isfinite(points[:, 0])]
    assert 10 < len(inside) < len(points)
    assert np.all((inside >= [left, low]) & (inside <= [right, high]))


def test_a_portrait_of_a_pytree_with_label_noise() -> None:
    """The hyperbola ab = 1, one of its two branches, as least squares with scalar leaves."""
    problem = ss.LeastSquares(lambda p, z: p["a"] * p["b"] * z, np.ones(1), np.ones(1), ss.LabelNoise(std=1.0))
    a = np.tile(np.linspace(2, 1.5, 6), (3, 1))
    slow = trajectory({"a": a, "b": 1 / a}, (), "slow")
    ax = ss.plot.plot_phase_portrait(problem, slow, window=((-3.0, 3.0), (0.2, 2.0)))
    points = curve(ax, r"$\Gamma$")
    a, b = points[np.isfinite(points[:, 0])].T
    np.testing.assert_allclose(a * b, 1, atol=1e-12)
    assert a.min() > 0.4
    assert a.max() > 2.9


def test_three_parameters_have_no_portrait() -> None:
    slow = trajectory(np.ones((3, 6, 3)), (), "slow")
    with pytest.raises(ValueError, match=r"two parameters; these trajectories have \[3\]"):
        ss.plot.plot_phase_portrait(ELLIPSE, slow)


def test_sharpness_against_sharpness(runs: tuple[ss.Trajectory, ss.Trajectory]) -> None:
    slow, fast = runs
    ax = ss.plot.plot_sharpness(slow, fast, labels=("SDE", "runs"))
    for trajectory, label in ((slow, "SDE"), (fast, "runs")):
        means = np.stack([trajectory.metrics[name].mean(axis=0) for name in SHARPNESS], axis=1)
        np.testing.assert_array_equal(curve(ax, label), means)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (ss.plot.LABELS[SHARPNESS[0]], ss.plot.LABELS[SHARPNESS[1]])
    turned = ss.plot.plot_sharpness(slow, x=SHARPNESS[1], y=SHARPNESS[0])
    np.testing.assert_array_equal(curve(turned, "slow"), curve(ax, "SDE")[:, ::-1])
    with pytest.raises(ValueError, match="'loss' is not an observable"):
        ss.plot.plot_sharpness(slow, x="loss")
    with pytest.raises(ValueError, match="names 1 trajectories; there are 2"):
        ss.plot.plot_sharpness(slow, fast, labels=("SDE",))
    with pytest.raises(ValueError, match="no trajectory"):
        ss.plot.plot_sharpness()


def test_test_errors_are_means_over_seeds_with_their_standard_errors() -> None:
    """Bars reach 2 s.e. either way, s.e. the standard deviation (of n − 1) over √seeds."""
    samples = (8, 12, 20)
    errors = {name: np.random.default_rng(n).uniform(0, 1, (5, 3)) for n, name in enumerate(("SGD", "Adam"))}
    ax = ss.plot.plot_test_error(samples, errors)
    for container, (name, values) in zip(ax.containers, errors.items(), strict=True):
        line, _, (bars,) = container.lines
        assert container.get_label() == name
        np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))
        np.testing.assert_allclose(line.get_xdata(), samples, atol=0.01 * 12)
        reach = np.array([np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()])
        error = np.sqrt(np.sum((values - values.mean(axis=0)) ** 2, axis=0) / 4 / 5)
        np.testing.assert_allclose(reach, 2 * error)
        for wrong in (error, 2 * error * np.sqrt(5), 2 * error * np.sqrt(4 / 5)):  # 1 s.e., of one seed, of n
            assert np.all(np.abs(reach / wrong - 1) > 0.05)
    assert ax.containers[0].lines[0].get_linestyle() != ax.containers[1].lines[0].get_linestyle()  # legible in grey
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("samples", "test error  (± 2 s.e.)")
    own = plt.figure().subplots()
    assert ss.plot.plot_test_error(samples, {"one seed": errors["SGD"][:1]}, ax=own, color="black") is own
    assert not own.collections  # nothing to draw bars from
    with pytest.raises(ValueError, match=r"errors\['Adam'\] has shape \(3, 5\); it must be \(seeds, 3\)"):
        ss.plot.plot_test_error(samples, {"Adam": errors["Adam"].T})
    with pytest.raises(ValueError, match="no errors"):
        ss.plot.plot_test_error(samples, {})

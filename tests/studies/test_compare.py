"""Gaps, standard errors, verdicts and figures of comparisons, on trajectories whose statistics are known."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import slowsde as ss

mpl.use("agg")
import matplotlib.pyplot as plt

TIMES = np.linspace(0, 1, 6)


def trajectory(values: np.ndarray, label: str, ts: np.ndarray = TIMES, **stats: Any) -> ss.Trajectory:
    paths = values.shape[0]
    params = np.zeros((paths, ts.size, 1))
    return ss.Trajectory(ts, params, None, {"q": values}, stats, np.zeros(paths, int), label)


def pair(bias: float, paths: int = 400) -> ss.Comparison:
    slow = trajectory(np.exp(-TIMES)[None], "slow")
    noise = 0.1 * np.random.default_rng(0).normal(size=(paths, TIMES.size)) * (TIMES > 0)
    fast = trajectory(np.exp(-TIMES) + bias * TIMES + noise, "discrete", lr=0.1, num_steps=100)
    return ss.compare(slow, fast)


def test_gap_and_standard_error_are_those_of_the_samples() -> None:
    compared = pair(bias=0.5)
    np.testing.assert_allclose(compared.gap["q"], 0.5 * TIMES, atol=4 * 0.1 / 20)
    np.testing.assert_allclose(compared.standard_error["q"][1:], 0.1 / 20, rtol=0.15)
    assert compared.standard_error["q"][0] < 1e-15


def test_verdict_tells_chance_from_bias() -> None:
    assert pair(0.0).verdict("q").startswith("agree")
    assert pair(0.025, paths=4000).verdict("q").startswith("small gap")
    assert pair(0.06).verdict("q").startswith("visible gap")
    assert pair(0.5).verdict("q").startswith("LARGE gap")
    assert "no error bars" in pair(0.5, paths=1).verdict("q")
    table = pair(0.5).table()
    assert "LARGE gap" in table
    assert "lr=0.1" in table


def test_the_spread_of_the_slow_paths_counts() -> None:
    rng = np.random.default_rng(1)
    slow = trajectory(rng.normal(size=(100, 6)), "slow")
    fast = trajectory(rng.normal(size=(100, 6)), "discrete", lr=0.1)
    np.testing.assert_allclose(ss.compare(slow, fast).standard_error["q"], np.sqrt(2) / 10, rtol=0.2)


def test_failed_paths_are_left_out() -> None:
    values = np.tile(np.exp(-TIMES), (3, 1))
    values[1] = np.nan
    fast = trajectory(values, "discrete", lr=0.1)
    fast.result[1] = ss.Result.NON_FINITE
    compared = ss.compare(trajectory(np.exp(-TIMES)[None], "slow"), fast)
    assert np.all(np.isfinite(compared.gap["q"]))
    fast.result[:] = ss.Result.NON_FINITE
    with pytest.raises(ValueError, match="failed"):
        ss.compare(trajectory(np.exp(-TIMES)[None], "slow"), fast)


def test_discrete_times_off_the_slow_grid_are_interpolated() -> None:
    shifted = TIMES[:-1] + 0.07
    slow = trajectory(np.exp(-np.linspace(0, 1, 21))[None], "slow", np.linspace(0, 1, 21))
    fast = trajectory(np.exp(-shifted)[None].repeat(2, 0), "discrete", shifted, lr=0.1)
    assert np.max(np.abs(ss.compare(slow, fast).gap["q"])) < 1e-5


def test_nothing_in_common_is_refused() -> None:
    slow = trajectory(np.ones((1, 6)), "slow")
    other = ss.Trajectory(TIMES, np.zeros((2, 6, 1)), None, {"r": np.ones((2, 6))}, {}, np.zeros(2, int), "discrete")
    with pytest.raises(ValueError, match="metrics"):
        ss.compare(slow, other)
    with pytest.raises(ValueError, match="times"):
        ss.compare(slow, trajectory(np.ones((2, 6)), "discrete", TIMES + 5, lr=0.1))


def test_figures_carry_labels_units_and_bands() -> None:
    compared = pair(0.1)
    settings = dict(mpl.rcParams)
    ax = compared.plot()
    assert "slow time" in ax.get_xlabel()
    assert ax.get_ylabel() == "q"
    labels = [text.get_text() for text in ax.legend().get_texts()]
    assert any("slow" in label for label in labels)
    assert any("0.1" in label for label in labels)
    assert len(ax.collections) == 1  # the band of the discrete runs
    assert len(ax.lines) == 2 + 8  # two means and eight single runs
    gap = ss.plot.plot_gap(compared)
    assert "4 s.e." in gap.get_ylabel()
    own = plt.figure().subplots()
    assert ss.plot.plot_metric(compared.discrete, ax=own) is own
    with pytest.raises(ValueError, match="name="):
        compared.plot(name="no such observable")
    assert dict(mpl.rcParams) == settings
    plt.close("all")

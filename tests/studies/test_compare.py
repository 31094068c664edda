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


def with_holes(holes: dict[int, slice], paths: int = 3) -> ss.Trajectory:
    """Discrete paths e^−t + 0.01 × path, NaN where `holes` says."""
    values = np.exp(-TIMES) + 0.01 * np.arange(paths)[:, None]
    fast = trajectory(values, "discrete", lr=0.1)
    for path, times in holes.items():
        values[path, times] = np.nan
        fast.result[path] = ss.Result.LEFT_MANIFOLD
    return fast


def test_failed_paths_are_left_out() -> None:
    slow = trajectory(np.exp(-TIMES)[None], "slow")
    compared = ss.compare(slow, with_holes({1: slice(None)}))
    np.testing.assert_allclose(compared.gap["q"], 0.01)  # of 0 and 0.02
    with pytest.raises(ValueError, match="failed"):
        ss.compare(slow, with_holes({path: slice(None) for path in range(3)}))


def test_a_point_that_failed_takes_no_other_away() -> None:
    """Every path fails somewhere, and no two at one time but the last, at which one is left."""
    slow = trajectory(np.exp(-TIMES)[None], "slow")
    compared = ss.compare(slow, with_holes({0: slice(1, 2), 1: slice(2, 3), 2: slice(5, 6)}))
    np.testing.assert_allclose(compared.gap["q"], [0.01, 0.015, 0.01, 0.01, 0.01, 0.005])
    np.testing.assert_array_equal(compared.counts["q"], [3, 2, 2, 3, 3, 2])
    np.testing.assert_allclose(compared.standard_error["q"][1], np.std([0.01, 0.02], ddof=1) / np.sqrt(2))
    table = compared.table()
    assert "left out: 3 of 18 discrete points (LEFT_MANIFOLD), from t=0.2 on" in table
    assert "means over 2 to 3 of 3 paths" in compared.verdict("q")
    assert ss.compare(slow, with_holes({})).missing == ""


def test_times_at_which_no_path_is_left_are_left_out_and_told() -> None:
    slow = trajectory(np.exp(-TIMES)[None], "slow")
    compared = ss.compare(slow, with_holes({0: slice(3, 6), 1: slice(4, 6), 2: slice(4, 6)}))
    np.testing.assert_array_equal(compared.ts, TIMES[:4])
    assert "nothing to compare at 2 of 6 times" in compared.table()
    assert np.all(np.isfinite(compared.gap["q"]))
    one = ss.compare(slow, with_holes({0: slice(3, 6), 1: slice(3, 6)}))
    np.testing.assert_array_equal(np.isnan(one.standard_error["q"]), TIMES > 0.5)
    assert "nan" not in one.table()
    compared.plot()
    plt.close("all")


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


def expecting(level: int, gap: float) -> str:
    """The last line of a table of a measured `gap` where `validity` expects another (level 0, 1 or 2)."""
    expected = ss.Validity(TIMES, 0.1, {"sharpness": np.full(6, (0.01, 0.2, 0.6)[level])})
    slow, fast = pair(gap).slow, pair(gap).discrete
    return ss.compare(slow, fast, expected).table().splitlines()[-1]


def test_a_table_has_one_verdict_on_trust() -> None:
    """The range of the observable is 0.63. What was measured decides, and says that it does."""
    assert "not valid, do not trust" in expecting(2, 0.5)
    assert "comfortable (" in expecting(0, 0.02)
    assert "trust with care" in expecting(1, 0.06)
    for level in (1, 2):
        line = expecting(level, 0.015)
        assert "do not trust" not in line
        assert "larger gaps were expected" in line
        assert "sharpness" in line
        assert "go by what was measured" in line
    assert "smaller gaps were expected (comfortable)" in expecting(0, 0.5)


def test_error_bars_too_wide_to_decide_leave_the_expectation() -> None:
    expected = ss.Validity(TIMES, 0.1, {"sharpness": np.full(6, 0.6)})
    few = pair(0.0, paths=8)  # 4 s.e. of about 0.14 in 0.63
    assert "do not trust" in ss.compare(few.slow, few.discrete, expected).table()


def test_an_observable_that_is_nowhere_defined_does_not_agree() -> None:
    """NaN exceeds no number of standard errors: it once was said to agree."""
    slow, fast = pair(0.5).slow, pair(0.5).discrete
    slow.metrics["r"] = np.full((1, 6), np.nan)
    fast.metrics["r"] = np.ones((400, 6))
    fast.metrics["s"] = np.where(TIMES > 0, np.nan, 1.0) * np.ones((400, 1))
    slow.metrics["s"] = np.ones((1, 6))
    compared = ss.compare(slow, fast)
    assert list(compared.gap) == ["q"]
    table = compared.table()
    assert "agree" not in table
    assert "nan" not in table
    assert "r of the slow trajectory is nowhere finite after the start" in table
    assert "s of the discrete trajectory is nowhere finite after the start" in table
    del slow.metrics["q"]
    with pytest.raises(ValueError, match="Nothing can be compared: r of the slow trajectory"):
        ss.compare(slow, fast)


def test_times_at_which_the_slow_observable_is_undefined_are_told() -> None:
    slow, fast = pair(0.5).slow, pair(0.5).discrete
    slow.metrics["q"][0, 1:5] = np.nan
    slow.metrics["q"][0, 5] = np.nan
    with pytest.raises(ValueError, match="nowhere finite"):
        ss.compare(slow, fast)


def test_no_line_is_drawn_through_two_saved_times() -> None:
    """It once made a gap of 18 % of the change out of one of 12 %."""
    fast = pair(0.0).discrete
    ends = trajectory(np.exp(-TIMES[[0, -1]])[None], "slow", TIMES[[0, -1]])
    compared = ss.compare(ends, fast)
    np.testing.assert_array_equal(compared.ts, [0, 1])
    assert np.abs(compared.gap["q"][-1]) < 4 * compared.standard_error["q"][-1]
    with pytest.raises(ValueError, match="slow was saved at 2 times, too few to interpolate"):
        ss.compare(trajectory(np.ones((1, 2)), "slow", np.array([0.05, 0.95])), fast)

"""The two clocks, k·lr² and k·lr, and trajectories moved from one to the other."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest

import slowsde as ss

mpl.use("agg")


def trajectory(**stats: object) -> ss.Trajectory:
    ts = np.array([0.0, 0.5, 1.0])
    return ss.Trajectory(ts, np.zeros((1, 3, 2)), None, {"loss": np.ones((1, 3))}, dict(stats), np.zeros(1, int))


def test_steps_and_times_convert_both_ways() -> None:
    steps = np.array([0, 1, 250])
    np.testing.assert_allclose(ss.slow_time(steps, 0.02), [0, 4e-4, 0.1])
    np.testing.assert_allclose(ss.ode_time(steps, 0.02), [0, 0.02, 5])
    np.testing.assert_array_equal(ss.steps_in(ss.slow_time(steps, 0.02), 0.02), steps)
    np.testing.assert_array_equal(ss.steps_in(ss.ode_time(steps, 0.02), 0.02, clock="k·lr"), steps)
    assert ss.steps_in(1.0, 0.02) == 2500


def test_a_trajectory_changes_its_clock_and_nothing_else() -> None:
    run = trajectory(lr=0.1, failed_at=np.array([0.5]))
    fast = ss.on_ode_clock(run)
    np.testing.assert_allclose(fast.ts, [0, 5, 10])
    assert fast.stats["clock"] == "k·lr"
    np.testing.assert_allclose(fast.stats["failed_at"], [5])
    assert "clock" not in run.stats
    back = ss.on_slow_clock(fast)
    np.testing.assert_allclose(back.ts, run.ts)
    assert back.metrics is run.metrics
    assert ss.on_slow_clock(run) is run
    np.testing.assert_allclose(ss.on_ode_clock(trajectory(), lr=0.2).ts, [0, 2.5, 5])


def test_figures_say_which_clock() -> None:
    run = trajectory(lr=0.1)
    assert ss.plot.plot_metric(run).get_xlabel() == ss.plot.TIME
    assert "k\\eta$" in ss.plot.plot_metric(ss.on_ode_clock(run)).get_xlabel()
    ended = dataclasses.replace(run, stats=run.stats | {"clock": "k·lr"})
    assert ss.on_slow_clock(ended).ts[-1] == pytest.approx(0.1)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="lr=None: this run has no learning rate of its own"):
        ss.on_ode_clock(trajectory())
    with pytest.raises(ValueError, match="clock='k' is not one of"):
        ss.steps_in(1.0, 0.1, clock="k")
    with pytest.raises(ValueError, match=r"lr=0\.0 must be a positive number"):
        ss.slow_time(3, 0.0)

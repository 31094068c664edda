"""A run that goes wrong says when and why, and hands over what it had until then."""

import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

SIGMA, Y0 = 1.0, 1.0
LOST = Y0**2 / SIGMA**2  # L = ½y²x², noise in x only: dy/dt = −σ²/(2y), so y² = y0² − σ²t vanishes here


def closing(x):
    return 0.5 * x[1] ** 2 * x[0] ** 2


CLOSING = ss.Problem(closing, noise=ss.GaussianNoise(np.array([[SIGMA], [0.0]])))
START = np.array([0.0, Y0])


@pytest.fixture(scope="module")
def closed():
    return ss.simulate(CLOSING, ss.sgd(), START, 2.0, paths=2, save_at=9, dt=1e-3, throw=False)


def test_a_lost_rank_is_an_error_that_names_the_slow_time():
    with pytest.raises(ss.RunError, match=r"2 of 2 paths failed.*slow time 1\.00.*RANK_LOST") as caught:
        ss.simulate(CLOSING, ss.sgd(), START, 2.0, paths=2, save_at=9, dt=1e-3)
    assert np.all(np.abs(caught.value.trajectory.stats["failed_at"] - LOST) < 5e-3)
    assert caught.value.trajectory.params.shape == (2, 9, 2)


@pytest.mark.parametrize("dt", [4e-3, 1e-3, 1e-4])
def test_no_step_length_jumps_over_the_point_where_the_rank_is_lost(dt):
    found = ss.simulate(CLOSING, ss.sgd(), START, 2.0, save_at=[0.5, 2.0], dt=dt, throw=False)
    assert found.result[0] == ss.Result.RANK_LOST
    assert abs(found.stats["failed_at"][0] - LOST) < 6 * dt


def test_without_an_error_rows_are_right_until_the_failure_and_nan_after(closed):
    before = closed.ts < LOST
    assert before.sum() == 4
    np.testing.assert_allclose(
        closed.params[:, before, 1] ** 2, np.tile(Y0**2 - SIGMA**2 * closed.ts[before], (2, 1)), atol=2e-3
    )
    assert np.all(np.isfinite(closed.params[:, before]))
    assert np.all(np.isnan(closed.params[:, closed.ts > LOST + 0.01]))
    np.testing.assert_array_equal(closed.result, [ss.Result.RANK_LOST] * 2)


@pytest.mark.slow
def test_a_valley_that_narrows_without_closing_is_no_lost_rank():
    # L = ½(y² + 0.01)x²: the curvature falls by a factor of 100 and stays there.
    problem = ss.Problem(lambda x: 0.5 * (x[1] ** 2 + 0.01) * x[0] ** 2, noise=CLOSING.noise)
    found = ss.simulate(problem, ss.sgd(), START, 2.0, save_at=2)
    assert abs(found.params[0, -1, 1]) < 1e-3


def test_a_label_noise_run_that_loses_rank_stops_there():
    # Prediction u√v, target 0, u = 0 on Γ: H = diag(v, 0), so v̇ = −α/4 until the rank is lost at v = 0.
    problem = ss.LeastSquares(
        lambda w, z: w[0] * jnp.sqrt(w[1]), np.zeros((1, 1)), np.zeros(1), noise=ss.LabelNoise(1.0)
    )
    found = ss.simulate(problem, ss.sgd(), np.array([0.0, 0.2]), 2.0, save_at=21, throw=False)
    lost = 0.2 / 0.25
    assert found.result[0] != ss.Result.SUCCESS
    assert abs(found.stats["failed_at"][0] - lost) < 1e-3
    before = found.ts < lost - 1e-9
    np.testing.assert_allclose(found.params[0, before, 1], 0.2 - found.ts[before] / 4, atol=1e-6)
    assert np.all(np.isnan(found.params[0, found.ts > lost + 1e-3]))


def test_too_few_steps_is_a_code_of_its_own():
    problem = ss.LeastSquares(
        lambda w, z: w[0] * (1 + w[1] ** 2), np.zeros((1, 1)), np.zeros(1), noise=ss.LabelNoise(1.0)
    )
    found = ss.simulate(problem, ss.sgd(), np.array([0.0, 1.0]), 100.0, max_steps=3, throw=False)
    assert found.result[0] == ss.Result.MAX_STEPS
    assert 0 < found.stats["failed_at"][0] < 100
    with pytest.raises(ss.RunError, match="MAX_STEPS"):
        ss.simulate(problem, ss.sgd(), np.array([0.0, 1.0]), 100.0, max_steps=3)


def stiff(x):
    return 0.5 * 30 * x[0] ** 2 * (1 + x[1] ** 2) + 0.25 * x[0] ** 4


def test_a_diverging_discrete_run_is_non_finite_and_says_when():
    problem = ss.Problem(stiff, noise=ss.GaussianNoise(0.1))
    options = {"lr": 0.2, "paths": 3, "save_at": 6}  # η λ = 12 > 2
    with pytest.raises(ss.RunError, match=r"3 of 3 paths failed.*slow time \d.*NON_FINITE") as caught:
        ss.run_discrete(problem, ss.sgd(), START, 10.0, **options)
    found = ss.run_discrete(problem, ss.sgd(), START, 10.0, throw=False, **options)
    np.testing.assert_array_equal(found.result, [ss.Result.NON_FINITE] * 3)
    times = caught.value.trajectory.stats["failed_at"]
    assert np.all((times > 0) & (times <= 10.0))
    for path in range(3):
        bad = np.flatnonzero(~np.isfinite(found.params[path, :, 0]))
        assert times[path] == found.ts[bad[0]]
        assert np.all(np.isfinite(found.params[path, : bad[0]]))
        assert np.all(np.isnan(found.params[path, bad[0] :]))


def test_a_run_that_succeeds_has_no_failure_time():
    found = ss.simulate(CLOSING, ss.sgd(), START, 0.5, save_at=3)
    assert found.result[0] == ss.Result.SUCCESS
    assert np.all(np.isnan(found.stats["failed_at"]))


@pytest.mark.parametrize("code", ss.Result)
def test_every_code_explains_itself(code):
    assert len(code.explain()) > 5

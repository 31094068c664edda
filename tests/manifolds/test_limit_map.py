"""Φ_S against closed forms, its derivatives, the return to Γ in the right metric, and the errors."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import manifolds as mf
from manifolds.support import precision


def circle(x):
    return 0.25 * (x @ x - 1) ** 2


def ellipse(x):
    return 0.25 * (x[0] ** 2 + 4 * x[1] ** 2 - 1) ** 2


ELLIPSE_METRIC = np.diag([0.5, 2.0])
ANGLE = 0.7  # the point and the unit tangent of the published D²[t, t]
POINT = np.array([np.cos(ANGLE), np.sin(ANGLE) / 2])
TANGENT = np.array([-np.sin(ANGLE), np.cos(ANGLE) / 2]) / np.hypot(np.sin(ANGLE), np.cos(ANGLE) / 2)
SECOND = np.array([-0.18860504, -1.27087864])
EUCLIDEAN_SECOND = np.array([-0.607, -1.023])


# --- closed forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [[2.0, 1.0], [0.3, -0.4], [1e-3, 2e-3], [30.0, -40.0]])
def test_the_euclidean_flow_to_a_circle_is_radial(start):
    start = np.array(start)
    np.testing.assert_allclose(mf.limit_map(circle, start), start / np.linalg.norm(start), rtol=0, atol=1e-8)


def exact_limit(start):
    """ẋ = −g·x/2, ẏ = −g·8y with a common factor g keep |y|/|x|¹⁶; where that curve meets the ellipse."""
    x, y = np.abs(start)
    angle = brentq(lambda a: np.log(np.sin(a) / 2) - 16 * np.log(np.cos(a)) - np.log(y) + 16 * np.log(x), 1e-12, 1.57)
    return np.sign(start) * [np.cos(angle), np.sin(angle) / 2]


@pytest.mark.parametrize("start", [[0.9, 0.8], [0.4, 0.1], [1.5, -0.5], [-0.2, 0.9]])
def test_the_flow_in_a_metric_ends_where_its_invariant_says(start):
    start = np.array(start)
    found = mf.limit_map(ellipse, start, ELLIPSE_METRIC)
    np.testing.assert_allclose(found[0] ** 2 + 4 * found[1] ** 2, 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found, exact_limit(start), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_tighter_tolerance_gives_a_better_limit():
    start = np.array([0.9, 0.8])
    errors = [
        np.linalg.norm(mf.limit_map(ellipse, start, ELLIPSE_METRIC, rtol=rtol) - exact_limit(start))
        for rtol in (1e-5, 1e-7, 1e-9)
    ]
    print("errors at rtol 1e-5, 1e-7, 1e-9:", errors)
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20


def test_the_projector_on_the_ellipse_is_that_of_the_formula():
    normal = np.array([POINT[0], 4 * POINT[1]])
    expected = np.eye(2) - np.outer(ELLIPSE_METRIC @ normal, normal) / (normal @ ELLIPSE_METRIC @ normal)
    np.testing.assert_allclose(mf.projector(ellipse, POINT, ELLIPSE_METRIC), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(mf.project(ellipse, POINT, ELLIPSE_METRIC, TANGENT), TANGENT, rtol=0, atol=1e-13)
    w = np.array([1.0, -2.0])
    np.testing.assert_allclose(mf.project(ellipse, POINT, ELLIPSE_METRIC, w), expected @ w, rtol=0, atol=1e-13)


# --- second derivatives and returns ----------------------------------------------------------------------------


def second_difference(function, h=1e-3):
    """D²[t, t] of a map that fixes the ellipse, by a fourth-order difference along the tangent."""
    values = [function(POINT + k * h * TANGENT) for k in (-2, -1, 0, 1, 2)]
    return (-values[0] + 16 * values[1] - 30 * values[2] + 16 * values[3] - values[4]) / (12 * h**2)


def test_the_second_derivative_on_the_ellipse_has_the_published_value():
    factor = np.linalg.solve(ELLIPSE_METRIC, TANGENT)[:, None]  # S B = t
    found = mf.second_derivative(ellipse, POINT, ELLIPSE_METRIC, factor)
    np.testing.assert_allclose(found, SECOND, rtol=0, atol=5e-9)


def test_the_return_in_the_metric_has_the_second_derivative_of_the_limit_map():
    found = second_difference(lambda x: mf.return_to_manifold(ellipse, x, ELLIPSE_METRIC))
    np.testing.assert_allclose(found, SECOND, rtol=0, atol=1e-7)


def test_the_limit_map_has_the_published_second_derivative_by_finite_differences():
    found = second_difference(lambda x: mf.limit_map(ellipse, x, ELLIPSE_METRIC), h=1e-2)
    np.testing.assert_allclose(found, SECOND, rtol=0, atol=1e-4)


def test_the_euclidean_return_has_a_different_second_derivative():
    found = second_difference(lambda x: mf.return_to_manifold(ellipse, x))
    np.testing.assert_allclose(found, EUCLIDEAN_SECOND, rtol=0, atol=5e-4)
    assert np.linalg.norm(found - SECOND) > 0.4


def test_the_return_does_not_promise_the_second_derivative_off_the_tangent():
    # Why raw noise needs the limit map itself and the return serves projected noise only.
    w = np.array([1.0, 1.0])
    step = 1e-3

    def difference(function):
        return (function(POINT + step * w) - 2 * POINT + function(POINT - step * w)) / step**2

    returned = difference(lambda x: mf.return_to_manifold(ellipse, x, ELLIPSE_METRIC))
    limit = difference(lambda x: mf.limit_map(ellipse, x, ELLIPSE_METRIC))
    assert np.linalg.norm(returned - limit) > 0.1


# --- far and near -----------------------------------------------------------------------------------------------


def test_a_start_far_away_arrives():
    start = np.array([1.2, 100.0])
    found = mf.limit(ellipse, start, ELLIPSE_METRIC)
    print("far start", found.num_steps, np.abs(found.point - exact_limit(start)))
    np.testing.assert_allclose(found.point, exact_limit(start), rtol=0, atol=1e-6)
    assert found.distance > 99


def test_a_start_on_the_manifold_stays():
    found = mf.limit(ellipse, POINT, ELLIPSE_METRIC)
    np.testing.assert_allclose(found.point, POINT, rtol=0, atol=1e-15)
    assert found.distance < 1e-15


# --- transformations and precision -----------------------------------------------------------------------------


def test_it_runs_under_jit_and_vmap():
    starts = np.array([[0.9, 0.8], [0.4, 0.1], [-1.5, 0.5]])
    expected = np.stack([mf.limit_map(ellipse, start, ELLIPSE_METRIC) for start in starts])
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(lambda x: mf.limit_map(ellipse, x, jnp.asarray(ELLIPSE_METRIC))))(starts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_a_metric_may_vary_under_vmap():
    diagonals = np.array([[0.5, 2.0], [1.0, 1.0], [3.0, 0.1]])
    expected = np.stack([mf.limit_map(ellipse, np.array([0.9, 0.8]), d) for d in diagonals])
    with jax.enable_x64(True):
        found = jax.vmap(lambda d: mf.limit_map(ellipse, jnp.array([0.9, 0.8]), d))(jnp.asarray(diagonals))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_the_first_derivative_on_the_manifold_is_the_projector():
    with jax.enable_x64(True):
        derivative = jax.jacfwd(lambda x: mf.limit_map(ellipse, x, jnp.asarray(ELLIPSE_METRIC)))(jnp.asarray(POINT))
    np.testing.assert_allclose(derivative, mf.projector(ellipse, POINT, ELLIPSE_METRIC), rtol=0, atol=1e-10)


def test_the_first_derivative_off_the_manifold_is_that_of_the_closed_form():
    # On the circle Φ = x/|x|, so DΦ = (I − x xᵀ/|x|²)/|x|.
    x = np.array([1.3, 0.9])
    size = np.linalg.norm(x)
    with jax.enable_x64(True):
        derivative = jax.jacfwd(lambda x: mf.limit_map(circle, x))(jnp.asarray(x))
    np.testing.assert_allclose(derivative, (np.eye(2) - np.outer(x, x) / size**2) / size, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flag", [False, True])
def test_double_precision_whatever_the_flag_which_is_left_alone(flag):
    with jax.enable_x64(flag):
        found = mf.limit_map(ellipse, jnp.array([0.5, 0.25]), jnp.array([0.5, 2.0]))
        assert jax.config.jax_enable_x64 == flag
        assert jnp.ones(1).dtype == (jnp.float64 if flag else jnp.float32)
    assert found.dtype == np.float64
    assert abs(found[0] ** 2 + 4 * found[1] ** 2 - 1) < 1e-14
    assert abs(16 * np.log(found[0] / 0.5) - np.log(found[1] / 0.25)) < 2e-7


def test_the_flag_is_left_alone_by_an_error():
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="loss"):
            mf.limit_map(lambda x: x, jnp.ones(2))
        assert not jax.config.jax_enable_x64


def test_single_precision_warns_once_and_keeps_five_digits(monkeypatch):
    monkeypatch.setattr(precision, "_warned", set())
    start = np.array([0.9, 0.8])
    with pytest.warns(UserWarning, match="Computing in float32") as caught:
        found = mf.limit_map(ellipse, start, ELLIPSE_METRIC, dtype="float32")
    assert len(caught) == 1
    assert found.dtype == np.float32
    error = np.max(np.abs(found - mf.limit_map(ellipse, start, ELLIPSE_METRIC)))
    print("float32 error", error)
    assert 1e-9 < error < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mf.limit_map(ellipse, start, ELLIPSE_METRIC, dtype="float32")


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_another_precision_is_refused(dtype):
    with pytest.raises(ValueError, match="dtype"):
        mf.limit_map(circle, np.ones(2), dtype=dtype)

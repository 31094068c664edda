"""The stiff solver of the gradient flow: the algebra of its coefficients and the order that is measured."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import resolved_flow

import manifolds as mf
from manifolds.maps import gradient_flow as gf

ALPHA, GAMMAS, B, EMBEDDED = gf._ALPHA, gf._GAMMAS, gf._B, gf._B_EMBEDDED
ONE = np.ones(4)
TREES = {  # order 3 as a W-method: f' goes with α, the approximate Jacobian A with γ (Hairer and Wanner II, IV.7)
    "f": (B @ ONE, 1),
    "f'f": (B @ ALPHA @ ONE, 1 / 2),
    "Af": (B @ GAMMAS @ ONE, 0),
    "f''(f, f)": (B @ (ALPHA @ ONE) ** 2, 1 / 3),
    "f'f'f": (B @ ALPHA @ ALPHA @ ONE, 1 / 6),
    "f'Af": (B @ ALPHA @ GAMMAS @ ONE, 0),
    "Af'f": (B @ GAMMAS @ ALPHA @ ONE, 0),
    "AAf": (B @ GAMMAS @ GAMMAS @ ONE, 0),
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("found", "expected"), TREES.values(), ids=TREES.keys())
def test_the_coefficients_satisfy_the_conditions_of_order_three_for_any_jacobian(found, expected):
    assert abs(found - expected) < 1e-12


def test_the_embedded_method_is_consistent_of_order_two_with_the_exact_jacobian():
    assert abs(EMBEDDED @ ONE - 1) < 1e-12
    assert abs(EMBEDDED @ (ALPHA + GAMMAS) @ ONE - 1 / 2) < 1e-12
    assert abs(EMBEDDED @ (ALPHA + GAMMAS) @ (ALPHA + GAMMAS) @ ONE - 1 / 6) > 1e-3  # so that it estimates an error


def amplification(z: complex) -> complex:
    """R(z) of y' = λy, z = hλ, with the exact Jacobian."""
    return 1 + z * B @ np.linalg.solve(np.eye(4) - z * (ALPHA + GAMMAS), ONE)


def test_it_is_stiffly_accurate_and_l_stable():
    np.testing.assert_allclose((ALPHA + GAMMAS)[-1], B, rtol=0, atol=1e-12)
    assert abs(1 - B @ np.linalg.solve(ALPHA + GAMMAS, ONE)) < 1e-12  # R(∞) = 0
    assert abs(amplification(-1e9)) < 1e-8
    assert max(abs(amplification(1j * y)) for y in np.logspace(-3, 6, 400)) <= 1 + 1e-12  # A-stable


# Two scales, 1 and 40, and residuals that are far from zero: the Gauss–Newton Jacobian is wrong by O(1) there.
def predict(x, z):
    return jnp.stack([jnp.sin(x[0]) + x[1] ** 2 / 2, jnp.sqrt(40.0) * (x[1] + 0.3 * x[0] ** 2)])


START = np.array([1.2, -0.8])
METRIC = mf.Diagonal(np.array([1.0, 0.5]))
TIME = 0.5


def least_squares() -> mf.LeastSquaresLoss:
    return mf.LeastSquaresLoss(predict, np.zeros((1, 1)), np.zeros((1, 2)), like=START)


@eqx.filter_jit
def fixed_steps(loss, steps):
    flow, x = gf.GradientFlow(loss, METRIC), jnp.asarray(START)

    def step(_, state):
        return flow.step(state[0], TIME / steps, state[1])[::2]

    return jax.lax.fori_loop(0, steps, step, (x, flow.curvature(x)))[0]


@pytest.fixture(scope="module")
def exact():
    with jax.enable_x64(True):
        loss = least_squares()
        return jax.jit(resolved_flow(loss.gradient, jnp.diag(METRIC.diagonal), TIME, 20_000))(jnp.asarray(START))


def measured_slope(loss, exact) -> tuple[float, np.ndarray]:
    steps = np.array([40, 80, 160, 320])
    errors = np.array([np.linalg.norm(fixed_steps(loss, jnp.asarray(n)) - exact) for n in steps])
    return np.polyfit(np.log(1 / steps), np.log(errors), 1)[0], errors


def test_the_gauss_newton_jacobian_is_far_from_the_exact_one_on_the_test_flow():
    loss = least_squares()
    x = jnp.asarray(START)
    hessian, approximate = jax.hessian(loss.value)(x), loss.rows(x).T @ loss.rows(x)
    assert np.linalg.norm(hessian - approximate) > 0.1 * np.linalg.norm(hessian)


def test_the_measured_order_is_three_with_the_gauss_newton_jacobian(exact):
    slope, errors = measured_slope(least_squares(), exact)
    print(slope, errors)
    assert 2.8 < slope < 3.2
    assert errors[-1] < 1e-6


def test_the_measured_order_is_three_with_the_exact_jacobian(exact):
    slope, errors = measured_slope(mf.ScalarLoss(least_squares().value, like=START), exact)
    print(slope, errors)
    assert 2.8 < slope < 3.2


def test_one_step_far_longer_than_the_fast_scale_is_the_amplification_factor():
    loss = mf.ScalarLoss(lambda x: 0.5e8 * x[0] ** 2 + 0.5 * x[1] ** 2, like=np.zeros(2))
    flow, x = gf.GradientFlow(loss, mf.Identity()), jnp.array([1.0, 1.0])
    y, *_ = flow.step(x, 0.01, flow.curvature(x))
    np.testing.assert_allclose(y, [amplification(-1e6), amplification(-0.01)], rtol=1e-8)
    assert abs(y[0]) < 1e-5


def test_a_step_that_blows_up_asks_to_be_rejected():
    loss = mf.ScalarLoss(lambda x: jnp.sqrt(x[0]), like=np.zeros(1))  # runs into its singularity
    flow, x = gf.GradientFlow(loss, mf.Identity()), jnp.array([1.0])
    _, error, *_ = flow.step(x, 10.0, flow.curvature(x))
    assert jnp.all(jnp.isposinf(error))

"""Φ_S by the dense Hessian and by the kernel of a least-squares loss, on problems that are stiff or rank-deficient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import resolved_flow

import manifolds as mf

RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(3, 4))
TRUTH = RNG.normal(size=8)
METRIC = RNG.uniform(0.2, 2.0, 8)


def diagonal_net(theta, z):
    u, w = theta[:4], theta[4:]
    return z @ (u**2 - w**2)


TARGETS = np.array([diagonal_net(TRUTH, z) for z in INPUTS])
START = TRUTH + 0.3 * RNG.normal(size=8)


def kernel(inputs=INPUTS, targets=TARGETS):
    return mf.LeastSquaresLoss(diagonal_net, inputs, targets, like=START)


def dense(inputs=INPUTS, targets=TARGETS):
    return mf.ScalarLoss(lambda x: jnp.mean(0.5 * (jax.vmap(diagonal_net, (None, 0))(x, inputs) - targets) ** 2), START)


@pytest.fixture(scope="module")
def by_kernel():
    return mf.limit(kernel(), START, METRIC)


def test_both_routes_find_the_same_limit(by_kernel):
    other = mf.limit(dense(), START, METRIC)
    np.testing.assert_allclose(other.point, by_kernel.point, rtol=0, atol=1e-8)
    assert int(other.rank) == int(by_kernel.rank) == 3
    np.testing.assert_allclose(other.spectrum[:3], by_kernel.spectrum, rtol=1e-6)
    np.testing.assert_allclose(
        mf.projector(dense(), by_kernel.point, METRIC), mf.projector(kernel(), by_kernel.point, METRIC), atol=1e-10
    )
    factor = RNG.normal(size=(8, 2))
    np.testing.assert_allclose(
        mf.second_derivative(dense(), by_kernel.point, METRIC, factor),
        mf.second_derivative(kernel(), by_kernel.point, METRIC, factor),
        rtol=0,
        atol=1e-9,
    )


def test_the_limit_agrees_with_a_resolved_explicit_flow(by_kernel):
    with jax.enable_x64(True):
        loss = dense()
        flow = jax.jit(resolved_flow(loss.gradient, jnp.diag(METRIC), 400.0, 20_000))
        np.testing.assert_allclose(by_kernel.point, flow(jnp.asarray(START)), rtol=0, atol=1e-8)


def test_the_report_says_how_far_and_how_well(by_kernel):
    np.testing.assert_allclose(by_kernel.distance, np.linalg.norm(by_kernel.point - START), rtol=1e-12)
    residuals = np.array([diagonal_net(by_kernel.point, z) for z in INPUTS]) - TARGETS
    assert np.max(np.abs(residuals)) < 1e-13
    assert by_kernel.residual < 1e-13
    assert bool(by_kernel.converged)
    assert by_kernel.num_steps > 5
    assert by_kernel.negative_curvature == 0


def test_duplicated_samples_make_a_singular_kernel_and_the_same_limit(by_kernel):
    # The mean over duplicates weighs samples: duplicate all of them, twice, to keep the loss.
    found = mf.limit(kernel(np.tile(INPUTS, (3, 1)), np.tile(TARGETS, 3)), START, METRIC)
    assert found.spectrum.shape == (9,)
    assert int(found.rank) == 3
    np.testing.assert_allclose(found.point, by_kernel.point, rtol=0, atol=1e-8)
    assert found.residual < 1e-13


def test_a_spectrum_of_six_decades_converges_to_rounding():
    # Residuals of scales 1 to 1e-3: eigenvalues of H from 1 to 1e-6, with a closed form for the slow end.
    scales = np.logspace(0, -3, 4)

    def predict(x, z):
        return scales * jnp.sinh(x[:4] + x[4:] ** 3 / 3)

    loss = mf.LeastSquaresLoss(predict, np.zeros((1, 1)), np.zeros((1, 4)), like=np.zeros(8))
    start = np.array([0.5, -0.4, 0.3, 0.6, 1.0, 0.8, -0.9, 0.7])
    found = mf.limit(loss, start)
    assert found.residual < 1e-14
    assert int(found.rank) == 4
    assert found.spectrum[0] / found.spectrum[3] > 1e6 / 3
    # ẋ_i : ẏ_i = 1 : y_i², so x_i + 1/y_i is kept.
    for i in range(4):
        kept = [point[i] + 1 / point[4 + i] for point in (start, found.point)]
        assert abs(kept[0] - kept[1]) < 1e-6


def test_a_two_layer_network_converges_to_rounding():
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(6, 2)), rng.normal(size=6)
    params = {"a": rng.normal(size=(8, 2)), "b": rng.normal(size=8), "c": rng.normal(size=8) / 3}

    def net(params, z):
        return params["c"] @ jnp.tanh(params["a"] @ z + params["b"])

    loss = mf.LeastSquaresLoss(net, inputs, targets, like=params)
    found = mf.limit(loss, params)
    print("two-layer network", found.num_steps, found.residual, found.spectrum)
    assert found.residual < 1e-12
    assert int(found.rank) == 6
    assert set(mf.limit_map(loss, params)) == {"a", "b", "c"}

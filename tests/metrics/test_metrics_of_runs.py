"""Named metrics against dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(4, 3)), RNG.normal(size=4)


def predict(p, z):
    return jnp.tanh(p["W"] @ z) @ p["a"]


@pytest.fixture(scope="module")
def on_manifold():
    problem = ss.LeastSquares(predict, INPUTS, TARGETS, noise=ss.LabelNoise(0.3))
    params = ss.to_manifold(problem, {"W": RNG.normal(size=(5, 3)), "a": RNG.normal(size=5)})
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, params))
        hessian = np.asarray(jax.hessian(lambda x: problem.loss(unravel(x)))(flat))
    return problem, params, hessian


@pytest.mark.parametrize("route", ["least squares", "scalar"])
def test_named_metrics_are_those_of_the_dense_hessian(on_manifold, route):
    problem, params, hessian = on_manifold
    if route == "scalar":
        problem = ss.Problem(problem.loss, ss.GaussianNoise(0.1))
    diagonal = np.diag(hessian)
    named = {name: metric for name, metric in ss.metrics.NAMED.items() if "adaptive" not in name}
    found = {name: metric(problem, params) for name, metric in named.items()}
    half = ss.metrics.trace_power_diag_hessian(0.25)(problem, params)
    far = ss.metrics.distance(jax.tree.map(np.zeros_like, params))(problem, params)
    adaptive = ss.metrics.adaptive_sharpness(
        problem, params, ss.adam(c=1.0, eps=0.1), jax.tree.map(np.ones_like, params)
    )
    assert found["loss"] < 1e-20
    np.testing.assert_allclose(found["trace_hessian"], diagonal.sum(), rtol=1e-8)
    np.testing.assert_allclose(found["trace_sqrt_diag_hessian"], np.sqrt(diagonal).sum(), rtol=1e-8)
    np.testing.assert_allclose(found["r_med"], diagonal.max() / np.median(diagonal), rtol=1e-8)
    np.testing.assert_allclose(found["largest_eigenvalue"], np.linalg.eigvalsh(hessian)[-1], rtol=1e-8)
    np.testing.assert_allclose(half, (diagonal**0.25).sum(), rtol=1e-8)
    np.testing.assert_allclose(adaptive, diagonal.sum() / 1.1, rtol=1e-8)
    np.testing.assert_allclose(far, np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(params))), rtol=1e-12)


def test_metrics_are_named_in_the_order_given(on_manifold):
    problem, params, _ = on_manifold
    metrics = {"z": lambda p: jnp.sum(p["a"]), "a": "trace_hessian", "m": ss.metrics.trace_power_diag_hessian(0.5)}
    found = ss.simulate(problem, ss.sgd(), params, 0.1, save_at=3, metrics=metrics)
    assert list(found.metrics) == ["z", "a", "m"]
    np.testing.assert_allclose(found.metrics["z"][0, 0], np.sum(params["a"]), rtol=1e-12)

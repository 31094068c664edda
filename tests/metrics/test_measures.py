"""Measures of a point against their definitions, and random estimates of traces and eigenvalues against dense ones."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import slowsde as ss

P = 30
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(P, 4)) * np.array([4.0, 2.0, 1.0, 0.5])
MATRIX = FACTOR @ FACTOR.T  # of rank 4
FULL = MATRIX + np.diag(RNG.uniform(-1, 1, P))
METRIC = RNG.uniform(0.1, 3.0, P)
X = RNG.normal(size=P)


def quadratic(matrix: np.ndarray) -> ss.Problem:
    return ss.Problem(lambda x: 0.5 * x @ jnp.asarray(matrix) @ x)


def test_norms_ratios_and_ranks_are_those_of_their_definitions() -> None:
    params = {"a": np.array([3.0, -4.0, 0.0]), "b": np.diag([2.0, 1.0, 0.0])}
    problem = ss.Problem(lambda p: jnp.sum(p["a"] ** 2) + 0.5 * jnp.sum(p["b"]) ** 2)
    gradient = np.concatenate([2 * params["a"], 3 * np.ones(9)])
    m = ss.metrics
    np.testing.assert_allclose(m.gradient_norm()(problem, params), np.abs(gradient).sum())
    np.testing.assert_allclose(m.gradient_norm(0.5)(problem, params), np.sqrt(gradient**2 + 0.5).sum())
    np.testing.assert_allclose(m.participation_ratio()(problem, params), 30**2 / (81 + 256 + 16 + 1))
    np.testing.assert_allclose(m.participation_ratio(lambda p: p["a"])(problem, params), 25**2 / (81 + 256))
    np.testing.assert_allclose(m.sparsity()(problem, params), 8 / 12)
    np.testing.assert_allclose(m.sparsity(threshold=0.3)(problem, params), 9 / 12)
    np.testing.assert_allclose(m.effective_rank(lambda p: p["b"])(problem, params), 3 / 2 ** (2 / 3))
    np.testing.assert_allclose(m.effective_rank(lambda p: jnp.outer(p["a"], p["a"]))(problem, params), 1)
    for bad in (lambda: m.gradient_norm(-1.0), lambda: m.sparsity(threshold=1.0)):
        with pytest.raises(ValueError, match="must"):
            bad()
    with pytest.raises(ValueError, match=r"returns shape \(3,\); it must return a matrix"):
        m.effective_rank(lambda p: p["a"])(problem, params)


def test_the_gradient_norm_is_that_whose_slope_corrects_the_backward_error_flow() -> None:
    """ρ = β = 0: the flow is −(1/r){∂E + ½h (ε/r²) ∂‖∇E‖_{1,ε}}, here integrated from the metric itself."""
    problem, eps, h = quadratic(FULL), 2.0, 1e-3
    norm = ss.metrics.gradient_norm(eps)
    with jax.enable_x64(True):
        gradient = FULL @ X
        slope = np.asarray(jax.grad(lambda x: norm(problem, x))(jnp.asarray(X)))
    r = np.sqrt(gradient**2 + eps)
    moved = ss.backward_error(problem, X, h, lr=h, b1=0.0, b2=0.0, eps=eps, save_at=2).final_params[0]
    plain = ss.backward_error(problem, X, h, lr=h, b1=0.0, b2=0.0, eps=eps, save_at=2, corrected=False).final_params[0]
    np.testing.assert_allclose(moved - plain, -0.5 * h**2 * eps * slope / r**3, rtol=0.05, atol=1e-9)


def test_largest_eigenvalues_are_those_of_dense_matrices() -> None:
    problem, state = quadratic(FULL), (1 / METRIC - 0.1) ** 2
    values = np.linalg.eigvalsh(FULL)
    np.testing.assert_allclose(ss.metrics.largest_eigenvalue(problem, X), values[-1])
    root = np.sqrt(METRIC)
    scaled = np.linalg.eigvalsh(root[:, None] * FULL * root)
    with np.errstate(all="raise"):
        found = ss.metrics.adaptive_largest_eigenvalue(problem, X, ss.adam(c=1.0, eps=0.1), state)
    signs = np.sign(1 / METRIC - 0.1)
    assert np.all(signs > 0)
    np.testing.assert_allclose(found, scaled[-1])


@pytest.mark.parametrize("metric", [None, METRIC])
@pytest.mark.parametrize("sketch", [0, 6])
def test_estimated_traces_are_unbiased_with_honest_errors(metric: Any, sketch: int) -> None:
    """200 keys, 16 probes: the mean is right to 4 standard errors, and the error bars are of the size of the errors."""
    exact = np.trace(FULL) if metric is None else np.sum(METRIC * np.diag(FULL))
    problem = quadratic(FULL)
    with jax.enable_x64(True):
        estimate = jax.vmap(
            lambda key: ss.metrics.estimated.trace_hessian(
                problem, jnp.asarray(X), 16, key, metric=None if metric is None else jnp.asarray(metric), sketch=sketch
            )
        )
        values, errors = (np.asarray(part) for part in estimate(jr.split(jr.key(1), 200)))
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / np.sqrt(200)
    assert 0.6 < np.mean(errors**2) / values.var(ddof=1) < 1.6
    assert abs(values.mean() - 1.2 * exact) > 10 * values.std(ddof=1) / np.sqrt(200)


def test_a_sketch_sharpens_the_estimate_and_is_exact_at_low_rank() -> None:
    plain = ss.metrics.estimated.trace_hessian(quadratic(FULL), X, 32)
    sketched = ss.metrics.estimated.trace_hessian(quadratic(FULL), X, 32, sketch=6)
    assert sketched.standard_error < 0.2 * plain.standard_error
    exact = ss.metrics.estimated.trace_hessian(quadratic(MATRIX), X, 2, sketch=4)
    np.testing.assert_allclose(exact.value, np.trace(MATRIX), rtol=1e-10)
    assert exact.standard_error < 1e-9


def test_lanczos_finds_the_largest_eigenvalue_and_bounds_its_error() -> None:
    exact = np.linalg.eigvalsh(FULL)
    for iterations in (5, 40):
        value, residual = ss.metrics.estimated.largest_eigenvalue(quadratic(FULL), X, iterations)
        assert value <= exact[-1] * (1 + 1e-12)
        assert np.min(np.abs(exact - value)) <= residual + 1e-10
    np.testing.assert_allclose(value, exact[-1], rtol=1e-10)
    assert residual < 1e-8
    scaled = np.linalg.eigvalsh(np.sqrt(METRIC)[:, None] * FULL * np.sqrt(METRIC))[-1]
    found = ss.metrics.estimated.largest_eigenvalue(quadratic(FULL), X, 30, metric=METRIC)
    np.testing.assert_allclose(found.value, scaled, rtol=1e-8)
    # Negative definite, and of low rank: zero is the largest eigenvalue, and an invariant subspace is met early.
    assert abs(ss.metrics.estimated.largest_eigenvalue(quadratic(-MATRIX), X, 20).value) < 1e-9


def test_bad_input_of_estimates_is_named() -> None:
    for call, message in [
        (lambda e: e.trace_hessian(quadratic(FULL), X, 1), "probes=1 must be at least 2"),
        (lambda e: e.trace_hessian(quadratic(FULL), X, sketch=-1), "sketch=-1"),
        (lambda e: e.trace_hessian(quadratic(FULL), X, metric=np.ones(3)), "metric acts on 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(ss.metrics.estimated)


def test_measures_run_along_trajectories() -> None:
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))
    targets = inputs[:, 0] - inputs[:, 1]
    problem = ss.LeastSquares(lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, targets, ss.LabelNoise(std=1.0))
    start = {"u": np.full(12, 0.7), "v": np.full(12, 0.5)}
    ratio = ss.metrics.participation_ratio(lambda w: w["u"] ** 2 - w["v"] ** 2)
    metrics = ("adaptive_largest_eigenvalue", ratio)
    found = ss.run_discrete(
        problem, ss.adam(c=2.0, eps=0.1), start, 0.05, lr=0.02, paths=2, save_at=3, metrics=metrics, project=False
    )
    u, v = found.params["u"], found.params["v"]
    weights = u**2 - v**2
    exact = np.sum(weights**2, axis=-1) ** 2 / np.sum(weights**4, axis=-1)
    np.testing.assert_allclose(found.metrics["participation_ratio"], exact)
    jacobian = 2 * np.concatenate([inputs * u[..., None, :], -inputs * v[..., None, :]], axis=-1)
    metric = 1 / (np.sqrt(np.concatenate([found.v["u"], found.v["v"]], axis=-1)) + 0.1)
    kernel = jacobian @ (metric[..., :, None] * np.swapaxes(jacobian, -1, -2)) / 6
    np.testing.assert_allclose(found.metrics["adaptive_largest_eigenvalue"], np.linalg.eigvalsh(kernel)[..., -1])

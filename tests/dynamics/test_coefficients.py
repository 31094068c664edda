"""Coefficients of the slow SDE against differentiation through a resolved flow, and against Φ_S of noisy starts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import resolved_flow, second_derivative_through

import manifolds as mf
import slowsde as ss
from manifolds import second_order
from manifolds.maps.limit_map import limit_point

RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(3, 6))
TARGETS = 0.3 * RNG.normal(size=3)
FACTOR = RNG.normal(size=(6, 2))
ROOT = RNG.normal(size=(6, 6))
METRIC = ROOT @ ROOT.T / 6 + 0.4 * np.eye(6)


def single_index(w: Any, z: Any) -> Any:
    return jnp.sin(z @ w) + 0.3 * (z @ w) ** 2 + 0.5 * w[0] * w[1]


def two_outputs(w: Any, z: Any) -> Any:
    hidden = jnp.tanh(w[:4].reshape(2, 2) @ z[:2])
    return jnp.stack([w[4] * hidden[0] + w[5] * hidden[1], hidden[0] * hidden[1] + w[5]])


def coupled_valley(x: Any) -> Any:
    """Not least squares: curvature that varies along a curved Γ = {x0 = sin x2, x1 = x3 x4}."""
    a, b = x[0] - jnp.sin(x[2]), x[1] - x[3] * x[4]
    return jnp.log1p((1 + x[5] ** 2) * a**2 + 0.7 * jnp.exp(0.3 * x[2]) * b**2 + 0.4 * a * b)


class Case(NamedTuple):
    problem: Any
    routes: tuple[str, ...]
    start: np.ndarray


NOISE = ss.GaussianNoise(FACTOR)
CASES = {
    "least squares": Case(ss.LeastSquares(single_index, INPUTS, TARGETS, NOISE), ("kernel", "dense"), np.full(6, 0.2)),
    "two outputs": Case(
        ss.LeastSquares(two_outputs, INPUTS[:1, :2], np.array([[0.4, 0.3]]), NOISE),
        ("kernel", "dense"),
        np.array([0.6, -0.4, 0.5, 0.8, 0.7, 0.3]),
    ),
    "not least squares": Case(
        ss.Problem(coupled_valley, NOISE), ("dense",), np.array([0.5, 0.3, 0.6, 0.7, 0.5, 0.4])
    ),
}  # fmt: skip

# A method whose metric does not depend on a state, so that S can be any matrix.
OPTIMIZER = ss.AGM(V=lambda g: None, S=lambda v: mf.Dense(METRIC), c=1.0)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Case, np.ndarray, Any]:
    """A problem, a point of its Γ, and the resolved flow that ends there."""
    chosen = CASES[request.param]
    with jax.enable_x64(True):
        loss = mf.ScalarLoss(chosen.problem.loss, like=chosen.start)
        found = mf.limit(loss, chosen.start, METRIC)
        largest, smallest = found.spectrum[0], found.spectrum[int(found.rank) - 1]
        time = 36 / smallest
        flow = resolved_flow(loss.gradient, jnp.asarray(METRIC), time, int(time * largest / 0.08))
        return chosen, found.point, flow


def relative(got: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(got) - np.asarray(expected))) / np.max(np.abs(np.asarray(expected))))


@pytest.fixture(scope="module")
def through_flow(case: Any) -> tuple[np.ndarray, np.ndarray]:
    """½ D²Φ_S[S B, S B] and DΦ_S[S B] by automatic differentiation."""
    _, point, flow = case
    with jax.enable_x64(True):
        point, columns = jnp.asarray(point), jnp.asarray(METRIC @ FACTOR)
        second = jax.jit(lambda x: 0.5 * second_derivative_through(flow, x, columns))(point)
        first = jax.jit(lambda x: jax.vmap(lambda w: jax.jvp(flow, (x,), (w,))[1], 1, 1)(columns))(point)
        return np.asarray(second), np.asarray(first)


def test_drift_and_diffusion_are_the_derivatives_of_the_limit_map(case: Any, through_flow: Any) -> None:
    chosen, point, _ = case
    for route in chosen.routes:
        found = ss.coefficients(chosen.problem, OPTIMIZER, point, route=route)
        assert relative(found.drift, through_flow[0]) < 1e-6
        assert relative(found.diffusion, through_flow[1]) < 1e-6


def test_routes_agree(case: Any) -> None:
    chosen, point, _ = case
    found = [ss.coefficients(chosen.problem, OPTIMIZER, point, route=route) for route in chosen.routes]
    for other in found[1:]:
        assert relative(other.drift, found[0].drift) < 1e-9
        assert relative(other.diffusion, found[0].diffusion) < 1e-9


def test_a_wrong_coefficient_would_be_caught(case: Any, through_flow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: no Itô term, no Lyapunov weights, no tangent–normal block, one S too many."""
    chosen, point, _ = case
    drift, diffusion = through_flow
    with jax.enable_x64(True):
        loss = chosen.problem.flat_loss(mf.ScalarLoss(chosen.problem.loss, like=chosen.start).coordinates, "dense")
        x, factor = jnp.asarray(point), jnp.asarray(FACTOR)
        normal = loss.normal_space(x, mf.Dense(METRIC))
        right = second_order.tangential_drift(loss, x, normal, factor)
        assert relative(right, drift) > 1e-2  # without the Itô term
        full = normal.metric(factor)
        no_weights = -0.5 * normal.project_gradient(loss.contract_factors(x, full, full))
        assert relative(no_weights + second_order.normal_drift(loss, x, normal, factor), drift) > 1e-2
        left, weighted = second_order.lyapunov_factors(normal, factor)
        m = normal.values.shape[0]
        no_mixed = -0.5 * normal.project_gradient(loss.contract_factors(x, left[:, :m], weighted[:, :m]))
        assert relative(no_mixed, right) > 1e-2
        assert relative(normal.metric(second_order.tangential_factor(normal, factor)), diffusion) > 1e-2


@pytest.fixture(scope="module")
def limit_of(case: Any) -> Any:
    """Φ_S of a batch of starts, by the library's own flow solver."""
    chosen, point, _ = case
    with jax.enable_x64(True):
        loss = mf.ScalarLoss(chosen.problem.loss, like=chosen.start)
        rank = loss.normal_space(jnp.asarray(point), mf.Dense(METRIC)).rank
        return jax.jit(jax.vmap(lambda x: limit_point(loss, x, mf.Dense(METRIC), rank).point))


@pytest.mark.slow
def test_drift_is_the_mean_of_the_limit_map_of_noisy_starts(case: Any, limit_of: Any) -> None:
    """E Φ_S(ζ + √h S B ξ) = ζ + h·drift + O(h²): derivative-free; within 4 standard errors of a sampled mean."""
    chosen, point, _ = case
    drift = ss.coefficients(chosen.problem, OPTIMIZER, point, route="dense").drift
    h, pairs = 1e-4, 1024
    with jax.enable_x64(True):
        kicks = np.sqrt(h) * np.random.default_rng(0).normal(size=(pairs, 2)) @ (METRIC @ FACTOR).T
        moved = (np.asarray(limit_of(point + kicks)) + np.asarray(limit_of(point - kicks)) - 2 * point) / (2 * h)
    error = moved.std(axis=0, ddof=1) / np.sqrt(pairs)
    assert np.all(np.abs(moved.mean(axis=0) - drift) < 4 * error + 1e-2 * np.abs(drift).max())
    assert np.max(error) < 0.1 * np.max(np.abs(drift))  # the comparison is sharp


def test_drift_is_the_cubature_of_the_limit_map(case: Any, limit_of: Any) -> None:
    """E Φ_S(ζ + √h S B ξ) = ζ + h·drift + O(h²) with ξ on the 2r points ±√r e_j, where the quadratic part has no
    sampling error: agreement is O(h), measured as such, and closer than any mutant above."""
    chosen, point, _ = case
    drift = ss.coefficients(chosen.problem, OPTIMIZER, point, route="dense").drift
    columns = METRIC @ FACTOR
    gaps = []
    for h in (4e-4, 1e-4):
        kicks = np.sqrt(h * 2) * np.concatenate([columns.T, -columns.T])
        with jax.enable_x64(True):
            moved = (np.asarray(limit_of(point + kicks)).mean(axis=0) - point) / h
        gaps.append(relative(moved, drift))
    assert gaps[1] < 5e-3
    assert 2.5 < gaps[0] / gaps[1] < 6  # O(h): a factor 4


def test_quasi_static_state_has_no_drift() -> None:
    problem = CASES["not least squares"].problem
    point = mf.limit_map(problem.loss, CASES["not least squares"].start)
    found = ss.coefficients(problem, ss.adam(c=jnp.inf, eps=0.1), point)
    assert np.all(found.v_drift == 0)


def test_state_drift_is_relaxation_to_the_noise_variance() -> None:
    problem = CASES["not least squares"].problem
    point = mf.limit_map(problem.loss, CASES["not least squares"].start)
    v = np.linspace(0.5, 1.0, 6)
    found = ss.coefficients(problem, ss.adam(c=3.0, eps=0.1), point, v)
    np.testing.assert_allclose(found.v_drift, 3.0 * (np.sum(FACTOR**2, axis=1) - v), rtol=1e-12)


def test_what_is_not_finite_is_named() -> None:
    """Numbers are looked at after the one evaluation: NaN comes from none of it as a success."""
    point = np.array([np.sqrt(0.5), np.sqrt(0.5)])
    circle = lambda x: 0.25 * (x @ x - 1) ** 2  # noqa: E731
    noise = ss.GaussianNoise(lambda x: jnp.where(x[0] > 0, jnp.nan, 1.0) * jnp.eye(2))
    with pytest.raises(ValueError, match="noise factor B of shape"):
        ss.coefficients(ss.Problem(circle, noise), ss.sgd(), point)
    broken = ss.Problem(lambda x: circle(x) + jax.lax.stop_gradient(jnp.log(-x[0])), ss.GaussianNoise(1.0))
    with pytest.raises(ValueError, match="value of loss is not finite"):
        ss.coefficients(broken, ss.sgd(), point)
    odd = ss.AGM(V=lambda g: jnp.abs(g), S=lambda v: 1 / (1 + v), c=1.0)
    with pytest.raises(ValueError, match="quadratic"):
        ss.coefficients(ss.Problem(circle, ss.GaussianNoise(1.0)), odd, point)


def test_later_calls_trace_nothing() -> None:
    """A direct call took twice the compiled evaluation, most of it in tracing the model for its form."""
    calls = []

    def predict(w: Any, z: Any) -> Any:
        calls.append(1)
        return z @ w**2

    problem = ss.LeastSquares(predict, INPUTS, INPUTS @ np.ones(6), ss.LabelNoise(0.5, batch_size=1))
    first = ss.coefficients(problem, ss.adam(c=1.0, eps=0.1), np.ones(6))
    assert first.diffusion.shape == (6, 0)
    assert calls
    calls.clear()
    ss.coefficients(problem, ss.adam(c=2.0, eps=0.1), np.r_[1.0, 1, 1, 1, 1, 1])
    assert not calls

"""Diffusing noise against closed forms: valleys with Gaussian noise, Brownian motion on spheres, oblique metrics."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import lambertw

import slowsde as ss

PATHS = 4096


def z_score(samples: Any, exact: float) -> float:
    return float((samples.mean() - exact) / (samples.std(ddof=1) / np.sqrt(len(samples))))


# L = ½ h(y) x² with h = e^{ay²/2}: dy = −¼ S_x S_y σx² a y dt + S_y σ_y dW, Ornstein–Uhlenbeck with moving rates.
A, SIGMA, C, EPS = 1.0, np.array([0.8, 0.5]), 2.0, 0.05
V0 = np.array([0.3, 0.6])
Y0 = 1.0


def valley(x: Any) -> Any:
    return 0.5 * jnp.exp(A * x[1] ** 2 / 2) * x[0] ** 2


def state(t: float) -> np.ndarray:
    return SIGMA**2 + (V0 - SIGMA**2) * np.exp(-C * t)


def exact_moments(t: float, factor: float = 0.25, frozen: bool = False) -> tuple[float, float]:
    """Mean and second moment of y(t) by quadrature of their linear equations; the options make mutants."""

    def field(time: float, moments: np.ndarray) -> list[float]:
        s = 1 / (np.sqrt(V0 if frozen else state(time)) + EPS)
        k = -factor * s[0] * s[1] * SIGMA[0] ** 2 * A
        return [k * moments[0], 2 * k * moments[1] + (s[1] * SIGMA[1]) ** 2]

    solution = solve_ivp(field, (0, t), [Y0, Y0**2], rtol=1e-10, atol=1e-12)
    return solution.y[0, -1], solution.y[1, -1]


@pytest.fixture(scope="module")
def moving_valley() -> ss.Trajectory:
    problem = ss.Problem(valley, ss.GaussianNoise(np.diag(SIGMA)))
    optimizer = ss.adam(c=C, eps=EPS)
    return ss.simulate(
        problem, optimizer, np.array([0.0, Y0]), 1.0, v0=V0, paths=PATHS, save_at=[0.5, 1.0], dt=0.004, key=jr.key(7)
    )


@pytest.mark.parametrize(("index", "time"), [(0, 0.5), (1, 1.0)])
def test_mean_and_second_moment_in_a_valley_with_a_moving_state(moving_valley: Any, index: int, time: float) -> None:
    y = moving_valley.params[:, index, 1]
    mean, second = exact_moments(time)
    assert abs(z_score(y, mean)) < 4
    assert abs(z_score(y**2, second)) < 4
    assert np.max(np.abs(moving_valley.stats["residual"])) < 1e-12


def test_state_follows_its_exponential(moving_valley: Any) -> None:
    np.testing.assert_allclose(moving_valley.v[:, -1], np.tile(state(1.0), (PATHS, 1)), rtol=1e-3)
    np.testing.assert_allclose(moving_valley.v[0, -1], state(1.0), rtol=1e-9)


def test_a_frozen_state_or_a_missing_quarter_would_be_caught(moving_valley: Any) -> None:
    """The same samples against the moments of mutants: −½ in place of −¼; S frozen at v0."""
    y = moving_valley.params[:, -1, 1]
    assert abs(z_score(y, exact_moments(1.0, factor=0.5)[0])) > 6
    assert abs(z_score(y**2, exact_moments(1.0, frozen=True)[1])) > 6


def test_deterministic_valley_is_the_lambert_function() -> None:
    """h = 1 + y², σ_y = 0, S = I: y² e^{y²} = y0² e^{y0²} e^{−σx² t}; every path is the same."""
    sigma, y0 = 0.9, 1.2
    problem = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(np.array([[sigma], [0.0]])))
    found = ss.simulate(problem, ss.sgd(), np.array([0.0, y0]), 2.0, paths=2, save_at=5, dt=1e-3)
    exact = np.sqrt(lambertw(y0**2 * np.exp(y0**2 - sigma**2 * found.ts)).real)
    np.testing.assert_allclose(found.params[0, :, 1], exact, rtol=1e-3)
    np.testing.assert_array_equal(found.params[0], found.params[1])


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_brownian_motion_on_the_sphere(n: int) -> None:
    """Isotropic noise, S = I: E X = e^{−(n−1)t/2} x0 and E X1² = 1/n + (1 − 1/n) e^{−nt}."""
    problem = ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(1.0))
    x0 = np.eye(n)[0]
    found = ss.simulate(problem, ss.sgd(), x0, 0.5, paths=PATHS, save_at=[0.25, 0.5], dt=0.0025, key=jr.key(n))
    assert np.max(np.abs(np.linalg.norm(found.params, axis=-1) - 1)) < 1e-12
    for index, t in enumerate(found.ts):
        x = found.params[:, index, 0]
        assert abs(z_score(x, np.exp(-(n - 1) * t / 2))) < 4
        assert abs(z_score(x**2, 1 / n + (1 - 1 / n) * np.exp(-n * t))) < 4
    if n == 2:  # without the Itô term the mean would not decay; with Stratonovich's it would decay as fast again
        assert abs(z_score(found.params[:, -1, 0], 1.0)) > 20


@pytest.mark.slow
def test_minibatch_noise_of_an_empirical_risk_matches_its_own_discrete_runs() -> None:
    """Per-sample gradients that do not vanish on Γ: Σ = Cov/b drives a real SDE, checked against discrete SGD."""
    data = np.random.default_rng(0).normal(size=(16, 2))

    def sample_loss(x: Any, z: Any) -> Any:
        return 0.5 * (1 + 0.5 * jnp.sin(x[1])) * x[0] ** 2 + z[0] * x[0] + 0.2 * z[1] * jnp.sin(x[1])

    centred = data - data.mean(axis=0)  # so that the mean loss is ½(1 + ½ sin y)x², with Γ = {x = 0}
    problem = ss.EmpiricalRisk(sample_loss, centred, ss.MinibatchNoise(2))
    loss_on_manifold = {"y": lambda x: x[1]}
    slow = ss.simulate(
        problem, ss.sgd(), np.array([0.0, 0.3]), 0.5, paths=1024, save_at=3, dt=0.01, metrics=loss_on_manifold
    )
    fast = ss.run_discrete(
        problem, ss.sgd(), np.array([0.0, 0.3]), 0.5, lr=0.02, paths=1024, save_at=3, metrics=loss_on_manifold
    )
    compared = ss.compare(slow, fast)
    assert abs(compared.gap["y"][-1]) < 4 * compared.standard_error["y"][-1] + 0.02
    assert abs(compared.slow_mean["y"][-1] - 0.3) > 6 * compared.standard_error["y"][-1]

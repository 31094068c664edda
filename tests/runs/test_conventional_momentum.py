"""The conventional SDE with momentum: against discrete Adam, its own exact moments, and the optimizer written out."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

import slowsde as ss
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.conventional import Conventional
from slowsde.dynamics.conventional_momentum import SCHEMES, Momentum
from slowsde.dynamics.slow_sde import SlowSDE

CURVATURE = np.array([1.0, 5.0])
B1, LR = 0.875, 0.125**0.5  # τ = η² = .125, κ = (1−β1)/η² = 1


def bowl(x: Any) -> Any:
    return 0.5 * jnp.sum(CURVATURE * x**2)


def test_first_moments_are_those_of_adam_within_three_per_cent() -> None:
    """E = ½(θ1² + 5θ2²) over the memory of m, 8 steps, and twice as long along the flat direction; 8192 paths."""
    problem, optimizer = ss.Problem(bowl, ss.GaussianNoise(10 * np.eye(2))), ss.adam(1.0, b1=B1, eps=1e-3)
    times, start = ss.slow_time(np.array([4, 8, 16]), LR), np.full(2, 10.0)
    options: dict[str, Any] = {"lr": LR, "v0": np.full(2, 100.0), "paths": 8192, "save_at": times}

    def mean(run: ss.Trajectory) -> np.ndarray:
        return run.params.mean(axis=0)

    def rival(**how: Any) -> np.ndarray:
        return mean(ss.conventional_sde(problem, optimizer, start, times[-1], key=jr.key(1), **options, **how))

    adam = mean(ss.run_discrete(problem, optimizer, start, times[-1], project=False, **options))
    off = np.abs(rival() / adam - 1)
    assert off[:2].max() < 0.03
    assert off[2, 0] < 0.03
    without = np.abs(rival(momentum=False) / adam - 1)
    assert without.min() > 0.08  # at once
    assert without[2, 1] > 0.4


def linear_step(scheme: str, b1: float, lam: float, h: float) -> tuple[np.ndarray, np.ndarray]:
    """A step of (θ, m) in L = ½λθ² by SGD with noise of variance 1: its matrix, and its covariance."""
    problem = ss.Problem(lambda x: 0.5 * lam * jnp.sum(x**2), ss.GaussianNoise(np.eye(1)))
    sde = SlowSDE(problem, ss.sgd(b1=b1), problem.flat_loss(Coordinates.of(np.ones(1))))
    model = Momentum(Conventional(sde, jnp.asarray(LR)))

    def step(state: Any, dW: Any) -> Any:
        x, _, m = SCHEMES[scheme](model, 0.0, h, dW, (state[:1], None, state[1:]))
        return jnp.concatenate([x, m])

    forward, shake = jax.jacfwd(step, argnums=(0, 1))(jnp.zeros(2), jnp.zeros(1))
    return np.asarray(forward), h * np.asarray(shake @ shake.T)


@pytest.mark.parametrize("a", [0.35, 0.9])
def test_the_stationary_second_moment_of_a_quadratic_is_exact_at_steps_of_the_optimizer(a: float) -> None:
    """Splitting, β1 = ½, η² = .125, ηλ = a; the exact variance of m, or Euler's step, would be 2 % and more off."""
    with jax.enable_x64(True):
        rate, lam, h = 0.5 / LR**2, a / LR, LR**2
        field = np.array([[0, -1 / LR], [rate * lam, -rate]])
        exact = solve_continuous_lyapunov(field, -np.diag([0, (rate * LR) ** 2]))[0, 0]

        def error(scheme: str, factor: float = 1.0) -> float:
            forward, noise = linear_step(scheme, 0.5, lam, h)
            return abs(solve_discrete_lyapunov(forward, factor * noise)[0, 0] / exact - 1)

        assert error("splitting") < 1e-9
        x = rate * h
        assert error("splitting", x / 2 / np.tanh(x / 2)) > 0.02
        assert error("euler") > 0.05


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("solver", ["splitting", "heun"])
def test_without_noise_it_is_of_order_two(corrected: bool, solver: str) -> None:
    """(θ, m, v) with weight decay and a schedule, against the same equations by SciPy."""
    lr, c, eps, decay, t1 = 0.3, 2.0, 0.2, 0.7, 1.0
    optimizer = ss.adam(
        c, B1, eps, bias_correction=corrected, weight_decay=decay, schedule=lambda t: 1 - 0.5 * jnp.sin(t)
    )
    problem, start, v0 = ss.Problem(bowl, ss.GaussianNoise(1e-12)), np.array([1.0, -0.5]), np.array([0.3, 2.0])
    t0 = 0.4 if corrected else 0.0

    def field(t: float, y: np.ndarray) -> np.ndarray:
        x, m, v = np.split(y, 3)
        rate, pace, gradient = (1 - B1) / lr**2, 1 - 0.5 * np.sin(t), CURVATURE * x
        seen_m, seen_v = (-np.expm1(-rate * t), -np.expm1(-c * t)) if corrected else (1.0, 1.0)
        dx = -pace / lr * m / (np.sqrt(v) + eps) - pace * decay * x
        return np.concatenate([dx, rate * (gradient - m) / seen_m, c * (gradient**2 - v) / seen_v])

    y0 = np.concatenate([start, np.zeros(2), v0])
    exact = solve_ivp(field, (t0, t0 + t1), y0, rtol=1e-11, atol=1e-12).y[:2, -1]
    errors = []
    for substeps in (2, 4):
        options: dict[str, Any] = {"lr": lr, "substeps": substeps, "solver": solver, "momentum": True}
        found = ss.conventional_sde(problem, optimizer, start, t0 + t1, t0=t0, v0=v0, save_at=[t0 + t1], **options)
        errors.append(np.abs(found.params[0, -1] - exact).max())
    assert errors[1] < 2e-3
    assert 1.8 < np.log2(errors[0] / errors[1]) < 2.3


@pytest.mark.parametrize("corrected", [False, True])
def test_euler_with_one_substep_is_the_optimizer_itself(corrected: bool) -> None:
    problem = ss.Problem(bowl, ss.GaussianNoise(0.0))
    optimizer = ss.sgd(b1=0.9, bias_correction=corrected)
    options: dict[str, Any] = {"lr": 0.2, "paths": 1, "save_at": ss.slow_time(np.array([1, 2, 5, 20]), 0.2)}
    start, t1 = np.ones(2), ss.slow_time(20, 0.2)
    fast = ss.run_discrete(problem, optimizer, start, t1, project=False, **options)
    rival = ss.conventional_sde(problem, optimizer, start, t1, momentum=True, solver="euler", **options)
    np.testing.assert_allclose(rival.params, fast.params, rtol=1e-9, atol=1e-12)


def test_where_momentum_is_a_state_and_what_v_relaxes_to() -> None:
    a, sigma, c = np.array([0.6, -0.3]), np.array([0.8, 0.5]), 3.0
    slope = ss.Problem(lambda x: x @ jnp.asarray(a), ss.GaussianNoise(np.diag(sigma)))

    def rival(optimizer: Any, **how: Any) -> ss.Trajectory:
        return ss.conventional_sde(slope, optimizer, np.ones(2), 0.5, lr=0.1, save_at=2, **how)

    for optimizer, remembers, solver in (
        (ss.adam(c), True, "splitting"),
        (ss.rmsprop(c), False, "heun"),
        (ss.sgd(b1=0.9), False, "heun"),
    ):
        stats = rival(optimizer).stats
        assert (stats["momentum"], stats["solver"]) == (remembers, solver)
    assert rival(ss.sgd(b1=0.9), momentum=True).stats["momentum"]
    assert not rival(ss.rmsprop(c), momentum=True).stats["momentum"]
    v0 = np.array([0.1, 2.0])
    for v_target, target in (("second moment", sigma**2 + a**2), ("covariance", sigma**2)):
        found = rival(ss.adam(c), v0=v0, v_target=v_target)
        np.testing.assert_allclose(found.v[0, -1], target + (v0 - target) * np.exp(-c * 0.5), rtol=1e-9)
        assert found.stats["v_target"] == v_target

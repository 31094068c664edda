"""v0 = 0: S falls from 1/ε at once, and a start graded towards t = 0 follows it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import slowsde as ss

C, EPS, SIGMA, PATHS, T1 = 20.0, 1e-3, np.array([0.8, 0.5]), 2048, 0.05


def moments(times: list[float], eps: float = EPS) -> np.ndarray:
    """E y and E y² in the valley L = ½e^{y²/2}x²: dy = −¼ S_x S_y σx² y dt + S_y σ_y dW, v = σ²(1 − e^{−ct})."""

    def field(log_time: float, m: np.ndarray) -> list[float]:
        t = np.exp(log_time)
        s = 1 / (np.sqrt(SIGMA**2 * -np.expm1(-C * t)) + eps)
        k = -0.25 * s[0] * s[1] * SIGMA[0] ** 2
        return [t * k * m[0], t * (2 * k * m[1] + (s[1] * SIGMA[1]) ** 2)]

    found = solve_ivp(
        field, (np.log(1e-16), np.log(times[-1])), [1.0, 1.0], t_eval=np.log(times), rtol=1e-9, atol=1e-12
    )
    return found.y


@pytest.mark.slow
def test_moments_from_nothing_in_a_valley() -> None:
    """E y, E y² of 2048 paths within 4 standard errors; with another ε far outside."""
    problem = ss.Problem(lambda x: 0.5 * jnp.exp(0.5 * x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(np.diag(SIGMA)))
    times = [1e-7, 1e-4, T1]
    found = ss.simulate(
        problem, ss.adam(C, eps=EPS), np.array([0.0, 1.0]), T1, v0=np.zeros(2), paths=PATHS, save_at=times, dt=5e-4
    )
    y = np.asarray(found.params)[:, :, 1]
    assert np.isfinite(y).all()
    for power, expected, other in zip((1, 2), moments(times), moments(times, 10 * EPS), strict=True):
        mean, error = np.mean(y**power, axis=0), np.std(y**power, axis=0, ddof=1) / np.sqrt(PATHS)
        print(power, mean, expected, other, error)
        assert np.all(np.abs(mean - expected) < 4 * error)
        assert power == 2 or abs(mean[-1] - other[-1]) > 4.5 * error[-1]


def test_label_noise_from_nothing() -> None:
    """The implicit start against a Runge–Kutta method at a tight tolerance; Adam's real ε is no obstacle."""
    eps = 1e-8
    inputs = np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    problem = ss.LeastSquares(
        lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, np.array([0.5, 1.0]), ss.LabelNoise(1.0)
    )
    start = ss.to_manifold(problem, {"u": np.array([1.2, 0.8, 1.1]), "v": np.array([0.7, 1.0, 0.6])})
    scale = (eps / 1e-3) ** 2  # the times over which S falls from 1/ε
    common: dict[str, Any] = {"v0": {"u": np.zeros(3), "v": np.zeros(3)}, "metrics": ("trace_hessian",)}
    common["save_at"] = np.array([1e-8, 1e-7, 1e-6]) * scale
    flow = ss.simulate(problem, ss.adam(2.0, eps=eps), start, 0.1, **common)
    assert flow.stats["solver"] == "implicit"
    assert flow.stats["num_steps"] < 150
    # To leading order v = ctV(Σ), and with ε → sε, t → s²t the flow is the same.
    judge = ss.simulate(problem, ss.adam(2.0, eps=1e-3), start, 2e-6, **common | {"save_at": [1e-8, 1e-7, 1e-6]},
                        solver="tsit5", rtol=1e-9)  # fmt: skip
    np.testing.assert_allclose(flow.metrics["trace_hessian"], judge.metrics["trace_hessian"], rtol=1e-4)

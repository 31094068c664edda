"""The conventional SDE against closed forms, against the optimizers over 1/η steps, and against Γ over 1/η² steps."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import slowsde as ss

PATHS = 8192
CURVATURE, SIGMA = np.array([2.0, 0.5]), np.array([0.8, 0.5])


def z_score(samples: Any, exact: Any) -> Any:
    return (samples.mean(axis=0) - exact) / (samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))


def quadratic(x: Any) -> Any:
    return 0.5 * jnp.sum(CURVATURE * x**2)


NOISY = ss.Problem(quadratic, ss.GaussianNoise(np.diag(SIGMA)))


def test_sgd_in_a_bowl_is_an_ornstein_uhlenbeck_process() -> None:
    """In τ = t/η: mean e^{−λτ}x0, variance ησ²(1 − e^{−2λτ})/(2λ); 8192 paths, 4 substeps, ηλ ≤ 0.2."""
    lr = 0.1
    found = ss.conventional_sde(NOISY, ss.sgd(), np.ones(2), 0.1, lr=lr, paths=PATHS, save_at=[0.02, 0.1], substeps=4)
    assert found.stats["num_steps"] == 40
    for row, t in enumerate(found.ts):
        mean = np.exp(-CURVATURE * t / lr)
        variance = lr * SIGMA**2 / (2 * CURVATURE) * -np.expm1(-2 * CURVATURE * t / lr)
        x = found.params[:, row]
        assert np.all(np.abs(z_score(x, mean)) < 4)
        assert np.all(np.abs(z_score((x - mean) ** 2, variance)) < 4)
        assert np.all(np.abs(z_score((x - mean) ** 2, 0.5 * variance)) > 10)  # the noise without one factor √2
        assert np.all(np.abs(z_score(x, np.exp(-CURVATURE * t / lr / 2))) > 10)  # the drift without one factor 2


def test_euler_with_one_substep_is_sgd_itself() -> None:
    """Mean (1−ηλ)^k x0 and the variance of k discrete steps, which the SDE itself misses by O(η)."""
    lr, k = 0.1, 10
    found = ss.conventional_sde(
        NOISY, ss.sgd(b1=0.9), np.ones(2), 0.1, lr=lr, paths=PATHS, save_at=[0.1], solver="euler"
    )
    assert found.stats["num_steps"] == k
    kept, x = 1 - lr * CURVATURE, found.params[:, 0]
    variance = (lr * SIGMA) ** 2 * (1 - kept ** (2 * k)) / (1 - kept**2)
    assert np.all(np.abs(z_score(x, kept**k)) < 4)
    assert np.all(np.abs(z_score((x - kept**k) ** 2, variance)) < 4)
    assert np.all(np.abs(z_score(x, np.exp(-CURVATURE * k * lr))) > 5)


@pytest.mark.parametrize("corrected", [False, True])
def test_state_schedule_and_decay_on_a_slope(corrected: bool) -> None:
    """L = ⟨a, x⟩: v relaxes to σ² + a², exactly, and the mean of x follows a linear equation in which S(v) moves."""
    a, lr, c, eps, decay = np.array([0.6, -0.3]), 0.1, 3.0, 0.2, 0.7
    problem = ss.Problem(lambda x: x @ jnp.asarray(a), ss.GaussianNoise(np.diag(SIGMA)))
    optimizer = ss.adam(
        c, eps=eps, bias_correction=corrected, weight_decay=decay, schedule=lambda t: 1 - 0.5 * jnp.sin(t)
    )
    v0 = None if corrected else np.array([0.1, 2.0])
    found = ss.conventional_sde(
        problem, optimizer, np.ones(2), 1.0, lr=lr, v0=v0, paths=1024, save_at=[0.5, 1.0], substeps=4, momentum=False
    )

    def state(t: float) -> np.ndarray:
        target = SIGMA**2 + a**2
        return target if corrected else target + (v0 - target) * np.exp(-c * t)

    def field(t: float, x: np.ndarray) -> np.ndarray:
        return (1 - 0.5 * np.sin(t)) * (-a / (lr * (np.sqrt(state(t)) + eps)) - decay * x)

    exact = solve_ivp(field, (0, 1), np.ones(2), t_eval=found.ts, rtol=1e-9, atol=1e-9).y.T
    for row, t in enumerate(found.ts):
        np.testing.assert_allclose(found.v[:, row], np.tile(state(t), (1024, 1)), rtol=1e-9)
        assert np.all(np.abs(z_score(found.params[:, row], exact[row])) < 4)


def valley(x: Any) -> Any:
    return 0.5 * jnp.exp(x[1] ** 2 / 2) * x[0] ** 2


VALLEY = ss.Problem(valley, ss.GaussianNoise(np.diag(SIGMA)))
OBSERVED = {"y": lambda x: x[1], "loss": valley}


@pytest.mark.parametrize(("optimizer", "v0"), [(ss.sgd(), None), (ss.rmsprop(2.0, eps=0.05), np.array([0.3, 0.6]))])
def test_over_one_over_eta_steps_the_weak_error_falls_with_eta(optimizer: ss.AGM, v0: Any) -> None:
    """From off Γ to τ = kη = 1: the gap in the mean of y, 8192 paths, falls by four from η = 0.2 to 0.05."""
    gaps, errors = [], []
    for lr in (0.2, 0.05):
        options = {"lr": lr, "v0": v0, "paths": PATHS, "save_at": 2, "metrics": OBSERVED}
        start, t1 = np.array([1.0, 1.2]), ss.slow_time(round(1 / lr), lr)
        fast = ss.run_discrete(VALLEY, optimizer, start, t1, project=False, key=jr.key(1), **options)
        rival = ss.conventional_sde(VALLEY, optimizer, start, t1, substeps=2, key=jr.key(2), **options)
        compared = ss.compare(rival, fast)
        gaps.append(compared.gap["y"][-1])
        errors.append(compared.standard_error["y"][-1])
    assert abs(gaps[0]) > 10 * errors[0]
    assert abs(gaps[1]) < 0.25 * abs(gaps[0]) + 3 * errors[1]


def test_over_one_over_eta_squared_steps_it_drifts_along_the_manifold_as_the_slow_sde() -> None:
    """SGD in a valley to t = 1, η = 0.1, 4096 paths: y drifts by −¼σx²y dt, and the loss fluctuates, ησx²/4."""
    lr, paths = 0.1, 4096
    found = ss.conventional_sde(
        VALLEY, ss.sgd(), np.array([0.0, 1.0]), 1.0, lr=lr, paths=paths, save_at=[1.0], metrics=OBSERVED, key=jr.key(3)
    )
    y, loss = found.metrics["y"][:, -1], found.metrics["loss"][:, -1]
    right, wrong = np.exp(-0.25 * SIGMA[0] ** 2), np.exp(-0.5 * SIGMA[0] ** 2)
    assert abs(y.mean() - right) < 0.2 * (right - wrong) + 4 * y.std() / np.sqrt(paths)
    assert abs(z_score(y, wrong)) > 8
    assert abs(z_score(y, 1.0)) > 8
    level = lr * SIGMA[0] ** 2 / 4
    assert abs(loss.mean() / level - 1) < lr + 4 * loss.std() / np.sqrt(paths) / level


def test_a_path_depends_on_its_key_and_number_only_and_params_may_be_a_pytree() -> None:
    problem = ss.Problem(lambda w: quadratic(jnp.stack([w["a"], w["b"][0]])), ss.GaussianNoise(np.diag(SIGMA)))
    params = {"a": np.array(1.0), "b": np.array([1.0])}
    options = {"lr": 0.1, "save_at": 3, "key": jr.key(4)}
    many = ss.conventional_sde(problem, ss.rmsprop(1.0), params, 0.05, paths=3, metrics=("loss",), **options)
    one = ss.conventional_sde(problem, ss.rmsprop(1.0), params, 0.05, paths=1, metrics=("loss",), **options)
    assert many.params["b"].shape == (3, 3, 1)
    np.testing.assert_allclose(one.params["a"][0], many.params["a"][0], rtol=1e-12)
    assert np.ptp(many.params["a"][:, -1]) > 0
    np.testing.assert_allclose(many.metrics["loss"][:, 0], 1.25)
    assert many.stats["clock"] == "k·lr²"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be a positive number"),
        ({"solver": "milstein"}, "solver='milstein' is not one of"),
        ({"solver": "splitting"}, "splits off the momentum, and optimizer.b1 is 0: use solver='heun'"),
        ({"solver": "splitting", "optimizer": ss.sgd(b1=0.9)}, "and momentum is False"),
        ({"momentum": 1}, "momentum=1 must be True or False"),
        ({"v_target": "published"}, "v_target='published' is not one of"),
        ({"substeps": 0}, "substeps=0 must be a positive integer"),
        ({"paths": 0}, "paths=0 must be a positive integer"),
        ({"t1": 0.0}, "t1=0.0 must be finite and larger than t0"),
        ({"optimizer": "adam"}, "optimizer='adam' must be an AGM"),
        ({"problem": ss.Problem(quadratic)}, "problem has no noise"),
        ({"metrics": "sharpness"}, "'sharpness' is not one of"),
        ({"v0": np.ones(3)}, "v0 has leaves of shape"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"problem": NOISY, "optimizer": ss.rmsprop(1.0), "params0": np.ones(2), "t1": 0.1, "lr": 0.1}
    with pytest.raises(ValueError, match=message):
        ss.conventional_sde(**(call | options))


def test_a_path_that_explodes_says_when() -> None:
    problem = ss.Problem(lambda x: jnp.sum(x**4), ss.GaussianNoise(0.1))
    with pytest.raises(ss.RunError, match=r"2 of 2 paths failed, the first at slow time 0\.\d+: NON_FINITE") as caught:
        ss.conventional_sde(problem, ss.sgd(), np.full(1, 3.0), 1.0, lr=0.2, paths=2, save_at=6)
    partial = caught.value.trajectory
    assert np.isfinite(partial.params[0, 0, 0])
    assert np.isnan(partial.params[0, -1, 0])

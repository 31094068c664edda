"""Extrapolated weak estimates: order 2 against closed forms where the plain ones have order 1, on coupled paths."""

import functools
from typing import Any

import jax.random as jr
import numpy as np
import pytest
from test_orders import T, controlled_mean, increments, leading_order, local_orders, quadrature_errors
from test_valley import EPS, SIGMA, V0, Y0, C, exact_moments, state, valley

import slowsde as ss
from slowsde.studies.extrapolation import estimate_of_samples, richardson_weights

VALLEY = ss.Problem(valley, ss.GaussianNoise(np.diag(SIGMA))), ss.adam(c=C, eps=EPS), np.array([0.0, Y0])
MOMENTS = {"y": lambda x: x[1], "y²": lambda x: x[1] ** 2}


def test_weights_annihilate_the_leading_errors() -> None:
    np.testing.assert_allclose(richardson_weights(np.array([0.2, 0.1])), [-1, 2])
    np.testing.assert_allclose(richardson_weights(np.array([0.4, 0.2, 0.1])), [1 / 3, -2, 8 / 3])
    for n in (2, 3, 4):
        dts = 0.3 / 2.0 ** np.arange(n)
        weights = richardson_weights(dts)
        np.testing.assert_allclose([weights @ dts**k for k in range(n)], np.eye(n)[0], atol=1e-12)


def test_errors_and_ratios_are_those_of_the_samples() -> None:
    """Levels that differ by a hundredth of their spread, and independent ones."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=10_000)
    coupled = np.stack([3 + 0.2 + shared, 3 + 0.1 + shared + 0.01 * rng.normal(size=shared.size)])
    found = estimate_of_samples({"q": coupled, "r": rng.normal(size=(2, 10_000))}, 1.0, np.array([0.2, 0.1]))
    assert found.estimate["q"] == pytest.approx(2 * coupled[1].mean() - coupled[0].mean(), rel=1e-12)
    assert abs(found.estimate["q"] - 3 - shared.mean()) < 1e-3
    assert found.standard_error["q"] == pytest.approx(0.01, rel=0.05)
    assert found.difference["q"] == pytest.approx(-0.1, abs=5e-4)
    assert found.difference_error["q"] == pytest.approx(1e-4, rel=0.05)
    assert found.variance_ratio["q"] == pytest.approx(0.2, rel=0.05)
    assert found.variance_ratio["r"] == pytest.approx(1.0, rel=0.1)


def test_the_operator_of_the_step_extrapolates_to_order_two_on_the_ellipse() -> None:
    """Without randomness: 2 u(h/2) − u(h) from the composed transition operators; other weights stay at order 1."""
    for name, errors in quadrature_errors(np.array([64, 128, 256, 512, 1024])).items():
        orders = local_orders(2 * errors[1:] - errors[:-1])
        mutant = local_orders(1.5 * errors[1:] - 0.5 * errors[:-1])
        print(f"{name}: plain {local_orders(errors)}, extrapolated {orders}, weights 1.5 and −0.5 {mutant}")
        assert orders[-1] > 1.8, name
        assert abs(2 * orders[-1] - orders[-2] - 2) < 0.05, name  # it goes to 2 linearly in the step
        assert mutant[-1] < 1.2, name


@functools.cache
def valley_estimate(steps: int, paths: int = 4096) -> ss.WeakEstimate:
    problem, optimizer, start = VALLEY
    return ss.weak_estimate(
        problem, optimizer, start, T, dt=T / steps, v0=V0, paths=paths, observables=MOMENTS, key=jr.key(steps)
    )


@pytest.mark.slow
def test_the_extrapolated_estimate_meets_the_closed_form_where_the_plain_one_does_not() -> None:
    """Steps of T/4 and T/8, 4096 paths."""
    found = valley_estimate(4)
    print(found.table())
    print("variance against independent levels:", found.variance_ratio)
    for name, exact in zip(MOMENTS, exact_moments(T), strict=True):
        assert abs(found.estimate[name] - exact) < 4 * found.standard_error[name]
        assert found.variance_ratio[name] < 0.3
        assert found.standard_error[name] < 1.5 * found.plain_error[name][-1]
        # the error of the plain mean is seen on the difference, whose noise is far smaller
        assert abs(found.difference[name]) > 4 * found.difference_error[name]
        assert found.difference_error[name] < 0.3 * found.standard_error[name]


def linear_part(dW: np.ndarray) -> list[np.ndarray]:
    """M = y − E y after Euler steps y₊ = (1 − k h) y + S_y σ_y ΔW of these increments (paths, n), and M² − E M²."""
    n = dW.shape[1]
    s = 1 / (np.sqrt(np.array([state(T * k / n) for k in range(n)])) + EPS)
    kept = 1 - 0.25 * s[:, 0] * s[:, 1] * SIGMA[0] ** 2 * T / n
    gain = np.append(np.cumprod(kept[:0:-1])[::-1], 1.0) * s[:, 1] * SIGMA[1]
    M = dW @ gain
    return [M, M**2 - np.sum(gain**2) * T / n]


def controlled(found: ss.WeakEstimate, weights: np.ndarray, steps: int) -> np.ndarray:
    """(2, 2): errors of E y and E y² for these weights of the levels, and their standard errors.

    The linear parts at both steps as control variates, of mean zero, leave little but the bias.
    """
    grid = np.linspace(0, T, 2 * steps + 1)
    fine = increments(jr.key(steps), grid, T / (2 * steps), found.paths, 2)[:, :, 1]
    controls = [*linear_part(fine.reshape(found.paths, steps, 2).sum(axis=2)), *linear_part(fine)]
    means = np.array([controlled_mean(weights @ found.values[name], controls) for name in MOMENTS])
    return np.stack([means[:, 0] - exact_moments(T), means[:, 1]])


@pytest.mark.slow
def test_the_extrapolated_estimate_has_weak_order_two_in_the_valley() -> None:
    """At least 1.8 by the interval, where the plain estimate has order 1; weights 1.5 and −0.5 keep order 1."""
    steps = [4, 6, 8, 12, 16]
    runs = [valley_estimate(n, 64) for n in steps]
    for weights, low, high in (([1.0, 0.0], 0.9, 1.1), ([-1.0, 2.0], 1.8, 2.2), ([-0.5, 1.5], 0.9, 1.1)):
        rows = np.array([controlled(run, np.array(weights), n) for run, n in zip(runs, steps, strict=True)])
        for moment in (0, 1):
            found = leading_order(steps, rows[:, 0, moment], rows[:, 1, moment])
            assert low < found[1] < found[2] < high, (weights, moment)


def test_bad_input_is_refused_by_name() -> None:
    problem, optimizer, start = VALLEY
    good: dict[str, Any] = {"dt": 0.1, "paths": 8, "observables": MOMENTS, "v0": V0}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"paths": 1}, "paths=1"),
        ({"levels": 1}, "levels=1"),
        ({"levels": 2.0}, "levels="),
        ({"observables": ()}, "observables="),
        ({"dt": -0.1}, "dt="),
    )
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            ss.weak_estimate(problem, optimizer, start, 1.0, **(good | changes))
    flow = ss.LeastSquares(lambda p, z: z @ p**2, np.array([[1.0, 2.0]]), np.array([1.0]), ss.LabelNoise(0.5))
    with pytest.raises(ValueError, match="Nothing diffuses"):
        ss.weak_estimate(flow, optimizer, np.array([0.9, 0.6]), 1.0, dt=0.1, paths=8, observables="loss")

"""Runs to rest: what is left of the gradient at their end, found in NumPy alone."""

from typing import Any

import numpy as np
import pytest

import slowsde as ss

D, N, STD = 20, 10, 0.5
RNG = np.random.default_rng(0)
INPUTS = RNG.choice([-1.0, 1.0], size=(N, D))
TRUTH = np.zeros(D)
TRUTH[:5] = [1, -1, 1, -1, 1]
START = {"u": 0.7 + 0.1 * RNG.standard_normal(D), "v": 0.7 + 0.1 * RNG.standard_normal(D)}


def predict(p: Any, z: Any) -> Any:
    return z @ (p["u"] ** 2 - p["v"] ** 2)


PROBLEM = ss.LeastSquares(predict, INPUTS, INPUTS @ TRUTH, ss.LabelNoise(STD))


def projected_gradient(params: Any, lam: float) -> float:
    """|Q ∇ tr Diag(H)^{1−λ}| with diag H = 4θ², Q onto the kernel of J, among coordinates that have not vanished."""
    theta = np.concatenate([params["u"], params["v"]])
    jacobian = 2 * np.concatenate([INPUTS, -INPUTS], axis=1) * theta
    kept = np.abs(theta) > 1e-6
    theta, jacobian = theta[kept], jacobian[:, kept]
    gradient = (1 - lam) * (4 * theta**2) ** -lam * 8 * theta
    return float(np.linalg.norm(gradient - np.linalg.pinv(jacobian, rcond=1e-9) @ (jacobian @ gradient)))


@pytest.mark.parametrize(
    ("optimizer", "lam"),
    [
        pytest.param(ss.sgd(), 0.0, marks=pytest.mark.slow),
        (ss.adam(10.0, eps=1e-6), 0.5),
        pytest.param(ss.adame(10.0, 0.75, eps=1e-4), 0.75, marks=pytest.mark.slow),
    ],
    ids=["sgd", "adam", "adame"],
)
def test_the_end_is_stationary(optimizer: ss.AGM, lam: float) -> None:
    end = ss.stationary_point(PROBLEM, optimizer, START, metrics=("trace_hessian",))
    assert end.stillness <= 1e-9
    assert projected_gradient(end.params, lam) < 1e-6
    w = end.params["u"] ** 2 - end.params["v"] ** 2
    np.testing.assert_allclose(INPUTS @ w, INPUTS @ TRUTH, atol=1e-9)
    assert projected_gradient(ss.to_manifold(PROBLEM, START), lam) > 0.1  # the start is not


def test_a_flow_that_still_moves_is_no_success() -> None:
    with pytest.raises(ss.RunError, match="NOT_STATIONARY") as caught:
        ss.stationary_point(PROBLEM, ss.sgd(), START, max_steps=15, tol=1e-12)
    assert np.isfinite(caught.value.trajectory.params["u"]).all()


def test_bad_input() -> None:
    valley = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(0.3))
    with pytest.raises(ValueError, match="diffuses"):
        ss.stationary_point(valley, ss.sgd(), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="schedule"):
        ss.stationary_point(PROBLEM, ss.AGM(lambda g: None, lambda v: None, 1.0, schedule=np.exp), START)
    with pytest.raises(ValueError, match="save_at"):
        ss.simulate(PROBLEM, ss.sgd(), START, np.inf, save_at=[0.0, 1.0])

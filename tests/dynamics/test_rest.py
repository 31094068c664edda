"""Flows come to rest at default settings, at regular ends and singular ones, and a flow without a rest says so."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import slowsde as ss

HYPERBOLA = ss.LeastSquares(lambda p, x: p["u"] * p["v"] * x, np.ones(1), np.ones(1), ss.LabelNoise(1.0))
OFF_REST = {"u": np.array(2.0), "v": np.array(0.5)}


@pytest.mark.parametrize("optimizer", [ss.sgd(), ss.adam(c=2.0, eps=1e-2)], ids=["SGD", "Adam"])
def test_the_smallest_problem_of_the_field_comes_to_rest(optimizer: ss.AGM) -> None:
    """uv = 1: u = v = 1. Its coordinates are coupled: steps that do not know the bend of Γ swing about the end."""
    end = ss.stationary_point(HYPERBOLA, optimizer, OFF_REST)
    assert end.stillness < 1e-9
    assert end.trajectory.stats["num_steps"] < 200
    assert end.trajectory.stats["coupled"]
    np.testing.assert_allclose([end.params["u"], end.params["v"]], 1, atol=2e-9)
    assert abs(float(ss.coefficients(HYPERBOLA, optimizer, end.params, end.v).drift["u"])) < 1e-8


def test_sgd_on_a_diagonal_network_ends_at_basis_pursuit() -> None:
    """A sparse end, with the rank of H fallen below the number of equations, against linear programming."""
    rng = np.random.default_rng(1)
    inputs, truth = rng.normal(size=(12, 30)), np.zeros(30)
    truth[:3] = rng.normal(size=3)
    scale = np.mean(inputs**2, axis=0)  # tr H = 4 Σ_j (mean of z_j²)|w_j|
    found = linprog(np.r_[scale, scale], A_eq=np.c_[inputs, -inputs], b_eq=inputs @ truth, method="highs").x
    problem = ss.LeastSquares(
        lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, inputs @ truth, noise=ss.LabelNoise(1.0)
    )
    end = ss.stationary_point(problem, ss.sgd(), {"u": np.full(30, 0.3), "v": np.full(30, 0.3)})
    assert end.stillness < 1e-9
    assert end.trajectory.stats["num_steps"] < 1000
    assert not end.trajectory.stats["coupled"]
    np.testing.assert_allclose(end.params["u"] ** 2 - end.params["v"] ** 2, found[:30] - found[30:], atol=1e-7)


@pytest.fixture(scope="module")
def factorization() -> tuple[ss.LeastSquares, Any]:
    """W1 W0 = a matrix of rank one, 8×8, from 24 Gaussian measurements."""
    rng = np.random.default_rng(0)
    matrix = np.outer(rng.normal(size=8), rng.normal(size=8))
    matrix *= np.sqrt(8) / np.linalg.norm(matrix)
    inputs = rng.normal(size=(24, 8, 8))
    targets = np.einsum("nij,ij->n", inputs, matrix)
    problem = ss.LeastSquares(lambda p, a: jnp.sum(a * (p["W1"] @ p["W0"])), inputs, targets, ss.LabelNoise(1.0))
    return problem, {name: rng.normal(size=(8, 8)) / np.sqrt(8) for name in ("W0", "W1")}


def test_a_low_rank_end_of_coupled_parameters_is_passed_in_few_steps(factorization: Any) -> None:
    """Where S reaches 1/ε = 10⁴ a diagonal damping takes thousands of steps, and lets tr Diag(H)^½ rise."""
    problem, start = factorization
    run = ss.simulate(
        problem, ss.adam(c=1.0, eps=1e-4), start, 20.0, rtol=1e-3, save_at=41, metrics=("trace_sqrt_diag_hessian",)
    )
    sharpness = run.metrics["trace_sqrt_diag_hessian"][0]
    assert run.stats["num_steps"] < 150
    assert run.stats["ranks"][0, -1] == 15  # 8 + 8 − 1, the dimension of the matrices of rank one
    assert np.all(np.diff(sharpness) < 1e-2)
    assert abs(sharpness[-1] - 27.18) < 0.01


def test_a_flow_that_leaves_says_so_and_along_which_parameters() -> None:
    """f = (ab − 1)/a³: on Γ, ab = 1, tr H = a⁻⁴ + a⁻⁸ falls for ever as a grows."""
    problem = ss.LeastSquares(
        lambda p, x: (p["a"] * p["b"] - 1) / p["a"] ** 3 * x, np.ones(1), np.zeros(1), noise=ss.LabelNoise(1.0)
    )
    with pytest.raises(ss.RunError, match="ESCAPES") as caught:
        ss.stationary_point(problem, ss.sgd(), {"a": np.array(1.0), "b": np.array(1.0)})
    stats = caught.value.trajectory.stats
    assert stats["leaving"]["['a']"] > 0.9
    assert stats["num_steps"] < 2000


@pytest.mark.parametrize(("seed", "decay"), [(0, 0.0), (2, 0.1)])
def test_recovery_comes_to_rest_where_equations_lose_their_curvature_together(seed: int, decay: float) -> None:
    """14 equations at 3 nonzeros, whose least multipliers are no certificate (|zᵀμ| up to 1.7 of the slope allowed):
    the multipliers that hold are those of coordinates that vanish, as δx², down to the last digit of a kernel."""
    rng = np.random.default_rng(seed)
    inputs, truth = rng.normal(size=(14, 30)), np.zeros(30)
    truth[:3] = rng.normal(size=3)
    problem = ss.LeastSquares(
        lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, inputs @ truth, noise=ss.LabelNoise(1.0)
    )
    optimizer = ss.sgd(weight_decay=decay)
    end = ss.stationary_point(problem, optimizer, {"u": np.full(30, 0.3), "v": np.full(30, 0.3)})
    assert end.stillness < 1e-9
    assert end.trajectory.stats["num_steps"] < 200
    np.testing.assert_allclose(end.params["u"] ** 2 - end.params["v"] ** 2, truth, atol=1e-12)
    # What is reported is what `coefficients` tells.
    drift = ss.coefficients(problem, optimizer, end.params).drift
    assert max(float(np.max(np.abs(leaf))) for leaf in drift.values()) < 1e-9


def test_a_unit_that_wanders_outwards_without_end_is_no_rest() -> None:
    """A tanh unit that saturates: its weights matter less the farther they go, from 9 to 14 in the whole search."""
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(5, 3)), rng.normal(size=5)
    problem = ss.LeastSquares(lambda p, z: p["a"] @ jnp.tanh(p["W"] @ z), inputs, targets, ss.LabelNoise(1.0))
    start = {"a": rng.normal(size=6), "W": rng.normal(size=(6, 3))}
    end = ss.simulate(problem, ss.adam(c=1.0, eps=1e-3), start, np.inf, save_at=2, throw=False)
    assert list(end.result) == [ss.Result.ESCAPES]
    assert end.stats["leaving"]["['W']"] > 0.5

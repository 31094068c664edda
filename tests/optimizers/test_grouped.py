"""Groups of parameters with settings of their own."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf
import slowsde as ss

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(4, 3))
PROBLEM = ss.LeastSquares(
    lambda p, z: p["out"] @ jnp.tanh(p["in"]["W"] @ z + p["in"]["b"]), INPUTS, RNG.normal(size=4), ss.LabelNoise(0.5)
)
START = {"in": {"W": RNG.normal(size=(3, 3)), "b": 0.1 * RNG.normal(size=3)}, "out": RNG.normal(size=3)}
LABELS = {"in": {"W": "matrix", "b": "rest"}, "out": "rest"}


@pytest.fixture(scope="module")
def point() -> Any:
    return ss.to_manifold(PROBLEM, START)


def test_groups_that_agree_are_one_optimizer(point: Any) -> None:
    adam = ss.adam(c=3.0, eps=0.01, weight_decay=0.2)
    whole = ss.coefficients(PROBLEM, adam, point)
    parts = ss.coefficients(PROBLEM, ss.grouped({"matrix": adam, "rest": adam}, LABELS), point)
    for a, b in zip(jax.tree.leaves(whole.drift), jax.tree.leaves(parts.drift), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def settings() -> ss.AGM:
    optimizers = {
        "matrix": ss.shampoo(c=3.0, eps=0.02, weight_decay=0.3),
        "rest": ss.adam(c=3.0, eps=0.05, weight_decay={"in": {"W": 9.0, "b": 0.0}, "out": 0.1}),
    }
    return ss.grouped(optimizers, LABELS, learning_rates={"matrix": 0.5})


@pytest.mark.parametrize("rate", [0.5, pytest.param(1.0, marks=pytest.mark.xfail(strict=True, reason="a mutant"))])
def test_coefficients_are_those_of_the_assembled_matrix(point: Any, rate: float) -> None:
    """S written out as a matrix and ω as a vector, from the definitions of Shampoo and Adam alone."""
    optimizer = settings()
    v = optimizer.V(jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), point))
    found = ss.coefficients(PROBLEM, optimizer, point, v)

    def root(factor: Any) -> np.ndarray:
        values, vectors = np.linalg.eigh(np.asarray(factor))
        return vectors @ np.diag((values + 0.02) ** -0.25) @ vectors.T

    left, right = v["matrix"]["in"]["W"]
    S = np.zeros((15, 15))
    S[:9, :9] = rate * np.kron(root(left), root(right))  # row-major ravel of the matrix, L on its rows
    S[9:, 9:] = np.diag(1 / (np.sqrt(np.concatenate([v["rest"]["in"]["b"], v["rest"]["out"]])) + 0.05))
    decay = {"in": {"W": np.full((3, 3), rate * 0.3), "b": np.zeros(3)}, "out": np.full(3, 0.1)}
    dense = ss.AGM(V=lambda g: None, S=lambda v: mf.Dense(S), c=3.0, weight_decay=decay)
    expected = ss.coefficients(PROBLEM, dense, point)
    for a, b in zip(jax.tree.leaves(found.drift), jax.tree.leaves(expected.drift), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_discrete_runs_approach_the_slow_flow(point: Any) -> None:
    """Gap of tr H after t = 0.5, 128 paths: below 4 s.e. + a share of what the groups change, and falling with η."""
    run: dict[str, Any] = {"save_at": [0.5], "metrics": ("trace_hessian",)}
    slow = ss.simulate(PROBLEM, settings(), point, 0.5, **run).metrics["trace_hessian"][0, 0]
    other = ss.simulate(PROBLEM, ss.adam(c=3.0, eps=0.05), point, 0.5, **run).metrics["trace_hessian"][0, 0]
    gaps, errors = [], []
    for lr in (0.1, 0.025):
        fast = ss.run_discrete(PROBLEM, settings(), point, 0.5, lr=lr, paths=128, **run).metrics["trace_hessian"][:, 0]
        gaps.append(abs(fast.mean() - slow))
        errors.append(fast.std(ddof=1) / np.sqrt(128))
    print(f"slow {slow:.4f}, Adam alone {other:.4f}, gaps {gaps}, s.e. {errors}")
    assert gaps[1] < 0.1 * abs(other - slow) + 4 * errors[1]
    assert gaps[1] < 0.5 * gaps[0] + 4 * errors[1]


def test_a_prefix_serves_a_module_and_the_stiff_solver_works_on_groups() -> None:
    class Net(eqx.Module):
        u: Any
        v: Any
        act: Any

    net = Net(np.full(20, 0.4), np.full(20, 0.3), jnp.square)
    rng = np.random.default_rng(3)
    inputs = rng.choice([-1.0, 1.0], size=(10, 20))
    problem = ss.LeastSquares(lambda n, z: z @ (n.act(n.u) - n.act(n.v)), inputs, inputs[:, 0], ss.LabelNoise(0.5))
    adams = {"u": ss.adam(c=10.0, eps=1e-6), "v": ss.adam(c=10.0, eps=1e-5)}
    labels = eqx.tree_at(lambda n: (n.u, n.v), net, ("u", "v"))
    labels = eqx.tree_at(lambda n: n.act, labels, None)
    found = ss.simulate(problem, ss.grouped(adams, labels), net, 1.0, save_at=[1.0], rtol=1e-4)
    assert "implicit" in found.stats["solver"]
    weights = found.params.u[0, -1] ** 2 - found.params.v[0, -1] ** 2
    np.testing.assert_allclose(weights, np.eye(20)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("optimizers", "labels", "rates", "message"),
    [
        ({}, {}, {}, "names no group"),
        ({"a": 1}, {"w": "a"}, {}, "must be an AGM"),
        ({"a": ss.adam(c=1.0)}, {"w": "b"}, {}, "every label needs"),
        ({"a": ss.adam(c=1.0), "b": ss.adam(c=1.0)}, {"w": "a"}, {}, "every optimizer a label"),
        ({"a": ss.adam(c=1.0), "b": ss.adam(c=2.0)}, {"w": "a", "x": "b"}, {}, "c=2.0"),
        ({"a": ss.adam(c=1.0), "b": ss.sgd()}, {"w": "a", "x": "b"}, {}, "b1"),
        ({"a": ss.adam(c=1.0)}, {"w": "a"}, {"a": -1.0}, "must be a positive number"),
        ({"a": ss.adam(c=1.0)}, {"w": "a"}, {"z": 1.0}, "must be a positive number"),
    ],
)
def test_bad_groups_are_refused(optimizers: Any, labels: Any, rates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.grouped(optimizers, labels, learning_rates=rates)


def test_labels_that_do_not_fit_are_named(point: Any) -> None:
    adam = ss.adam(c=1.0)
    with pytest.raises(ValueError, match="do not fit params"):
        ss.coefficients(PROBLEM, ss.grouped({"a": adam, "b": adam}, {"in": "a", "head": "b"}), point)


def test_groups_of_which_none_has_a_state_are_sgd() -> None:
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 6))
    problem = ss.LeastSquares(
        lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, inputs[:, 0], ss.LabelNoise(std=1.0)
    )
    start = {"u": np.full(6, 0.7), "v": np.full(6, 0.5)}
    groups = ss.grouped({"one": ss.sgd(), "other": ss.sgd()}, {"u": "one", "v": "other"})
    found, plain = (ss.simulate(problem, each, start, 0.2, save_at=3) for each in (groups, ss.sgd()))
    np.testing.assert_allclose(found.params["u"], plain.params["u"], rtol=1e-12)
    assert found.v is None

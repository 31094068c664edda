"""Adam-mini and Adalayer: their slow SDE against p×p matrices from the published formula, and what they minimize."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import (
    GUESS,
    SMALL,
    START,
    Derivatives,
    at_a_minimizer,
    flat,
    gaps,
    library_coefficients,
    noise_factors,
    relative,
    slow_coefficients,
)

import slowsde as ss
from manifolds.support.coordinates import Coordinates

EPS = 1e-2
ROWS = {"b": [0, 0, 0], "q": [[1, 1], [2, 2]], "s": 3, "t": [[[4, 4], [4, 4]], [[5, 5], [5, 5]]]}
ROWS["w"] = [[6, 6], [7, 7], [8, 8]]
LEAVES = {"b": [0, 0, 0], "q": [[1, 1], [1, 1]], "s": 2, "t": np.full((2, 2, 2), 3), "w": np.full((3, 2), 4)}
CROSSING = {
    "b": [0, 1, 2],
    "q": [[0, 1], [1, 0]],
    "s": 1,
    "t": np.arange(8).reshape(2, 2, 2) % 3,
    "w": np.full((3, 2), 2),
}
COLUMNS_FIRST = {**ROWS, "q": [[1, 2], [1, 2]]}
PARTITIONS = {"rows": ROWS, "leaves": LEAVES, "crossing": CROSSING}
OPTIMIZERS = {
    "rows": ss.adam_mini(3.0, eps=EPS),
    "leaves": ss.adalayer(3.0, eps=EPS),
    "crossing": ss.adam_mini(3.0, jax.tree.map(np.asarray, CROSSING, is_leaf=lambda n: isinstance(n, list)), eps=EPS),
}

ROUTES_OF = {
    "rows": [("label", "kernel"), ("gaussian", "dense")],
    "leaves": [("label", "dense")],
    "crossing": [("gaussian", "kernel")],
}


def averaging(labels: Any) -> np.ndarray:
    """The (blocks, p) matrix that takes means over blocks."""
    labels = np.concatenate([np.ravel(labels[name]) for name in sorted(labels)])
    members = labels == np.arange(labels.max() + 1)[:, None]
    return members / members.sum(axis=1, keepdims=True)


def published_metric(values: np.ndarray, labels: Any) -> np.ndarray:
    return np.diag((averaging(labels) > 0).T @ (1 / (np.sqrt(values) + EPS)))


@pytest.fixture(scope="module")
def minimizer() -> tuple[Any, Derivatives]:
    return at_a_minimizer()


def as_state(name: str, values: np.ndarray) -> Any:
    """The block values in the shape of the optimizer's state."""
    if name == "crossing":
        return values
    shapes = {
        key: np.shape(leaf) if name == "rows" and np.ndim(leaf) > 1 else () for key, leaf in sorted(GUESS.items())
    }
    state, start = {}, 0
    for key, shape in shapes.items():
        count = shape[0] if shape else 1
        state[key] = values[start : start + count].reshape(shape[:1])
        start += count
    return state


@pytest.mark.parametrize("name", PARTITIONS)
def test_coefficients_are_those_of_the_published_matrix(minimizer: Any, name: str) -> None:
    params, at = minimizer
    labels = PARTITIONS[name]
    values = np.random.default_rng(3).uniform(0.05, 0.5, len(averaging(labels)))
    (found,) = library_coefficients([OPTIMIZERS[name]], params, [as_state(name, values)], ROUTES_OF[name])
    shuffled = published_metric(np.roll(values, 1), labels)
    for (noise, _), got in found.items():
        factor = noise_factors(at)[noise]
        drift, diffusion = slow_coefficients(at, factor, published_metric(values, labels))
        assert relative(flat(got.drift), drift) < 1e-6
        wrong, spread = slow_coefficients(at, factor, shuffled)
        assert relative(flat(got.drift), wrong) > 1e-2
        if noise == "gaussian":
            assert relative(got.diffusion, diffusion) < 1e-6
            assert relative(got.diffusion, spread) > 1e-2
        variance = np.sum(factor**2, axis=1)
        v_drift = 3.0 * (averaging(labels) @ variance - values)
        assert jax.tree.map(np.shape, got.v_drift) == jax.tree.map(np.shape, as_state(name, values))
        assert relative(flat(got.v_drift), v_drift) < 1e-9
        for mutant in ((averaging(labels) > 0) @ variance, averaging(COLUMNS_FIRST) @ variance):  # sums; columns
            assert len(mutant) != len(values) or relative(flat(got.v_drift), 3.0 * (mutant - values)) > 1e-2


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_covector_of_the_drift_is_the_gradient_of_block_traces(minimizer: Any, name: str) -> None:
    """⟨∇³L, S(V(H))⟩ = 2 ∇ Σ_B √(|B| tr_B H) for ε = 0, where S and V are the optimizer's own."""
    params, at = minimizer
    chart = Coordinates.of(params)
    root = np.linalg.cholesky(at.hessian + 1e-15 * np.eye(len(at.x)))
    labels, diagonal = averaging(PARTITIONS[name]), np.diag(at.hessian)
    with jax.enable_x64(True):
        optimizer = eqx.tree_at(lambda o: o.S.eps, OPTIMIZERS[name], 0.0)
        v = optimizer.state_of_factor(jnp.asarray(root), chart)
        S = np.asarray(optimizer.metric(v, chart)(jnp.ones(chart.size)))
    covector = np.einsum("ijj,j->i", at.third, S)
    members = labels > 0
    slope = np.einsum("ijj->ij", at.third) @ (members.T @ (0.5 * np.sqrt(members.sum(1) / (members @ diagonal))))
    assert relative(covector, 2 * slope) < 1e-9


def good_labels() -> Any:
    return {"a": np.array([0, 0]), "b": np.array([1, 1]), "w": np.array([[2, 2], [3, 3]])}


BAD_PARTITIONS = {
    "misses a leaf": ({"a": np.array([0, 0]), "w": np.array([[1, 1], [2, 2]])}, r"misses \[\"\['b'\]\"\]"),
    "doubles a leaf": ({**good_labels(), "z": np.array([0])}, r"has \[\"\['z'\]\"\] besides"),
    "misses a parameter": ({**good_labels(), "b": np.array([1])}, r"blocks\['b'\] has shape \(1,\)"),
    "doubles a parameter": ({**good_labels(), "b": np.array([1, 1, 1])}, r"blocks\['b'\] has shape \(3,\)"),
    "not integer": ({**good_labels(), "b": np.array([1.0, 1.0])}, r"blocks\['b'\] holds float64"),
    "boolean": ({**good_labels(), "b": np.array([True, True])}, r"blocks\['b'\] holds bool"),
    "negative": ({**good_labels(), "b": np.array([1, -1])}, r"blocks\['b'\] has the label -1"),
    "a gap": ({**good_labels(), "w": np.array([[2, 2], [4, 4]])}, r"no parameter is labelled \[3\]"),
    "empty": ({}, "no labels"),
}


@pytest.mark.parametrize("case", BAD_PARTITIONS)
def test_bad_partitions_are_refused(case: str) -> None:
    blocks, message = BAD_PARTITIONS[case]
    with pytest.raises(ValueError, match=message):
        ss.simulate(SMALL, ss.adam_mini(1.0, blocks), START, 1.0)


def test_a_negative_eps_is_refused() -> None:
    for make in (ss.adam_mini, ss.adalayer):
        with pytest.raises(ValueError, match=r"eps=-1\.0 must not be negative"):
            make(1.0, eps=-1.0)


def test_a_params_like_diagonal_may_lack_trailing_axes() -> None:
    chart = Coordinates.of({"a": np.zeros(2), "w": np.zeros((2, 3)), "z": np.zeros((0, 3))})
    tree = {"a": np.array(5.0), "w": np.array([1.0, 2.0]), "z": np.zeros(0)}
    np.testing.assert_array_equal(chart.expand(tree), [5, 5, 1, 1, 1, 2, 2, 2])
    for other in (None, np.ones(8), {**tree, "w": np.ones(3)}, {"a": tree["a"]}):
        assert chart.expand(other) is other


CASES = {"adam_mini": ss.adam_mini(1.0, eps=EPS), "adalayer": ss.adalayer(1.0, eps=EPS)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_discrete_runs_approach_the_slow_flow(name: str) -> None:
    """64 paths, iterates as they come; tr H falls from 1.82 to 1.05, gaps 0.22 ± 0.03 and −0.007 ± 0.010."""
    gap, error, _ = gaps(CASES[name], (0.1, 0.025), paths=64, project=False)
    print(gap, error)
    assert gap[0] > 6 * error[0]
    assert abs(gap[1]) + 3 * error[1] < 0.5 * gap[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_gap_falls_with_the_learning_rate(name: str) -> None:
    """512 paths; and the slow flow of Adam is rejected at the smallest learning rate."""
    gap, error, slow = gaps(CASES[name], (0.1, 0.05, 0.025, 0.0125), paths=512, project=True)
    print(gap, error)
    assert np.all(np.abs(gap[1:]) < 0.75 * np.abs(gap[:-1]) + 3 * error[1:])
    assert abs(gap[-1]) < 0.2 * abs(gap[0])
    adam = ss.simulate(SMALL, ss.adam(1.0, eps=EPS), START, 1.0, save_at=3, metrics=("trace_hessian",))
    mean = slow.metrics["trace_hessian"][0, -1] + gap[-1]
    assert abs(mean - adam.metrics["trace_hessian"][0, -1]) > 6 * error[-1]

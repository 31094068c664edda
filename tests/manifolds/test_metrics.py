"""Every metric is a symmetric positive definite matrix through its action, and a new kind of metric changes nobody."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf

P = 6
RNG = np.random.default_rng(0)


def spd(p: int, rng: np.random.Generator) -> np.ndarray:
    factor = rng.normal(size=(p, p))
    return factor @ factor.T + 0.3 * np.eye(p)


LEFT, RIGHT, DENSE = spd(2, RNG), spd(3, RNG), spd(P, RNG)
DIAGONAL = RNG.uniform(0.1, 3.0, P)
COLUMNS = RNG.normal(size=(P, 4))


class Kronecker(mf.AbstractMetric):
    """S = L ⊗ R on the row-major entries of an (a, b) matrix, W ↦ L W Rᵀ: a metric written by a user."""

    left: Any
    right: Any

    def __init__(self, left: np.ndarray, right: np.ndarray):
        self.left, self.right = np.linalg.eigh(left), np.linalg.eigh(right)

    def _spectral(self, power: float, w: Any) -> Any:
        (a, left), (b, right) = self.left, self.right
        matrix = w.reshape(a.shape[0], b.shape[0], -1)
        core = jnp.einsum("ia,jb,ijr->abr", left, right, matrix) * ((a[:, None] * b) ** power)[..., None]
        return jnp.einsum("ia,jb,abr->ijr", left, right, core).reshape(w.shape)

    def __call__(self, w: Any) -> Any:
        return self._spectral(1.0, w)

    def sqrt(self, w: Any) -> Any:
        return self._spectral(0.5, w)

    def inv_sqrt(self, w: Any) -> Any:
        return self._spectral(-0.5, w)

    def largest(self) -> Any:
        return self.left[0][-1] * self.right[0][-1]


METRICS = {
    "identity": (mf.Identity(), np.eye(P)),
    "diagonal": (mf.Diagonal(DIAGONAL), np.diag(DIAGONAL)),
    "diagonal of a pytree": (
        mf.Diagonal({"a": DIAGONAL[:2].reshape(1, 2), "b": (DIAGONAL[2:3], DIAGONAL[3:])}),
        np.diag(DIAGONAL),
    ),
    "dense": (mf.Dense(DENSE), DENSE),
    "a user's Kronecker product": (Kronecker(LEFT, RIGHT), np.kron(LEFT, RIGHT)),
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=METRICS.values(), ids=METRICS.keys())
def metric_and_matrix(request):
    return request.param


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_the_action_is_that_of_the_matrix(metric_and_matrix):
    metric, matrix = metric_and_matrix
    close(metric(jnp.eye(P)), matrix)


def test_the_matrix_is_symmetric_and_positive(metric_and_matrix):
    metric, _ = metric_and_matrix
    for action in (metric, metric.sqrt, metric.inv_sqrt):
        found = np.asarray(action(jnp.eye(P)))
        close(found, found.T)
        assert np.linalg.eigvalsh(found)[0] > 0.01


def test_the_root_of_the_root_is_the_metric(metric_and_matrix):
    metric, _ = metric_and_matrix
    close(metric.sqrt(metric.sqrt(COLUMNS)), metric(COLUMNS))


def test_the_inverse_root_inverts_the_root(metric_and_matrix):
    metric, _ = metric_and_matrix
    close(metric.sqrt(metric.inv_sqrt(COLUMNS)), COLUMNS)
    close(metric.inv_sqrt(metric.sqrt(COLUMNS)), COLUMNS)


def test_a_vector_and_a_stack_of_columns_are_served_alike(metric_and_matrix):
    metric, _ = metric_and_matrix
    for action in (metric, metric.sqrt, metric.inv_sqrt):
        stacked = action(jnp.asarray(COLUMNS))
        assert stacked.shape == COLUMNS.shape
        for column, found in zip(COLUMNS.T, stacked.T, strict=True):
            one = action(jnp.asarray(column))
            assert one.shape == (P,)
            close(one, found)


def test_the_largest_eigenvalue_is_attained(metric_and_matrix):
    metric, matrix = metric_and_matrix
    close(metric.largest(), np.linalg.eigvalsh(matrix)[-1])


def test_it_passes_through_jit_and_vmap(metric_and_matrix):
    metric, matrix = metric_and_matrix
    apply = eqx.filter_jit(lambda m, w: (m(w), m.sqrt(w), m.inv_sqrt(w)))
    for jitted, plain in zip(
        apply(metric, COLUMNS), (metric(COLUMNS), metric.sqrt(COLUMNS), metric.inv_sqrt(COLUMNS)), strict=True
    ):
        close(jitted, plain)
    close(jax.vmap(metric, 1, 1)(jnp.asarray(COLUMNS)), matrix @ COLUMNS)


@pytest.mark.parametrize(
    ("make", "given"),
    [(mf.Diagonal, np.stack([DIAGONAL, 2 * DIAGONAL])), (mf.Dense, np.stack([DENSE, DENSE + np.eye(P)]))],
    ids=["diagonal", "dense"],
)
def test_a_metric_may_be_made_inside_vmap(make, given):
    found = jax.vmap(lambda s: make(s).sqrt(make(s).sqrt(jnp.asarray(COLUMNS))))(given)
    close(found, jnp.stack([make(s)(COLUMNS) for s in given]))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (None, mf.Identity),
        ("identity", mf.Identity),
        (DIAGONAL, mf.Diagonal),
        ({"a": DIAGONAL[:2], "b": DIAGONAL[2:]}, mf.Diagonal),
        (DENSE, mf.Dense),
        (Kronecker(LEFT, RIGHT), Kronecker),
    ],
)
def test_as_metric_takes_what_users_have(given, kind):
    assert type(mf.as_metric(given, P)) is kind


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("adam", "metric='adam' is not a metric"),
        (lambda w: w, "is not a metric"),
        (2.0, r"metric=2\.0 is not a metric"),
        ([1.0] * P, "is not a metric"),
        ({}, "is not a metric"),
        (np.ones(P - 1), "metric acts on 5 parameters, but params has 6"),
        (np.eye(P + 1), "metric acts on 7 parameters, but params has 6"),
        (mf.Diagonal(np.ones(2)), "metric acts on 2 parameters"),
        (np.ones((P, P - 1)), "metric has shape"),
        (np.zeros(P), "metric is not positive and finite: entry 0 is 0"),
        (-DIAGONAL, "metric is not positive and finite"),
        (np.where(np.arange(P) == 4, np.nan, 1.0), "metric is not positive and finite: entry 4 is nan"),
        (np.where(np.arange(P) == 2, np.inf, 1.0), "metric is not positive and finite: entry 2 is inf"),
        (np.diag([1.0, 1, 1, 1, 1, -1]), "metric is not symmetric positive definite"),
        (np.eye(P) + np.triu(np.ones((P, P)), 1), "metric is not symmetric positive definite"),
        (1e-9 * (np.eye(P) + 0.1 * np.triu(np.ones((P, P)), 1)), "metric is not symmetric positive definite"),
        (np.full((P, P), np.nan), "metric is not symmetric positive definite"),
        (Kronecker(LEFT, LEFT), "metric"),
    ],
)
def test_as_metric_refuses_and_names_the_argument(given, message):
    with pytest.raises(ValueError, match=message):
        mf.as_metric(given, P)


def quartic(x: Any) -> Any:
    """Minimized on an ellipsoid."""
    return 0.25 * (x @ (jnp.arange(1.0, P + 1) * x) - 1) ** 2


@pytest.mark.parametrize("pair", [METRICS["a user's Kronecker product"], METRICS["diagonal"]])
def test_projector_and_limit_map_are_those_of_the_dense_matrix(pair):
    metric, matrix = pair
    start = np.array([0.6, -0.2, 0.3, 0.1, 0.25, -0.3])
    point = mf.limit_map(quartic, start, metric)
    close(point, mf.limit_map(quartic, start, matrix), 1e-11)
    close(mf.projector(quartic, point, metric), mf.projector(quartic, point, matrix), 1e-11)
    assert np.linalg.norm(point - mf.limit_map(quartic, start)) > 1e-2  # the metric matters here

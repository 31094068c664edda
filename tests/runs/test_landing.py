"""Iterates of discrete runs return to Γ by exponential steps, and by `limit_point` where those do not arrive."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss
from manifolds.maps.limit_map import compiled_limit_point
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.slow_sde import SlowSDE, slow_sde
from slowsde.runs.landing import _from_anywhere, _phi, land

ADAM = ss.adam(c=2.0, eps=1e-2)
START = {"u": np.full(6, 0.7), "v": np.full(6, 0.5)}


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def diagonal_network() -> SlowSDE:
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 6))
    problem = ss.LeastSquares(
        lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, inputs[:, 0] - inputs[:, 1], noise=ss.LabelNoise(1.0)
    )
    return slow_sde(problem, ADAM, Coordinates.of(START))


@pytest.fixture(scope="module")
def sde() -> SlowSDE:
    with jax.enable_x64(True):
        return diagonal_network()


def near(count: int, off: float = 0.1) -> tuple[np.ndarray, Any]:
    """Points at a distance `off` or so from Γ, leaves (1, count, ...), and states that differ from point to point."""
    rng = np.random.default_rng(1)
    on = np.concatenate([0.6 + 0.2 * rng.random((1, count, 6)), 0.6 * np.ones((1, count, 6))], axis=2)
    state = {name: rng.random((1, count, 6)) for name in ("u", "v")}
    return on + off * rng.standard_normal(on.shape), state


@pytest.mark.parametrize("off", [1e-3, 0.1])
def test_exponential_steps_end_where_the_flow_does(sde: SlowSDE, off: float) -> None:
    xs, vs = near(5, off)
    found = land(sde, xs, vs)
    assert found.arrived.all()
    assert found.residual.max() < 1e-12
    for i in range(5):
        metric = sde.metric(jax.tree.map(lambda leaf, i=i: leaf[0, i], vs))
        exact = compiled_limit_point(sde.loss, jnp.asarray(xs[0, i]), metric, rtol=1e-9).point
        moved = np.linalg.norm(exact - xs[0, i])
        assert np.linalg.norm(found.point[0, i] - exact) < 2e-6
        # The Gauss–Newton return would do for what is near, and for nothing else.
        assert moved > off


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exponential steps that do not suffice, in programs that no other test has a part in."""
    jax.clear_caches()
    monkeypatch.setattr("slowsde.runs.landing.MOST", 8)
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("few_steps")
def test_what_does_not_arrive_returns_as_from_anywhere_and_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sde, (xs, vs) = diagonal_network(), near(5, 1e-3)
    alone = land(sde, xs, vs)
    far = xs.copy()
    far[0, 3] = near(5, 0.3)[0][0, 3]
    calls = []
    monkeypatch.setattr("slowsde.runs.landing._from_anywhere", lambda *a: calls.append(1) or _from_anywhere(*a))
    among = land(sde, far, vs)
    assert calls
    others = np.arange(5) != 3
    np.testing.assert_array_equal(among.point[:, others], alone.point[:, others])
    exact = compiled_limit_point(
        sde.loss, jnp.asarray(far[0, 3]), sde.metric(jax.tree.map(lambda leaf: leaf[0, 3], vs)), rtol=1e-6
    )
    assert among.arrived.all()
    np.testing.assert_allclose(among.point[0, 3], exact.point, rtol=1e-9)


def test_coefficients_of_exponential_steps() -> None:
    z = np.array([0.0, 1e-8, 0.2499, 0.2501, 3.0, 700.0])
    # ∫₀¹ e^{−z(1−s)} s^{k−1}/(k−1)! ds by Gauss' rule, in pieces that resolve e^{−z(1−s)}.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = 1 - np.concatenate([[1.0], np.geomspace(1, 1e-6, 60)[1:], [0.0]])
    s = (edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1) / 2).ravel()
    w = (np.diff(edges)[:, None] * weights / 2).ravel()
    for k, factorial in ((1, 1), (2, 1), (3, 2)):
        exact = np.array([w @ (np.exp(-a * (1 - s)) * s ** (k - 1)) / factorial for a in z])
        np.testing.assert_allclose(_phi(jnp.asarray(z))[:, k - 1], exact, rtol=1e-12)
        np.testing.assert_allclose(_phi(jnp.asarray(2 * z))[:, k + 2], exact, rtol=1e-12)

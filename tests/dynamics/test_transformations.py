"""Coefficients under jit and vmap, and runs in double and single precision, whatever the 64-bit flag says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss
from manifolds.support import precision
from manifolds.support.coordinates import Coordinates, ravel

RNG = np.random.default_rng(5)
OPTIMIZER = ss.adam(c=1.0, eps=0.1)
PARAMS = {"a": RNG.normal(size=(5, 2)), "b": np.zeros(5), "c": RNG.normal(size=5) / 2, "d": np.zeros(())}


def net(w: Any, z: Any) -> Any:
    return w["c"] @ jnp.tanh(w["a"] @ z + w["b"]) + w["d"]


PROBLEM = ss.LeastSquares(net, RNG.normal(size=(4, 2)), RNG.normal(size=4) / 2, ss.LabelNoise(0.5, batch_size=1))


def run(**options: Any) -> ss.Trajectory:
    return ss.simulate(PROBLEM, OPTIMIZER, PARAMS, 1.0, save_at=3, metrics="trace_hessian", **{"rtol": 1e-8} | options)


# --- coefficients under transformations ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_manifold() -> Any:
    return [ss.to_manifold(PROBLEM, jax.tree.map(lambda leaf, s=s: s * leaf, PARAMS)) for s in (1.0, 1.2)]


def test_coefficients_under_jit_equal_the_plain_call(on_manifold):
    point = on_manifold[0]
    plain = ss.coefficients(PROBLEM, OPTIMIZER, point)
    with jax.enable_x64(True):
        jitted = jax.jit(lambda params: ss.coefficients(PROBLEM, OPTIMIZER, params))(point)
    assert set(plain.drift) == set("abcd")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), jitted, plain)


def test_coefficients_under_vmap_equal_the_plain_calls(on_manifold):
    points = on_manifold
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    vs = jax.tree.map(lambda leaf: 0.1 + leaf**2, stacked)
    plain = [
        ss.coefficients(PROBLEM, OPTIMIZER, point, jax.tree.map(lambda leaf, i=i: leaf[i], vs))
        for i, point in enumerate(points)
    ]
    with jax.enable_x64(True):
        mapped = jax.vmap(lambda params, v: ss.coefficients(PROBLEM, OPTIMIZER, params, v))(stacked, vs)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), mapped, expected)
    assert np.linalg.norm(ravel(plain[0].drift) - ravel(plain[1].drift)) > 1e-3


def test_coefficients_of_a_known_point_follow_a_traced_state(on_manifold):
    """Only v is an argument of the compiled function: within it what is known is traced as well."""
    point = on_manifold[0]
    v = jax.tree.map(lambda leaf: 0.1 + leaf**2, point)
    plain = ss.coefficients(PROBLEM, OPTIMIZER, point, v)
    for double, tolerance in ((True, 1e-11), (False, 1e-4)):
        with jax.enable_x64(double):
            jitted = jax.jit(lambda state: ss.coefficients(PROBLEM, OPTIMIZER, point, state))(v)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), jitted, plain)  # noqa: B023
        with pytest.raises(ValueError, match="simulate"):
            jax.jit(lambda _: run())(1.0)


def test_coefficients_have_the_shapes_of_params_and_state(on_manifold):
    point = on_manifold[0]
    found = ss.coefficients(PROBLEM, OPTIMIZER, point)
    size = Coordinates.of(point).size
    assert jax.tree.map(np.shape, found.drift) == jax.tree.map(np.shape, point)
    assert jax.tree.map(np.shape, found.v_drift) == jax.tree.map(np.shape, point)
    assert found.diffusion.shape == ((size, 4) if PROBLEM.noise.diffuses(PROBLEM) else (size, 0))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(found))


# --- precision -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def double_run() -> ss.Trajectory:
    return run()


def test_the_64_bit_flag_at_call_time_changes_nothing(double_run):
    for flag in (False, True):
        with jax.enable_x64(flag):
            found = run()
            assert jax.config.jax_enable_x64 == flag
        np.testing.assert_array_equal(found.params["a"], double_run.params["a"])
        np.testing.assert_array_equal(found.metrics["trace_hessian"], double_run.metrics["trace_hessian"])
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((found.params, found.v, found.metrics)))


def test_single_precision_arrays_are_computed_with_in_double():
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
    back = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), single)
    first, second = (ss.coefficients(PROBLEM, OPTIMIZER, ss.to_manifold(PROBLEM, p)) for p in (single, back))
    np.testing.assert_allclose(ravel(first.drift), ravel(second.drift), rtol=0, atol=1e-12)


def test_a_run_in_single_precision_is_accurate_to_three_digits(double_run, monkeypatch):
    monkeypatch.setattr(precision, "_warned", set())
    with pytest.warns(UserWarning, match="Computing in float32"):
        found = run(rtol=1e-5, dtype="float32")
    assert found.params["a"].dtype == np.float32
    exact = double_run.metrics["trace_hessian"]
    assert exact[0, -1] < 0.97 * exact[0, 0]
    error = np.max(np.abs(found.metrics["trace_hessian"] / exact - 1))
    moved = np.max(np.abs(found.params["a"] - double_run.params["a"]))
    print("float32: trace of the Hessian", error, "weights", moved)
    assert 1e-9 < error < 1e-3
    assert moved < 1e-3

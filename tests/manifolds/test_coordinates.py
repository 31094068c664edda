"""The flat chart of a parameter pytree: a bijection in the order of ravel_pytree, or a refusal that says why."""

import equinox as eqx
import flax.linen
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from manifolds.support.coordinates import Coordinates, ravel


class Net(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, z):
        return flax.linen.Dense(1)(jnp.tanh(flax.linen.Dense(3)(z)))


def mlp(seed: int = 0) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=jr.key(seed))


TREES = {
    "dict": lambda: {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([-1.0, -2.0]), "scale": jnp.asarray(7.0)},
    "nested tuples": lambda: (jnp.arange(2.0), (jnp.ones((1, 2)), [jnp.zeros(1), ()]), None),
    "bare array": lambda: jnp.arange(4.0),
    "equinox": mlp,
    "flax": lambda: Net().init(jr.key(0), jnp.ones(2)),
    "equinox in a tuple": lambda: (mlp(0), {"offset": jnp.ones(2)}, mlp(1)),
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=TREES.values(), ids=TREES.keys())
def tree(request):
    return request.param()


def same(a, b) -> bool:
    """Equal leaves of equal shapes, activation functions and all, in equal containers."""
    return bool(eqx.tree_equal(a, b))


def test_unravel_inverts_ravel(tree):
    chart, x = Coordinates.of(tree), ravel(tree)
    assert x.shape == (chart.size,)
    assert same(chart.unravel(x), tree)


def test_ravel_inverts_unravel(tree):
    chart = Coordinates.of(tree)
    x = jr.normal(jr.key(1), (chart.size,))
    np.testing.assert_array_equal(ravel(chart.unravel(x)), x)
    np.testing.assert_array_equal(ravel(chart.unravel_arrays(x)), x)


def test_the_order_is_that_of_ravel_pytree(tree):
    expected, _ = jax.flatten_util.ravel_pytree(eqx.filter(tree, eqx.is_array))
    np.testing.assert_array_equal(ravel(tree), expected)


def test_unravel_keeps_leading_axes(tree):
    chart = Coordinates.of(tree)
    xs = jr.normal(jr.key(2), (2, 5, chart.size))
    stacked = eqx.filter(chart.unravel(xs), eqx.is_array)
    one = eqx.filter(chart.unravel(xs[1, 3]), eqx.is_array)
    assert all(leaf.shape[:2] == (2, 5) for leaf in jax.tree.leaves(stacked))
    assert same(jax.tree.map(lambda leaf: leaf[1, 3], stacked), one)


def test_what_is_no_array_is_carried_along():
    net = mlp()
    chart = Coordinates.of(net)
    other = chart.unravel(2 * ravel(net))
    assert other.activation is net.activation
    np.testing.assert_allclose(other(jnp.ones(2)).shape, (1,))
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(chart.unravel_arrays(ravel(net))))


def test_charts_of_equal_structure_are_equal_and_hash_alike():
    # Compiled functions carry the chart as static data: a new chart must not mean a new compilation.
    assert Coordinates.of(mlp(0)) == Coordinates.of(mlp(1))
    assert hash(Coordinates.of(mlp(0))) == hash(Coordinates.of(mlp(1)))
    assert Coordinates.of({"a": jnp.ones(2)}) != Coordinates.of({"a": jnp.ones(3)})
    assert Coordinates.of({"a": jnp.ones(2)}) != Coordinates.of({"b": jnp.ones(2)})


def test_ravel_and_unravel_pass_through_jit_and_grad(tree):
    chart = Coordinates.of(tree)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.arange(chart.size) * ravel(chart.unravel(x)) ** 2) / 2))
    np.testing.assert_allclose(gradient(jnp.ones(chart.size)), jnp.arange(chart.size))


def test_numpy_leaves_stay_numpy_in_double_precision_with_the_64_bit_flag_off():
    with jax.enable_x64(False):
        x = ravel({"a": np.array([1.0, 1e-12]), "b": np.ones((1, 1))})
        assert isinstance(x, np.ndarray)
        assert x.dtype == np.float64


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": np.arange(3)}, r"params\['w'\] has dtype int64"),
        ({"w": np.ones(3), "n": np.arange(2)}, r"params\['n'\] has dtype int64"),
        (np.ones(2, complex), "params has dtype complex128"),
        (np.ones(2, bool), "params has dtype bool"),
        (
            {"a": np.ones(2, np.float32), "b": np.ones(2)},
            r"params mixes precisions .*\['a'\]: float32.*\['b'\]: float64",
        ),
        ({"w": np.ones(2), "s": 1.5}, r"params\['s'\] is the Python number 1.5"),
        ([np.ones(2), 3], r"params\[1\] is the Python number 3"),
        (2.0, "params is the Python number 2.0"),
        ({}, "params has no array leaves"),
        (None, "params has no array leaves"),
        ({"f": jnp.tanh}, "params has no array leaves"),
        ("start", "params has no array leaves"),
    ],
)
def test_what_cannot_be_parameters_is_refused_by_name(params, message):
    with pytest.raises(ValueError, match=message):
        Coordinates.of(params)

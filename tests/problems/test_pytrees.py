"""Parameters of every kind give the same numbers: a symbolic loss, modules, dicts."""

from typing import Any

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import sympy

import slowsde as ss

RNG = np.random.default_rng(5)
INPUTS, TARGETS = RNG.normal(size=(4, 2)), RNG.normal(size=4)
NOISE = ss.LabelNoise(0.5, batch_size=1)
OPTIMIZER = ss.adam(c=1.0, eps=0.1)
METRICS = ("trace_hessian", "loss")


class Net(flax.linen.Module):
    """The same function as `eqx.nn.MLP(2, "scalar", 5, 1, jnp.tanh)`."""

    @flax.linen.compact
    def __call__(self, z: Any) -> Any:
        hidden = jnp.tanh(flax.linen.Dense(5)(z))
        return flax.linen.Dense(1)(hidden)[0]


def as_double(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, float) if eqx.is_array(leaf) else leaf, tree)


MLP = as_double(eqx.nn.MLP(2, "scalar", 5, 1, activation=jnp.tanh, key=jr.key(3)))
FIRST, SECOND = MLP.layers
FLAX = {
    "params": {
        "Dense_0": {"kernel": FIRST.weight.T, "bias": FIRST.bias},
        "Dense_1": {"kernel": SECOND.weight.reshape(5, 1), "bias": SECOND.bias.reshape(1)},
    }
}
PLAIN = {"a": FIRST.weight, "b": FIRST.bias, "c": SECOND.weight.reshape(5), "d": SECOND.bias.reshape(())}


def plain_net(w: Any, z: Any) -> Any:
    return w["c"] @ jnp.tanh(w["a"] @ z + w["b"]) + w["d"]


MODELS = {
    "equinox": (lambda model, z: model(z), MLP),
    "flax": (Net().apply, FLAX),
    "dict": (plain_net, PLAIN),
}


def least_squares(kind: str) -> tuple[ss.LeastSquares, Any]:
    predict, params = MODELS[kind]
    return ss.LeastSquares(predict, INPUTS, TARGETS, noise=NOISE), params


def run(kind: str, **options: Any) -> ss.Trajectory:
    problem, params = least_squares(kind)
    return ss.simulate(problem, OPTIMIZER, params, 1.0, save_at=3, metrics=METRICS, rtol=1e-9, **options)


@pytest.fixture(scope="module")
def dict_run() -> ss.Trajectory:
    return run("dict")


# --- equal functions, different containers ---------------------------------------------------------------------


def test_equinox_and_dict_give_the_same_numbers(dict_run):
    found = run("equinox")
    np.testing.assert_allclose(found.metrics["trace_hessian"], dict_run.metrics["trace_hessian"], rtol=1e-6)
    np.testing.assert_allclose(found.params.layers[0].weight, dict_run.params["a"], atol=1e-6)
    np.testing.assert_allclose(found.v.layers[1].weight.reshape(1, 3, 5), dict_run.v["c"], atol=1e-6)
    assert found.params.activation is MLP.activation
    assert isinstance(found.final_params, eqx.nn.MLP)
    assert found.final_params.layers[0].weight.shape == (1, 5, 2)


@pytest.mark.slow
def test_flax_and_dict_give_the_same_numbers(dict_run):
    found = run("flax")
    np.testing.assert_allclose(found.metrics["trace_hessian"], dict_run.metrics["trace_hessian"], rtol=1e-6)
    kernel = found.params["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.swapaxes(kernel, 2, 3), dict_run.params["a"], atol=1e-6)


def test_the_run_moves_and_stays_on_the_manifold(dict_run):
    traces = dict_run.metrics["trace_hessian"][0]
    assert traces[-1] < 0.97 * traces[0]
    assert np.max(dict_run.metrics["loss"]) < 1e-24


def test_the_final_params_are_a_model_that_fits(dict_run):
    final = jax.tree.map(lambda leaf: leaf[0], dict_run.final_params)
    predictions = [plain_net(final, z) for z in INPUTS]
    np.testing.assert_allclose(predictions, TARGETS, atol=1e-5)  # evaluated by the caller, in single precision


def test_sympy_and_python_give_the_same_paths():
    x, y = sympy.symbols("x y")
    noise = ss.GaussianNoise(np.diag([0.5, 0.2]))
    options = {"paths": 3, "save_at": 3, "dt": 0.05, "key": jr.key(1)}
    symbolic = ss.simulate(
        ss.from_sympy(sympy.exp(y**2 / 2) * x**2 / 2, [x, y], noise=noise),
        OPTIMIZER,
        np.array([0.1, 1.0]),
        0.5,
        **options,
    )
    plain = ss.simulate(
        ss.Problem(lambda w: 0.5 * jnp.exp(w["y"] ** 2 / 2) * w["x"] ** 2, noise=noise),
        OPTIMIZER,
        {"x": np.array(0.1), "y": np.array(1.0)},
        0.5,
        **options,
    )
    np.testing.assert_allclose(symbolic.params[..., 1], plain.params["y"], rtol=1e-12)
    assert np.std(plain.params["y"][:, -1]) > 0.01


def test_a_discrete_run_carries_the_same_containers():
    problem, params = least_squares("equinox")
    found = ss.run_discrete(problem, OPTIMIZER, params, 0.02, lr=0.05, paths=2, save_at=2, metrics=METRICS)
    assert isinstance(found.params, eqx.nn.MLP)
    assert found.params.layers[0].weight.shape == (2, 2, 5, 2)
    assert np.max(found.metrics["loss"]) < 1e-20


def test_constants_of_a_module_stay_out_of_its_parameters_as_the_error_says():
    """The rate of a Dropout is a Python number, and what is said about it works."""

    def predict(model: Any, z: Any) -> Any:
        net, drop = model
        return drop(net(z))

    model = (MLP, eqx.nn.Dropout(0.1, inference=True))
    with pytest.raises(ValueError, match=r"eqx\.partition\(model, eqx\.is_inexact_array\)"):
        ss.to_manifold(ss.LeastSquares(predict, INPUTS, TARGETS, NOISE), model)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    problem = ss.LeastSquares(lambda p, z: predict(eqx.combine(p, rest), z), INPUTS, TARGETS, NOISE)
    plain = ss.to_manifold(*least_squares("dict"))
    np.testing.assert_allclose(ss.to_manifold(problem, params)[0].layers[0].weight, plain["a"], atol=1e-6)

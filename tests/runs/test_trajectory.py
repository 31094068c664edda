"""What a run returns: shapes, files without pickles, xarray, and errors that carry it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import slowsde as ss

PATHS, TIMES = 2, 3


@pytest.fixture(scope="module")
def dict_run() -> ss.Trajectory:
    def loss(w: Any) -> Any:
        return 0.5 * (1 + w["y"][0, 0] ** 2) * jnp.sum(w["x"] ** 2)

    start = {"x": np.array([0.1, -0.2, 0.0]), "y": np.array([[1.0]])}
    problem = ss.Problem(loss, noise=ss.GaussianNoise(0.2))
    return ss.simulate(
        problem,
        ss.adam(c=1.0, eps=0.1),
        start,
        0.3,
        paths=PATHS,
        save_at=TIMES,
        dt=0.05,
        metrics={"mine": lambda w: w["y"][0, 0], "loss": lambda w: loss(w)},
    )


MLP = jax.tree.map(
    lambda leaf: np.asarray(leaf, float) if eqx.is_array(leaf) else leaf,
    eqx.nn.MLP(1, "scalar", 3, 1, activation=jnp.tanh, key=jr.key(0)),
)


@pytest.fixture(scope="module")
def module_run() -> ss.Trajectory:
    problem = ss.LeastSquares(lambda m, z: m(z), np.array([[0.3], [-1.0]]), np.array([0.2, 0.1]), ss.LabelNoise(0.5))
    return ss.simulate(problem, ss.sgd(), MLP, 0.1, paths=PATHS, save_at=TIMES, metrics="trace_hessian")


def equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_shape(dict_run):
    assert dict_run.ts.shape == (TIMES,)
    np.testing.assert_allclose(dict_run.ts, [0.0, 0.15, 0.3])
    assert jax.tree.map(np.shape, dict_run.params) == {"x": (PATHS, TIMES, 3), "y": (PATHS, TIMES, 1, 1)}
    assert jax.tree.map(np.shape, dict_run.v) == {"x": (PATHS, TIMES, 3), "y": (PATHS, TIMES, 1, 1)}
    assert jax.tree.map(np.shape, dict_run.final_params) == {"x": (PATHS, 3), "y": (PATHS, 1, 1)}
    assert {name: values.shape for name, values in dict_run.metrics.items()} == {
        "mine": (PATHS, TIMES),
        "loss": (PATHS, TIMES),
    }
    assert list(dict_run.metrics) == ["mine", "loss"]
    assert dict_run.stats["residual"].shape == (PATHS, TIMES)
    assert dict_run.result.shape == (PATHS,)
    assert dict_run.paths == PATHS
    assert dict_run.stats["rank"] == 3
    assert dict_run.stats["spectrum"].shape == (3,)
    assert dict_run.stats["seconds"] > 0


def test_metrics_are_those_of_the_saved_params(dict_run):
    np.testing.assert_allclose(dict_run.metrics["mine"], dict_run.params["y"][..., 0, 0], rtol=1e-12)
    assert np.max(dict_run.metrics["loss"]) < 1e-24


def test_everything_is_numpy(dict_run):
    parts = (dict_run.ts, dict_run.params, dict_run.v, dict_run.metrics, dict_run.result)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(parts))


def test_the_start_and_the_saved_times_may_be_given(dict_run):
    found = ss.simulate(
        ss.Problem(lambda x: 0.5 * x[0] ** 2 + 0 * x[1], noise=ss.GaussianNoise(0.2)),
        ss.sgd(),
        np.array([0.3, 1.0]),
        1.0,
        t0=0.5,
        save_at=[0.6, 0.95],
        dt=0.1,
    )
    np.testing.assert_array_equal(found.ts, [0.6, 0.95])
    assert found.params.shape == (1, 2, 2)
    np.testing.assert_allclose(found.stats["start_distance"], 0.3, rtol=1e-6)


def test_a_dict_survives_a_file(dict_run, tmp_path):
    path = dict_run.save(tmp_path / "run.npz")
    found = ss.load(path)
    equal(found.params, dict_run.params)
    equal(found.v, dict_run.v)
    equal(found.metrics, dict_run.metrics)
    np.testing.assert_array_equal(found.ts, dict_run.ts)
    np.testing.assert_array_equal(found.result, dict_run.result)
    assert found.label == dict_run.label == "slow"
    assert found.stats["rank"] == 3
    np.testing.assert_array_equal(found.stats["residual"], dict_run.stats["residual"])
    np.testing.assert_array_equal(found.stats["spectrum"], dict_run.stats["spectrum"])
    np.testing.assert_array_equal(found.stats["failed_at"], dict_run.stats["failed_at"])
    assert found.metrics["mine"].dtype == np.float64


def test_a_loaded_run_does_what_a_fresh_one_does(dict_run, tmp_path):
    found = ss.load(dict_run.save(tmp_path / "first"))
    again = ss.load(found.save(tmp_path / "second"))
    equal(again.params, dict_run.params)
    assert found.to_xarray().equals(dict_run.to_xarray())


def test_a_module_survives_a_file_with_like(module_run, tmp_path):
    path = module_run.save(tmp_path / "run.npz")
    found = ss.load(path, like=MLP)
    assert isinstance(found.params, eqx.nn.MLP)
    assert found.params.activation is MLP.activation
    for layer, expected in zip(found.params.layers, module_run.params.layers, strict=True):
        np.testing.assert_array_equal(layer.weight, expected.weight)
        np.testing.assert_array_equal(layer.bias, expected.bias)
    assert found.v is None
    # Adam's second moment is a module too; one value a block is not.
    for v, kind in ((module_run.params, eqx.nn.MLP), (np.zeros((PATHS, TIMES, 2)), np.ndarray)):
        path = dataclasses.replace(module_run, v=v).save(tmp_path / "moments.npz")
        assert isinstance(ss.load(path, like=MLP).v, kind)


def test_a_module_without_like_comes_back_as_named_leaves(module_run, tmp_path):
    found = ss.load(module_run.save(tmp_path / "run.npz"))
    assert set(found.params) == {f".layers[{i}].{name}" for i in (0, 1) for name in ("weight", "bias")}
    np.testing.assert_array_equal(found.params[".layers[0].weight"], module_run.params.layers[0].weight)


@pytest.mark.parametrize(
    "tree",
    [
        np.zeros((1, 2, 3)),
        (np.zeros((1, 2)), [np.ones((1, 2, 2))], None),
        {"b": np.zeros((1, 2)), "a": {"z": (np.ones((1, 2)),), "e": {}}},
        [],
    ],
)
def test_plain_containers_survive_a_file_as_they_were(tree, tmp_path):
    made = ss.Trajectory(np.arange(2.0), tree, (), {}, {}, np.zeros(1, int))
    equal(ss.load(made.save(tmp_path / "run")).params, tree)


def test_many_leaves_keep_their_order(tmp_path):
    tree = [np.full((1, 1), float(i)) for i in range(12)]  # "10" sorts before "2"
    made = ss.Trajectory(np.zeros(1), tree, (), {}, {}, np.zeros(1, int))
    equal(ss.load(made.save(tmp_path / "run")).params, tree)


def test_a_file_holds_no_pickles(dict_run, tmp_path):
    path = dict_run.save(tmp_path / "run.npz")
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert {"ts", "result", "header", "metrics/mine", "params/0", "v/1"} <= set(file.files)


def test_saving_adds_the_suffix_and_leaves_no_other_file(dict_run, tmp_path):
    assert dict_run.save(tmp_path / "run.v1") == tmp_path / "run.v1.npz"
    assert dict_run.save(str(tmp_path / "run.v1")) == tmp_path / "run.v1.npz"  # over the first
    assert [path.name for path in tmp_path.iterdir()] == ["run.v1.npz"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(dict_run, tmp_path):
    (tmp_path / "run.npz").mkdir()
    with pytest.raises(OSError, match=r"run\.npz"):
        dict_run.save(tmp_path / "run.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_xarray_names_its_dimensions(dict_run):
    data = dict_run.to_xarray()
    assert data["mine"].dims == ("path", "time")
    assert data["params['x']"].dims == ("path", "time", "params['x']_0")
    assert data["v['y']"].dims == ("path", "time", "v['y']_0", "v['y']_1")
    assert data["result"].dims == ("path",)
    assert data.sizes["path"] == PATHS
    np.testing.assert_array_equal(data["time"], dict_run.ts)
    np.testing.assert_array_equal(data["mine"].sel(path=1), dict_run.metrics["mine"][1])
    assert data.attrs["rank"] == 3


def test_xarray_of_a_module_and_no_state(module_run):
    data = module_run.to_xarray()
    assert data["params.layers[0].weight"].shape == (PATHS, TIMES, 3, 1)
    assert not [name for name in data if str(name).startswith("v")]


def test_an_error_carries_the_trajectory(tmp_path):
    problem = ss.Problem(lambda x: 0.5 * x[1] ** 2 * x[0] ** 2, noise=ss.GaussianNoise(np.array([[1.0], [0.0]])))
    with pytest.raises(ss.RunError) as caught:
        ss.simulate(problem, ss.sgd(), np.array([0.0, 1.0]), 2.0, save_at=5, dt=0.01)
    carried = caught.value.trajectory
    assert isinstance(carried, ss.Trajectory)
    assert carried.params.shape == (1, 5, 2)
    assert np.isfinite(carried.params[0, 1]).all()
    assert np.isnan(carried.params[0, -1]).all()
    equal(ss.load(carried.save(tmp_path / "failed")).params, carried.params)

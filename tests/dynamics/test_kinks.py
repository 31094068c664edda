"""A kink of the loss is named where a start ends on it or a run slides along it; smooth losses are never called so."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import slowsde as ss
from manifolds.maps.limit_map import ManifoldError
from slowsde.dynamics.result import Result

D, WIDTH = 3, 6
RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(4, D))
TARGETS = np.sign(INPUTS[:, 0] * INPUTS[:, 1])


def relu(params: Any, z: Any) -> Any:
    return params["a"] @ jax.nn.relu(params["W"] @ z + params["b"])


def leaky_relu(params: Any, z: Any) -> Any:
    return params["a"] @ jax.nn.leaky_relu(params["W"] @ z + params["b"])


def max_pool(params: Any, z: Any) -> Any:
    return params["a"][: WIDTH // 2] @ jnp.max((params["W"] @ z + params["b"]).reshape(-1, 2), axis=1)


def nearly_relu(params: Any, z: Any) -> Any:
    return params["a"] @ jax.nn.softplus(1e3 * (params["W"] @ z + params["b"])) / 1e3


def problem_of(predict: Callable[[Any, Any], Any]) -> ss.LeastSquares:
    return ss.LeastSquares(predict, INPUTS, TARGETS, noise=ss.LabelNoise(1.0))


def start(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=WIDTH) / WIDTH**0.5,
        "W": rng.normal(size=(WIDTH, D)) / D**0.5,
        "b": 0.1 * rng.normal(size=WIDTH),
    }


def trained(problem: ss.LeastSquares, params: Any) -> Any:
    step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - 0.03 * g, p, jax.grad(problem.loss)(p)))
    return jax.device_get(jax.lax.fori_loop(0, 60000, lambda _, p: step(p), params))


@pytest.mark.parametrize("predict", [relu, pytest.param(leaky_relu, marks=pytest.mark.slow), max_pool])
def test_a_start_that_ends_on_a_kink_is_told_so(predict: Any) -> None:
    """With the sample and the parameters whose derivatives jump, and remedies: no word of more steps, or of eps."""
    with pytest.raises(ManifoldError, match=r"has a kink .* of samples? .*\d jump, most with respect to params\['"):
        ss.to_manifold(problem_of(predict), start())


@pytest.mark.parametrize("t1", [1.0, np.inf])
def test_a_run_that_meets_a_kink_stops_there_by_a_code_of_its_own(t1: float) -> None:
    """From weights that gradient descent has trained, which lie next to a kink, soon and with what there was."""
    problem = problem_of(relu)
    on_kink = trained(problem, start())
    before = np.abs(INPUTS @ on_kink["W"].T + on_kink["b"])
    assert np.min(before) < 1e-6
    with pytest.raises(ss.RunError, match=r"failed, the first at slow time .* kink") as caught:
        ss.simulate(problem, ss.sgd(), on_kink, t1, save_at=6)
    run = caught.value.trajectory
    assert list(run.result) == [Result.KINK]
    assert run.stats["num_steps"] < 1000
    sample = int(np.argmin(np.min(before, axis=1)))
    assert f"of sample {sample} jump" in run.stats["kink"]


@pytest.mark.slow
def test_between_kinks_a_trained_network_is_its_linear_piece() -> None:
    """Until it meets one a ReLU network is the network with its pattern of activity held: to the last digits."""
    rng = np.random.default_rng(0)
    inputs, params = np.eye(D)[:2] + 0.1, start(3)
    params["b"] = np.where(np.arange(WIDTH) % 2, 2.0, -2.0)  # far from the kinks
    active = (params["W"] @ inputs.T + params["b"][:, None] > 0).T
    assert active.any()
    assert not active.all()
    targets = np.array([relu(params, z) for z in inputs]) + 0.01 * rng.normal(size=2)

    def piece(p: Any, datum: Any) -> Any:
        z, on = datum
        return p["a"] @ (on * (p["W"] @ z + p["b"]))

    pieces = ss.LeastSquares(piece, (inputs, active.astype(float)), targets, noise=ss.LabelNoise(1.0))
    whole = ss.LeastSquares(relu, inputs, targets, noise=ss.LabelNoise(1.0))
    ends = [ss.simulate(problem, ss.sgd(), params, 0.1, save_at=3).params for problem in (whole, pieces)]
    moved = [np.max(np.abs(leaf[0, -1] - leaf[0, 0])) for leaf in jax.tree.leaves(ends[0])]
    assert max(moved) > 1e-2
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_kink_that_the_flow_crosses_is_no_end() -> None:
    """h(y) = 2 + y + |y|/2 falls on both sides of y = 0: the flow dy/dt = −½ h h' goes on beyond, to a step's error."""

    def predict(p: Any, x: Any) -> Any:
        return p["w"] * (2 + p["y"] + jnp.abs(p["y"]) / 2) * x

    problem = ss.LeastSquares(predict, np.ones(1), np.zeros(1), noise=ss.LabelNoise(1.0))
    run = ss.simulate(problem, ss.sgd(), {"w": np.array(0.0), "y": np.array(0.5)}, 1.0, save_at=11)
    truth = solve_ivp(
        lambda t, y: -0.5 * (2 + y + abs(y) / 2) * (1 + np.sign(y) / 2), (0, 1), [0.5], t_eval=run.ts, rtol=1e-8
    )
    np.testing.assert_allclose(run.params["y"][0], truth.y[0], atol=2e-3)


def test_a_smooth_loss_is_not_called_kinked_however_sharp_it_bends() -> None:
    """softplus(1000 x)/1000: as sharp as a kink at the scale of the weights, and twice differentiable."""
    problem = problem_of(nearly_relu)
    at = ss.to_manifold(problem, start())
    run = ss.simulate(problem, ss.adam(c=1.0, eps=1e-2), at, 0.5, save_at=3)
    assert run.result[0] == Result.SUCCESS
    assert "kink" not in run.stats

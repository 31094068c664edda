"""A path that meets a jump of the loss, or the end of its domain, stops there and says so."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

START, NOISE = np.array([0.1, 1.0]), ss.GaussianNoise(np.diag([1.0, 0.1]))


def jumping(x: Any, z: Any) -> Any:
    """Γ is x_0 = 0, and from x_1 = 0.8 downwards x_0 = ½."""
    return (x[0] - jnp.where(x[1] > 0.8, 0.0, 0.5)) * jnp.sqrt(1 + x[1] ** 2)


def ending(x: Any, z: Any) -> Any:
    return x[0] * (1 + x[1] ** 2 + 0.1 * jnp.sqrt(x[1] - 0.8) ** 3)


def flow(predict: Callable[..., Any]) -> ss.Trajectory:
    problem = ss.LeastSquares(predict, np.ones((1, 2)), np.zeros(1), ss.LabelNoise(1.0))
    return ss.simulate(problem, ss.sgd(), START, 3.0, throw=False)


def sde(predict: Callable[..., Any]) -> ss.Trajectory:
    problem = ss.Problem(lambda x: 0.5 * predict(x, None) ** 2, NOISE)
    return ss.simulate(problem, ss.sgd(), START, 3.0, dt=0.01, paths=8, throw=False)


def test_a_flow_ends_at_a_jump_of_the_loss() -> None:
    """It once went on, on the other side, with success: x_0 = ½ from one step to the next."""
    found = flow(jumping)
    assert found.result.tolist() == [ss.Result.KINK]
    reached = found.params[0][np.isfinite(found.params[0, :, 0])]
    assert np.max(np.abs(reached[:, 0])) < 1e-10
    assert 0.8 < reached[-1, 1] < 0.83


def test_a_diffusing_path_ends_at_a_jump_of_the_loss() -> None:
    found = sde(jumping)
    assert np.all(found.result == ss.Result.LEFT_MANIFOLD)
    assert np.nanmax(np.abs(found.params[..., 0])) < 1e-10
    with pytest.raises(ss.RunError, match="the loss jumps there or is not defined beyond"):
        ss.simulate(ss.Problem(lambda x: 0.5 * jumping(x, None) ** 2, NOISE), ss.sgd(), START, 3.0, dt=0.01)


@pytest.mark.parametrize(("run", "said"), [(flow, "is not defined beyond"), (sde, "is not defined beyond")])
def test_a_path_that_meets_the_end_of_the_domain_says_that_it_may_be_one(run: Any, said: str) -> None:
    found = run(ending)
    assert np.all(found.result != ss.Result.SUCCESS)
    assert said in ss.Result(int(found.result[0])).explain()

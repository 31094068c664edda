"""The implicit and the explicit solver follow one flow, whatever the state of the optimizer is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(3, 3))
START = {"first": RNG.normal(size=(2, 3)), "second": RNG.normal(size=2)}
OPTIMIZERS = {
    "shampoo": ss.shampoo(c=3.0, eps=0.05),
    "adame": ss.adame(3.0, 0.25, eps=0.05),
    "adalayer": ss.adalayer(c=3.0, eps=0.05),
    "grouped": ss.grouped(
        {"matrix": ss.shampoo(c=3.0, eps=0.1), "rest": ss.adam(c=3.0, eps=0.05)}, {"first": "matrix", "second": "rest"}
    ),
}


def predict(w: Any, z: Any) -> Any:
    return w["second"] @ jnp.tanh(w["first"] @ z)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_both_solvers_follow_one_flow(name: str) -> None:
    """Entries of Shampoo's matrices may be negative, where there are no logarithms to extrapolate."""
    problem = ss.LeastSquares(predict, INPUTS, np.array([0.3, -0.2, 0.4]), ss.LabelNoise(std=0.5))
    runs = [
        ss.simulate(problem, OPTIMIZERS[name], START, 0.5, save_at=3, rtol=1e-8, solver=solver)
        for solver in ("tsit5", "implicit")
    ]
    assert [run.stats["solver"] for run in runs] == ["tsit5", "implicit"]
    one, other = ([*run.params.values(), *jax.tree.leaves(run.v)] for run in runs)
    moved = np.abs(one[0][0, -1] - one[0][0, 0]).max()
    assert moved > 1e-2
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())

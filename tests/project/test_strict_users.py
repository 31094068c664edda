"""Runs pass with every strict setting of JAX, on models that pass them."""

import contextlib
from typing import Any

import jax
import numpy as np
import pytest

import slowsde as ss

INPUTS = np.array([[1.0, 0.5, 0.0, 1.0], [0.2, -1.0, 1.0, 0.3]])
LINE = ss.LeastSquares(lambda w, z: z @ w**2, INPUTS, np.ones(2), noise=ss.LabelNoise(0.5, batch_size=1))
VALLEY = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=ss.GaussianNoise(0.3))


@pytest.fixture
def strict():
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        stack.enter_context(jax.debug_nans(True))
        stack.enter_context(jax.debug_key_reuse(True))
        yield


ADAM = ss.adam(c=1.0, eps=0.1, weight_decay=0.1, schedule=lambda t: 1 / (1 + t))


@pytest.mark.usefixtures("strict")
def test_a_flow() -> None:
    assert ss.simulate(LINE, ADAM, np.ones(4), 0.1, save_at=3, metrics="trace_hessian").paths == 1


@pytest.mark.usefixtures("strict")
def test_discrete_runs() -> None:
    run = ss.run_discrete(LINE, ADAM, np.ones(4), 0.1, lr=0.05, paths=2, save_at=3, metrics="trace_hessian", key=1)
    assert run.paths == 2


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("optimizer", [ss.sgd(), ss.shampoo(c=1.0, eps=0.1), ss.adam_mini(c=1.0, eps=0.1)])
def test_an_sde_and_its_rival(optimizer: Any) -> None:
    assert ss.simulate(VALLEY, optimizer, np.array([0.1, 1.0]), 0.1, dt=0.02, save_at=3, paths=2).paths == 2
    rival = ss.conventional_sde(VALLEY, optimizer, np.array([0.1, 1.0]), 0.1, lr=0.05, save_at=3, paths=2)
    assert rival.paths == 2


@pytest.mark.slow
def test_no_tracer_leaks() -> None:
    with jax.checking_leaks():
        assert ss.simulate(LINE, ss.sgd(), np.ones(4), 0.1, save_at=2).paths == 1

"""Runs in two parts, of the optimizer and to rest; those of the slow SDE are in dynamics/test_repeatability."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest

import slowsde as ss

INPUTS = np.random.default_rng(0).choice([-1.0, 1.0], size=(4, 6))
START = {"u": np.full(6, 0.7), "v": np.full(6, 0.5)}
ADAM = ss.adam(c=2.0, b1=0.9, eps=1e-2)
LIKE = ss.adam(c=10.0, bias_correction=True)


def predict(w: Any, z: Any) -> Any:
    return z @ (w["u"] ** 2 - w["v"] ** 2)


LABELS = ss.LeastSquares(predict, INPUTS, INPUTS[:, 0], ss.LabelNoise(std=1.0))
KICKED = ss.LeastSquares(predict, INPUTS, INPUTS[:, 0], ss.GaussianNoise(0.1))
CASES = {
    "adam": (LABELS, ADAM, {}, {}),
    "adam, bias-corrected": (LABELS, ss.adam(c=2.0, bias_correction=True), {}, {}),
    "heavy ball": (KICKED, ss.sgd(b1=0.9), {}, {}),
    "shampoo": (LABELS, ss.shampoo(c=2.0, eps=1e-2), {}, {}),
    "optax": (LABELS, optax.adam(0.01, b2=0.999), {"like": LIKE}, {"like": LIKE}),
    "optax, with noise": (LABELS, optax.noisy_sgd(0.01, key=jax.random.key(1)), {"project": False}, {}),
}


@pytest.mark.as_users
@pytest.mark.parametrize("name", list(CASES))
def test_a_discrete_run_goes_on_with_all_that_it_remembers(name: str, tmp_path: Any) -> None:
    problem, optimizer, settings, more = CASES[name]
    settings = {"lr": 0.01, "paths": 3} | settings
    whole = ss.run_discrete(problem, optimizer, START, 0.04, save_at=[0.02, 0.04], **settings)
    half = ss.run_discrete(problem, optimizer, START, 0.02, save_at=[0.02], **settings)
    rest = ss.resume(problem, optimizer, ss.load(half.save(tmp_path / "half")), 0.04, save_at=[0.04], **more)
    assert whole.end is not None
    assert rest.end is not None
    # The iterates themselves to the last bit; their returns to Γ, which are computed in blocks, up to rounding.
    for a, b in zip(whole.end, rest.end, strict=True):
        np.testing.assert_array_equal(a, b)
    for leaf in ("u", "v"):
        np.testing.assert_allclose(whole.params[leaf][:, -1], rest.params[leaf][:, -1], rtol=1e-9)
    np.testing.assert_allclose(rest.ts, [0.04])


def test_momentum_matters() -> None:
    half = ss.run_discrete(LABELS, ADAM, START, 0.02, save_at=[0.02], lr=0.01, paths=3, project=False)
    assert half.end is not None
    rest = ss.resume(LABELS, ADAM, half, 0.04, save_at=[0.04])
    forgetful = dataclasses.replace(half, end=(half.end[0], 0 * half.end[1], *half.end[2:]))
    other = ss.resume(LABELS, ADAM, forgetful, 0.04, save_at=[0.04])
    assert np.abs(rest.params["u"] - other.params["u"]).max() > 1e-6


def test_a_flow_that_was_not_at_rest_goes_on_to_it() -> None:
    short = ss.simulate(LABELS, ADAM, START, np.inf, save_at=2, max_steps=10, throw=False)
    assert ss.Result(int(short.result[0])) in (ss.Result.NOT_STATIONARY, ss.Result.MAX_STEPS)
    rest = ss.resume(LABELS, ADAM, short, np.inf, save_at=2)
    whole = ss.simulate(LABELS, ADAM, START, np.inf, save_at=2)
    assert rest.ts[0] == short.ts[-1]
    np.testing.assert_allclose(rest.params["u"][0, -1], whole.params["u"][0, -1], atol=1e-5)


def test_what_cannot_go_on_is_refused() -> None:
    half = ss.run_discrete(LABELS, ADAM, START, 0.02, save_at=[0.02], lr=0.01, paths=3)
    with pytest.raises(ValueError, match="another optimizer"):
        ss.resume(LABELS, ss.adam(c=3.0, eps=1e-2), half, 0.04)
    with pytest.raises(ValueError, match=r"larger than t0=0\.02"):
        ss.resume(LABELS, ADAM, half, 0.01)
    old = dataclasses.replace(half, stats={k: v for k, v in half.stats.items() if k != "landed_at_ranks"})
    with pytest.raises(ValueError, match="saved by this version"):
        ss.resume(LABELS, ADAM, old, 0.04)
    starts = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 0.1]), START)
    many = ss.simulate(LABELS, ADAM, starts, 0.02, save_at=2, stacked=True)
    with pytest.raises(ValueError, match="go on one by one"):
        ss.resume(LABELS, ADAM, many, 0.04)

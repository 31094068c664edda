"""Formulas against runs: the problem made of a derivation in `simulate`, and the discrete optimizer."""

import numpy as np
import pytest
import sympy
from formulas import CASES, LABEL, Case, c, delta, epsilon, h, p, q, sx, sy, x, y

import slowsde as ss

w = sympy.Symbol("w")


def test_the_closed_form_of_adam_on_a_product_is_what_simulate_integrates() -> None:
    """u − v falls like e^{−t/2}, whatever δ."""
    derivation = Case([p * q - 1], [p, q], ss.adam(sympy.oo, eps=0), LABEL).derive().on({delta: 0.7})
    found = derivation.reduced({w: p - q}).drift[0]
    rate = float(found / w)
    run = ss.simulate(
        derivation.as_problem(),
        derivation.as_optimizer(),
        np.array([2.0, 0.5]),
        2.0,
        metrics={"w": lambda z: z[0] - z[1]},
    )
    np.testing.assert_allclose(run.metrics["w"][0], 1.5 * np.exp(rate * run.ts), rtol=1e-4)
    assert rate == -0.5


@pytest.mark.parametrize(("name", "optimizer"), [("sgd", ss.sgd()), ("adam", ss.adam(2.0, b1=0.0, eps=0.02))])
def test_discrete_runs_on_a_product_follow_the_formula(name: str, optimizer: ss.AGM) -> None:
    """64 runs at lr = 0.01 against Euler's method on the derived formulas alone; a factor of 2 would be seen."""
    derivation = Case([p * q - 1], [p, q], optimizer, LABEL).derive().on({delta: 0.7})
    start, t1 = np.array([2.0, 0.5]), 1.0
    metrics = {"w": lambda z: z[0] ** 2 - z[1] ** 2}
    fast = ss.run_discrete(
        derivation.as_problem(), optimizer, start, t1, lr=0.01, paths=64, save_at=3, metrics=metrics
    ).metrics["w"]
    mean, error = fast.mean(axis=0)[-1], fast.std(axis=0, ddof=1)[-1] / 8

    def end(factor: float) -> float:
        field = derivation.lambdify()
        z, state, steps = start, derivation.evaluate(start).v_drift, 2000
        v = np.array([float(e.subs({p: 2.0, q: 0.5})) for e in derivation.equilibrium]) if state is not None else ()
        for _ in range(steps):
            drift, _, v_drift = field(z, v)
            z, v = z + factor * drift * t1 / steps, np.asarray(v) + v_drift * t1 / steps
        return float(z[0] ** 2 - z[1] ** 2)

    assert abs(mean - end(1.0)) < 4 * error + 0.03
    assert abs(mean - end(2.0)) > 10 * error + 0.2


@pytest.mark.slow
def test_discrete_adam_in_a_valley_follows_the_formula() -> None:
    """Mean and variance of y at t = 1 over 2048 runs, against those of the reduced equation, which is linear in y."""
    derivation = CASES["valley"].derive().on({h: lambda z: sympy.exp(z**2 / 2), sx: 0.8, sy: 0.5, c: 2, epsilon: 0.05})
    reduced = derivation.reduced([y]).expanded()
    start, t1 = np.array([0.0, 1.0]), 1.0
    v = {s: float(e) for s, e in zip(derivation.state, derivation.equilibrium, strict=True)}
    rate, noise = float(reduced.drift[0].subs(v) / y), float(sum(e**2 for e in reduced.diffusion.subs(v)))
    fast = ss.run_discrete(
        derivation.as_problem(), derivation.as_optimizer(), start, t1, lr=0.02, paths=2048, save_at=2,
        metrics={"y": lambda z: z[1]},
    ).metrics["y"][:, -1]  # fmt: skip
    mean, variance = np.exp(rate * t1), noise * (np.exp(2 * rate * t1) - 1) / (2 * rate)
    assert abs(fast.mean() - mean) < 4 * fast.std() / np.sqrt(2048) + 0.01
    assert abs(fast.var() / variance - 1) < 4 * np.sqrt(2 / 2048) + 0.03
    assert abs(fast.mean() - np.exp(2 * rate * t1)) > 10 * fast.std() / np.sqrt(2048)
    assert x in derivation.equations[0].free_symbols

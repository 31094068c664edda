"""Adafactor: its slow SDE against the published metric, a closed form, Optax's steps, and discrete runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import (
    INPUTS,
    SMALL,
    TARGETS,
    at_a_minimizer,
    curl,
    flat,
    gaps,
    library_coefficients,
    noise_factors,
    predict,
    relative,
    slow_coefficients,
)
from dense_reference import START as FROM
from scipy import optimize

import slowsde as ss
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.slow_sde import slow_sde

EPS = 1e-2


def mean(x: Any, axis: int) -> Any:
    return np.mean(x, axis=axis, keepdims=True)


def published_moment(v: np.ndarray) -> np.ndarray:
    """Of second moments of a leaf (its two largest axes are the last) what Adafactor makes of it."""
    if v.ndim < 2:
        return v
    rows, columns = mean(v, -1), mean(v, -2)
    return rows * columns / mean(rows, -2)


def test_coefficients_are_those_of_the_published_matrix() -> None:
    params, at = at_a_minimizer()
    rng, factor = np.random.default_rng(3), noise_factors(at)["gaussian"]
    second = {name: rng.uniform(0.05, 0.5, np.shape(leaf)) for name, leaf in sorted(params.items())}
    optimizer = ss.adafactor(3.0, eps=EPS)

    def state(moment: Any) -> Any:
        # w is 3×2: its longer axis is the first.
        axes = {"q": (1, 0), "t": (2, 1), "w": (0, 1)}
        return {n: tuple(mean(v, axis) for axis in axes[n]) if n in axes else v for n, v in moment.items()}

    (found,) = library_coefficients([optimizer], params, [state(second)], [("gaussian", "dense")])
    (got,) = found.values()
    metric = np.diag(1 / (np.sqrt(flat({n: published_moment(v) for n, v in second.items()})) + EPS))
    drift, diffusion = slow_coefficients(at, factor, metric)
    assert relative(flat(got.drift), drift) < 1e-6
    assert relative(got.diffusion, diffusion) < 1e-6
    adam, spread = slow_coefficients(at, factor, np.diag(1 / (np.sqrt(flat(second)) + EPS)))
    assert relative(flat(got.drift), adam) > 1e-2
    assert relative(got.diffusion, spread) > 1e-2
    sizes = [np.size(leaf) for leaf in second.values()]
    parts = np.split(np.sum(factor**2, axis=1), np.cumsum(sizes)[:-1])
    variance = {n: part.reshape(v.shape) for (n, v), part in zip(second.items(), parts, strict=True)}
    target = jax.tree.map(lambda a, b: 3.0 * (a - b), state(variance), state(second))
    assert jax.tree.structure(got.v_drift) == jax.tree.structure(target)
    assert relative(flat(got.v_drift), flat(target)) < 1e-9


def test_one_step_of_the_metric_is_zero_safe() -> None:
    """A row without a gradient, and a matrix without any."""
    for g in (jnp.array([[0.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 3))):
        S = ss.adafactor(1.0, eps=0.1).S(ss.adafactor(1.0).V(g))
        assert S.shape == g.shape
        np.testing.assert_allclose(S, 1 / (np.abs(g) + 0.1), rtol=1e-6)  # of rank one, so exact


# On Γ, with v = w₂₂, g² ∝ diag(1, v²) has means (1, v²)/2 over rows and columns: S₁₁ = √(1+v²)/δ, S₂₂ = S₁₁/v².
QUADRATIC = ss.LeastSquares(
    lambda w, z: z * (w[0, 0] + 0.5 * w[1, 1] ** 2), np.ones(1), np.zeros(1), ss.LabelNoise(1.0)
)


def test_flow_of_a_matrix_of_two_weights_is_the_closed_form() -> None:
    """dv/dt = −(1 + v²)/(4v³), so that v² − ln(1 + v²) falls by t/2; with Adam it would be −1/(2v(1 + v))."""
    start = np.diag([-2.0, 2.0])
    common: dict[str, Any] = {"metrics": {"v": lambda w: w[1, 1]}, "save_at": 5, "rtol": 1e-8}
    slow = ss.simulate(QUADRATIC, ss.adafactor(np.inf, eps=1e-10), start, 2.0, **common)

    expected = [fallen(lambda v: 2 * (v**2 - np.log1p(v**2)), t) for t in slow.ts]
    np.testing.assert_allclose(slow.metrics["v"][0], expected, rtol=1e-6)
    assert fallen(lambda v: v**2 + 2 * v**3 / 3, 2.0) - expected[-1] > 0.1  # 1.80 against 1.64


def fallen(function: Any, t: float) -> float:
    """v < 2 where an increasing function is less by t than at 2."""
    return float(optimize.brentq(lambda v: function(v) - function(2.0) + t, 1e-2, 2.0))  # pyright: ignore


optax = pytest.importorskip("optax")
C, LR = 2.0, 0.02
B2 = 1 - C * LR**2


def corrected(step: Any, _: Any) -> Any:
    return 1 - (1 - B2) / (1 - B2 ** (step + 1))


def network(w: Any, z: Any) -> Any:
    return jnp.tanh(w["a"] @ z) @ w["b"] + jnp.sum(w["t"] ** 2)


RNG = np.random.default_rng(0)
START = {"a": RNG.normal(size=(3, 2)), "b": RNG.normal(size=3), "t": 0.3 * RNG.normal(size=(2, 4, 3))}
NETWORK = ss.LeastSquares(network, RNG.normal(size=(2, 2)), RNG.normal(size=2), ss.LabelNoise(1.0))


@pytest.mark.parametrize("least", [1, 3])
def test_steps_are_those_of_optax_to_rounding(least: int) -> None:
    """50 steps, a matrix (factored or not), a vector and a tensor; β2 falling as Optax's does by default differs."""
    common: dict[str, Any] = {"lr": LR, "paths": 2, "save_at": [0.02], "project": False}
    ours = ss.adafactor(C, eps=0.0, min_size=least, bias_correction=True)
    mine = ss.run_discrete(NETWORK, ours, START, 0.02, **common)

    def theirs(**settings: Any) -> Any:
        scaled = optax.scale_by_factored_rms(min_dim_size_to_factor=least, epsilon=0.0, **settings)
        return ss.run_discrete(NETWORK, optax.chain(scaled, optax.scale(-LR)), START, 0.02, **common).params

    np.testing.assert_allclose(flat(theirs(decay_rate_fn=corrected)), flat(mine.params), rtol=1e-7)
    assert relative(flat(theirs()), flat(mine.params)) > 1e-3


def test_the_drift_has_no_potential() -> None:
    """The relative curl of ⟨∇³L, S(V(H))⟩ on Γ: 2e-8 for Adam, whose potential is tr Diag(H)^½."""
    params, at = at_a_minimizer()
    problem = ss.LeastSquares(predict, INPUTS, TARGETS, ss.LabelNoise(1.0))
    with jax.enable_x64(True):
        sde = slow_sde(problem, ss.adafactor(1.0, eps=EPS), Coordinates.of(params))
        found = curl(lambda x: sde.loss.contract_metric(x, sde.metric(sde.equilibrium(x))), at)
    print(f"curl {found}")
    assert found > 1e-2


@pytest.mark.slow
def test_discrete_runs_approach_the_slow_flow() -> None:
    """256 paths; tr H falls from 1.80 to 1.02, gaps .155 ± .008, .014 ± .003, .0047 ± .0016; and Adam is rejected."""
    gap, error, slow = gaps(ss.adafactor(1.0, b1=0.9, eps=EPS), (0.1, 0.025, 0.0125), paths=256, project=True)
    print(gap, error, slow.metrics["trace_hessian"])
    assert gap[0] > 6 * error[0]
    assert np.all(np.abs(gap[1:]) < 0.5 * np.abs(gap[0]) + 3 * error[1:])
    assert abs(gap[-1]) < 4 * error[-1]
    adam = ss.simulate(SMALL, ss.adam(1.0, eps=EPS), FROM, 1.0, save_at=3, metrics=("trace_hessian",))
    mean_ = slow.metrics["trace_hessian"][0, -1] + gap[-1]
    assert abs(mean_ - adam.metrics["trace_hessian"][0, -1]) > 6 * error[-1]

"""Shampoo: its Kronecker metric and slow SDE against p×p matrices from the published formula, and its drift's curl."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import (
    GUESS,
    INPUTS,
    SIZE,
    SMALL,
    START,
    TARGETS,
    Derivatives,
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

import manifolds as mf
import slowsde as ss
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.slow_sde import slow_sde

EPS = 1e-2
EXPONENTS = {"original": 0.25, "later": 0.5}
SHAPES = {name: np.shape(leaf) for name, leaf in sorted(GUESS.items())}


def spd_power(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def published_metric(v: Any, q: float, swap: bool = False, mode_power: Any = None) -> np.ndarray:
    """S (p, p), leaf by leaf: (R+εI)^-q ⊗ (L+εI)^-q on the stacked columns of a matrix, one factor a mode of a tensor.

    `swap` (L and R exchanged, where the shapes allow it) and `mode_power` (of a tensor's factors) make mutants.
    """
    blocks = []
    for name, shape in SHAPES.items():
        state = v[name]
        if len(shape) < 2:
            blocks.append(np.diag((np.ravel(state) + EPS) ** (-2 * q)))
        elif len(shape) == 2:
            L, R = (spd_power(f + EPS * np.eye(len(f)), -q) for f in state)
            if swap and shape[0] == shape[1]:
                L, R = R, L
            # Stacked columns to stacked rows: entry (i, j) of G is number j a + i there, and i b + j here.
            order = np.arange(shape[0] * shape[1]).reshape(shape, order="F").ravel()
            blocks.append(np.kron(R, L)[np.ix_(order, order)])
        else:
            power = -2 * q / len(shape) if mode_power is None else mode_power
            A, B, C = (spd_power(f + EPS * np.eye(len(f)), power) for f in state)
            blocks.append(np.einsum("ai,bj,ck->abcijk", A, B, C).reshape(A.size * 2, -1))
    S = np.zeros((SIZE, SIZE))
    start = 0
    for block in blocks:
        S[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return S


def published_state(covariance: np.ndarray) -> dict[str, Any]:
    """V(Σ) from Σ itself: partial traces of the block of each leaf."""
    state, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        block = covariance[start : start + size, start : start + size].reshape(shape + shape)
        start += size
        if len(shape) < 2:
            state[name] = np.diag(block.reshape(size, size)).reshape(shape)
        elif len(shape) == 2:
            state[name] = (np.einsum("abcb->ac", block), np.einsum("abad->bd", block))
        else:
            state[name] = tuple(
                np.einsum(f"{m}->{o}", block) for m, o in (("abcdbc", "ad"), ("abcaec", "be"), ("abcabf", "cf"))
            )
    return state


@pytest.fixture(scope="module")
def minimizer() -> tuple[Any, Derivatives]:
    return at_a_minimizer()


@pytest.fixture(scope="module")
def v() -> dict[str, Any]:
    """A state that is not at equilibrium."""
    root = np.random.default_rng(2).normal(size=(SIZE, 5))
    return published_state(0.1 * root @ root.T)


@pytest.fixture(scope="module")
def found(minimizer: Any, v: Any) -> dict[Any, Any]:
    optimizers = [ss.shampoo(3.0, eps=EPS, exponent=q) for q in EXPONENTS.values()]
    return dict(zip(EXPONENTS, library_coefficients(optimizers, minimizer[0], [v, v]), strict=True))


@pytest.mark.parametrize("noise", ["label", "gaussian"])
@pytest.mark.parametrize("name", EXPONENTS)
def test_coefficients_are_those_of_the_published_matrix(
    minimizer: Any, v: Any, found: Any, name: str, noise: str
) -> None:
    at, q = minimizer[1], EXPONENTS[name]
    factor = noise_factors(at)[noise]
    S = published_metric(v, q)
    drift, diffusion = slow_coefficients(at, factor, S)
    mutants = {
        "half the exponent": published_metric(v, q / 2),
        "L and R swapped": published_metric(v, q, swap=True),
        "the exponent of a matrix on a tensor": published_metric(v, q, mode_power=-q),
    }
    v_drift = jax.tree.map(lambda target, now: 3.0 * (target - now), published_state(factor @ factor.T), v)
    for route in ("kernel", "dense"):
        got = found[name][noise, route]
        assert relative(flat(got.drift), drift) < 1e-6
        assert jax.tree.structure(got.v_drift) == jax.tree.structure(v_drift)
        assert relative(flat(got.v_drift), flat(v_drift)) < 1e-9
        if noise == "gaussian":
            assert relative(got.diffusion, diffusion) < 1e-6
        else:
            assert np.max(np.abs(diffusion)) < 1e-9
            assert got.diffusion.shape == (diffusion.shape[0], 0)
        for mutant in mutants.values():
            wrong, spread = slow_coefficients(at, factor, mutant)
            assert relative(flat(got.drift), wrong) > 1e-2
            assert noise == "label" or relative(got.diffusion, spread) > 1e-2


def test_kronecker_metric_is_the_kronecker_product() -> None:
    rng = np.random.default_rng(0)
    roots = [rng.normal(size=(n, n)) for n in (2, 3, 2)]
    factors = [root @ root.T for root in roots]
    expected = np.kron(np.kron(*(spd_power(f + 0.1 * np.eye(len(f)), -0.3) for f in factors[:2])), np.eye(1))
    expected = np.kron(expected, spd_power(factors[2] + 0.1 * np.eye(2), -0.3))
    columns = rng.normal(size=(12, 4))
    for x64, tolerance in ((True, 1e-13), (False, 3e-6)):
        with jax.enable_x64(x64):
            metric = mf.Kronecker(factors, power=-0.3, shift=0.1)
            for apply, power in ((metric, 1.0), (metric.sqrt, 0.5), (metric.inv_sqrt, -0.5)):
                matrix = spd_power(expected, power)
                assert relative(apply(columns), matrix @ columns) < tolerance
                assert relative(apply(columns[:, 0]), matrix @ columns[:, 0]) < tolerance
                assert relative(apply(columns), spd_power(expected, power / 2) @ columns) > 1e-2
            stacked = [jnp.stack([jnp.asarray(f), 2 * jnp.asarray(f)]) for f in factors]
            traced = jax.jit(jax.vmap(lambda f: mf.Kronecker(f, power=-0.3, shift=0.1)(columns)))(stacked)
            assert relative(traced[0], expected @ columns) < tolerance
            assert relative(metric.largest(), np.linalg.eigvalsh(expected)[-1]) < tolerance


def test_block_metric_acts_leaf_by_leaf() -> None:
    diagonal, kronecker = mf.Diagonal(np.array([2.0, 0.5])), mf.Kronecker([np.diag([1.0, 3.0]), np.diag([1.0, 5.0])])
    metric = mf.BlockDiagonal({"a": diagonal, "b": kronecker}, [2, 4])
    np.testing.assert_allclose(metric(jnp.eye(6)), np.diag([2.0, 0.5, 1.0, 5.0, 3.0, 15.0]), rtol=1e-6)
    np.testing.assert_allclose(metric.inv_sqrt(metric.sqrt(jnp.ones(6))), np.ones(6), rtol=1e-6)
    assert float(metric.largest()) == pytest.approx(15.0)
    assert metric.damped(jnp.ones(6)) is None
    damped = mf.BlockDiagonal([diagonal, diagonal], [2, 2]).damped(jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert damped is not None
    np.testing.assert_allclose(damped(jnp.ones(4)), 1 / (np.array([0.5, 2, 0.5, 2]) + np.arange(1, 5)), rtol=1e-6)


BAD_METRICS = {
    "not square": (lambda: mf.Kronecker([np.ones((2, 3))]), r"factors\[0\] has shape"),
    "not symmetric": (
        lambda: mf.Kronecker([np.eye(2), np.array([[1.0, 1.0], [0.0, 1.0]])]),
        r"factors\[1\] is not fin",
    ),
    "not finite": (lambda: mf.Kronecker([np.full((2, 2), np.nan)]), "not finite and symmetric"),
    "not semi-definite": (lambda: mf.Kronecker([np.diag([1.0, -1.0])]), "not positive semi-definite"),
    "singular": (lambda: mf.Kronecker([np.diag([1.0, 0.0])], power=-0.5), "singular"),
    "wrong size": (lambda: mf.as_metric(mf.Kronecker([np.eye(2), np.eye(3)]), 7), "does not act on vectors of 7"),
    "wrong block": (lambda: mf.BlockDiagonal([mf.Diagonal(np.ones(2))], [3]), "acts on 2 parameters"),
    "blocks of another size": (lambda: mf.as_metric(mf.BlockDiagonal([np.ones(2)], [2]), 3), "not act on vectors of 3"),
    "too few sizes": (lambda: mf.BlockDiagonal([np.ones(2), np.ones(2)], [2]), "2 blocks and 1 sizes"),
}


@pytest.mark.parametrize("case", BAD_METRICS)
def test_bad_metrics_are_refused(case: str) -> None:
    make, message = BAD_METRICS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_leaves_of_every_order_scale_alike() -> None:
    """S(V(sg)) = s^{−4q} S(V(g)) without ε, and a scalar agrees with a 1×1 matrix."""
    q = 0.3
    optimizer = ss.shampoo(1.0, eps=0.0, exponent=q)
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        g = {k: jnp.asarray(rng.normal(size=n)) for k, n in {"s": (), "v": (2,), "m": (2, 2), "t": (2, 2, 2)}.items()}
        chart = Coordinates.of(g)
        once, thrice = (
            optimizer.metric(optimizer.V(jax.tree.map(lambda leaf, s=s: s * leaf, g)), chart)(jnp.eye(chart.size))
            for s in (1, 3)
        )
        assert relative(thrice, 3 ** (-4 * q) * once) < 1e-9
        scalar, matrix = (optimizer.S(optimizer.V(jnp.full(shape, 0.7)))(jnp.ones(1)) for shape in ((), (1, 1)))
        np.testing.assert_allclose(scalar, matrix, rtol=1e-12)


def test_rounding_does_not_make_the_root_imaginary() -> None:
    """A factor of rank one in float32, whose other eigenvalues are rounding of either sign and larger than ε."""
    g = 100 * np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32) * np.ones((1, 5), np.float32)
    optimizer = ss.shampoo(1.0, eps=1e-8)
    L = optimizer.V(jnp.asarray(g))[0]
    assert np.linalg.eigvalsh(np.asarray(L))[0] < -1e-8
    for metric in (optimizer.S, jax.jit(lambda v: optimizer.S(v))):
        assert np.all(np.isfinite(metric(optimizer.V(jnp.asarray(g)))(jnp.ones(30))))


def test_the_drift_has_no_potential_unlike_that_of_adam(minimizer: Any) -> None:
    """The covector ⟨∇³L, S(V(H))⟩ on Γ (19 dimensions): relative curl 2e-8 for Adam, 2e-2 for Shampoo."""
    params, at = minimizer
    problem = ss.LeastSquares(predict, INPUTS, TARGETS, ss.LabelNoise(1.0))

    def curl_of(optimizer: ss.AGM) -> float:
        with jax.enable_x64(True):
            sde = slow_sde(problem, optimizer, Coordinates.of(params))
            return curl(lambda x: sde.loss.contract_metric(x, sde.metric(sde.equilibrium(x))), at)

    assert curl_of(ss.adam(1.0, eps=EPS)) < 1e-6
    assert curl_of(ss.shampoo(1.0, eps=EPS)) > 1e-2


@pytest.mark.slow
def test_discrete_shampoo_approaches_the_slow_flow(tmp_path: Path) -> None:
    """64 paths, iterates as they come; tr H falls from 1.78 to 1.08, with gaps 0.209 ± 0.029 and −0.003 ± 0.010."""
    gap, error, slow = gaps(ss.shampoo(1.0, eps=EPS), (0.1, 0.025), paths=64, project=False)
    print(gap, error)
    assert gap[0] > 6 * error[0]
    assert abs(gap[1]) + 3 * error[1] < 0.5 * gap[0]
    loaded = ss.load(slow.save(tmp_path / "run"))
    assert jax.tree.structure(loaded.v) == jax.tree.structure(slow.v)
    assert loaded.v["w"][1].shape == (1, 3, 2, 2)
    assert "v['w'][1]" in slow.to_xarray()
    with pytest.raises(ValueError, match="solver='implicit'"):
        ss.simulate(SMALL, ss.shampoo(1.0, eps=EPS), START, 0.1, solver="implicit")


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_the_gap_of_discrete_shampoo_falls_with_the_learning_rate(exponent: float) -> None:
    """512 paths; and the slow flow of half the exponent is rejected at the smallest learning rate."""
    gap, error, slow = gaps(
        ss.shampoo(1.0, eps=0.1, exponent=exponent), (0.1, 0.05, 0.025, 0.0125), paths=512, project=True
    )
    print(gap, error)
    assert np.all(np.abs(gap[1:]) < 0.75 * np.abs(gap[:-1]) + 3 * error[1:])
    assert abs(gap[-1]) < 0.2 * abs(gap[0])
    wrong = ss.simulate(SMALL, ss.shampoo(1.0, eps=0.1, exponent=exponent / 2), START, 1.0, metrics=("trace_hessian",))
    mean = slow.metrics["trace_hessian"][0, -1] + gap[-1]
    assert abs(mean - wrong.metrics["trace_hessian"][0, -1]) > 10 * error[-1]


@pytest.mark.parametrize("exponent", [0.0, -0.25, 1.5, float("nan")])
def test_exponents_outside_the_unit_interval_are_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match=r"exponent=.* must lie in \(0, 1\]"):
        ss.shampoo(1.0, exponent=exponent)


def test_bad_leaves_and_states_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ss.shampoo(1.0, eps=-1.0)
    problem = ss.Problem(lambda p: jnp.sum(p["a"] ** 2), ss.GaussianNoise(1.0))
    with pytest.raises(ValueError, match=r"params\['e'\] of shape \(0, 3\)"):
        ss.coefficients(problem, ss.shampoo(1.0), {"a": np.ones(2), "e": np.ones((0, 3))})
    indefinite = (np.diag([1.0, -1.0]), np.eye(2))
    state = {"a": np.ones(2), "b": np.ones(2), "w": indefinite}
    with pytest.raises(ValueError, match=r"factors\[0\] is not positive semi-definite"):
        ss.simulate(SMALL, ss.shampoo(1.0), START, 1.0, v0=state)
    with pytest.raises(ValueError, match="v0 has leaves of shape"):
        ss.simulate(SMALL, ss.shampoo(1.0), START, 1.0, v0={**state, "w": np.ones((2, 2))})


def test_a_custom_method_may_return_a_kronecker_metric() -> None:
    """One-sided Shampoo as an `AGM` of one's own."""
    optimizer = ss.AGM(lambda g: g @ g.T, lambda L: mf.Kronecker([L, np.eye(3)], power=-0.5, shift=0.1), c=1.0)
    L = np.array([[2.0, 0.5], [0.5, 1.0]])
    metric = optimizer.metric(L, Coordinates.of(np.ones((2, 3))))
    expected = spd_power(L + 0.1 * np.eye(2), -0.5) * 1.1**-0.5
    np.testing.assert_allclose(metric(jnp.eye(6)), np.kron(expected, np.eye(3)), rtol=1e-5, atol=1e-6)

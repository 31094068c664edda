"""Classification: the least squares that stand for the cross-entropy along Γ, and labels drawn from the targets."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import manifolds as mf
import slowsde as ss
from manifolds.losses.cross_entropy import softmax_factor
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import cast
from slowsde.dynamics.fast_motion import sampling_eigenvalue
from slowsde.dynamics.slow_sde import slow_sde

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(2, 2))
TARGETS = np.array([[0.6, 0.3, 0.1], [0.2, 0.25, 0.55]])
GUESS = {"w": 0.7 * RNG.normal(size=(4, 2)), "b": 0.3 * RNG.normal(size=4), "a": 1.2 * RNG.normal(size=(3, 4))}
V = jax.tree.map(lambda leaf: 0.1 + np.abs(leaf), GUESS)  # some state of Adam, far from equilibrium
EPS = 0.1


def network(p: Any, z: Any) -> Any:
    """Three logits from two inputs, 24 parameters."""
    return p["a"] @ jnp.tanh(p["w"] @ z + p["b"])


def problem(noise: Any = None) -> ss.Classification:
    return ss.Classification(network, INPUTS, TARGETS, noise)


def cross_entropy(p: Any) -> Any:
    """−(1/n) Σ π log softmax, written out."""
    logits = jnp.stack([network(p, z) for z in INPUTS])
    return -jnp.mean(jnp.sum(TARGETS * (logits - jnp.log(jnp.sum(jnp.exp(logits), axis=1, keepdims=True))), axis=1))


@pytest.fixture(scope="module")
def start() -> Any:
    return ss.to_manifold(problem(), GUESS)


@pytest.fixture(scope="module")
def dense(start: Any) -> dict[str, np.ndarray]:
    """H and T[S] by automatic differentiation of the plain loss, Jacobians of the logits, and S at the state V."""
    chart = Coordinates.of(start)

    def everything(x: Any, s: Any) -> Any:
        hessian = jax.hessian(lambda y: cross_entropy(chart.unravel(y)))
        jacobians = [jax.jacobian(lambda y, z=z: network(chart.unravel(y), z))(x) for z in INPUTS]
        contraction = jax.grad(lambda y: jnp.sum(jnp.diag(hessian(y)) * s))(x)
        return {"x": x, "s": s, "H": hessian(x), "T": contraction, "J": jnp.stack(jacobians)}

    with jax.enable_x64(True):
        found = jax.jit(everything)(jnp.asarray(ravel(start)), jnp.asarray(1 / (np.sqrt(ravel(V)) + EPS)))
        return {name: np.asarray(value) for name, value in found.items()}


def projector(dense: dict[str, np.ndarray]) -> np.ndarray:
    half = np.sqrt(dense["s"])
    _, values, rows = np.linalg.svd(half[:, None] * dense["H"] * half)
    null = rows[values < 1e-9]
    return half[:, None] * (null.T @ null) / half


def softmax_covariance(probabilities: np.ndarray) -> np.ndarray:
    """Λ = Diag(π) − ππᵀ of each row."""
    return np.stack([np.diag(row) - np.outer(row, row) for row in probabilities])


# The manifold and the Hessian along it --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_factor_of_the_softmax_covariance(classes: int) -> None:
    rows = np.random.default_rng(1).dirichlet(np.full(classes, 0.3), size=20) * 0.999 + 0.001 / classes
    with jax.enable_x64(True):
        factors = np.asarray(softmax_factor(jnp.asarray(rows)))
    assert factors.shape == (20, classes - 1, classes)
    np.testing.assert_allclose(np.swapaxes(factors, 1, 2) @ factors, softmax_covariance(rows), atol=1e-15)
    np.testing.assert_allclose(factors @ np.ones(classes), 0, atol=1e-15)


@pytest.mark.parametrize("place", ["off", "on"])
def test_the_loss_is_the_cross_entropy_above_its_minimum(start: Any, place: str) -> None:
    entropy = -np.mean(np.sum(TARGETS * np.log(TARGETS), axis=1))
    params = GUESS if place == "off" else start
    chart = Coordinates.of(start)

    def both(x: Any) -> Any:
        loss = problem().flat_loss(chart, "kernel")
        logits = jax.vmap(lambda z: network(chart.unravel(x), z))(INPUTS)
        expected, slope = jax.value_and_grad(lambda y: cross_entropy(chart.unravel(y)))(x)
        worst = jnp.max(jnp.abs(jax.nn.softmax(logits) - TARGETS))
        found = loss.value(x), problem().loss(chart.unravel(x)), loss.gradient(x), loss.residual(x)
        return found, (expected - entropy, expected - entropy, slope, worst)

    with jax.enable_x64(True):
        found, expected = jax.jit(both)(jnp.asarray(ravel(params)))
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-14)
        assert (abs(float(found[0])) < 1e-14) == (float(found[3]) < 1e-12) == (place == "on")


def test_hessian_on_the_manifold(start: Any, dense: Any) -> None:
    """H by automatic differentiation = (1/n) Σ JᵀΛJ = JᵀJ of the residuals; mutants of Λ are far off."""
    with jax.enable_x64(True):
        jacobian = np.asarray(problem().least_squares_loss(Coordinates.of(start)).rows(jnp.asarray(dense["x"])))
    explicit = np.mean(np.swapaxes(dense["J"], 1, 2) @ softmax_covariance(TARGETS) @ dense["J"], axis=0)
    np.testing.assert_allclose(explicit, dense["H"], atol=1e-13)
    np.testing.assert_allclose(jacobian.T @ jacobian, dense["H"], atol=1e-13)
    assert jacobian.shape == (2 * 2, 24)
    without_outer = np.mean(np.swapaxes(dense["J"], 1, 2) @ (TARGETS[:, :, None] * dense["J"]), axis=0)
    assert np.max(np.abs(without_outer - dense["H"])) > 0.1 * np.max(np.abs(dense["H"]))


def test_the_flow_to_the_manifold_is_that_of_the_cross_entropy(start: Any) -> None:
    """From far off Γ the kernel and the dense route end at the same point, which a mere return to Γ misses."""
    dense_end = ravel(ss.to_manifold(problem(), GUESS, route="dense"))
    assert np.max(np.abs(ravel(start) - dense_end)) < 1e-6
    with jax.enable_x64(True):
        loss = problem().flat_loss(Coordinates.of(start), "kernel")
        returned = mf.return_to_manifold(loss, jnp.asarray(ravel(GUESS)))
        assert float(loss.residual(jnp.asarray(returned))) < 1e-14 < float(loss.residual(jnp.asarray(ravel(GUESS))))
    assert np.max(np.abs(returned - dense_end)) > 1e-2


# Coefficients ---------------------------------------------------------------------------------------------------------

BATCHES = {"one": (1, 1.0), "three": (3, 1 / 3), "full": (None, 1 / 2)}
ROUTES = ("kernel", "dense")


@pytest.mark.parametrize(("route", "batch"), [("kernel", "one"), ("kernel", "full"), ("dense", "three")])
def test_drift_is_minus_a_quarter_over_b_of_the_projected_contraction(
    start: Any, dense: Any, batch: str, route: str
) -> None:
    """−(1/4b) Π S T[S], Π from a singular value decomposition and T[S] from a full third derivative."""
    size, alpha = BATCHES[batch]
    noisy = problem(ss.LabelNoise(batch_size=size))
    found = ss.coefficients(noisy, ss.adam(c=2.0, eps=EPS), start, V, route=route)
    expected = -alpha / 4 * projector(dense) @ (dense["s"] * dense["T"])
    np.testing.assert_allclose(ravel(found.drift), expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(
        ravel(found.v_drift), 2.0 * (alpha * np.diag(dense["H"]) - ravel(V)), rtol=1e-9, atol=1e-12
    )
    assert found.diffusion.shape[1] == 0
    for mutant in (2 * expected, -expected, -alpha / 4 * dense["s"] * dense["T"]):
        assert np.max(np.abs(ravel(found.drift) - mutant)) > 0.1 * np.max(np.abs(expected))


def test_the_lyapunov_drift_of_the_same_covariance_agrees(start: Any, dense: Any) -> None:
    """Gaussian noise with a factor of (1/n) Σ JᵀΛJ knows nothing of −1/4; without the ππᵀ of Λ it drifts elsewhere."""
    optimizer = ss.adam(c=2.0, eps=EPS)
    expected = ravel(ss.coefficients(problem(ss.LabelNoise(batch_size=1)), optimizer, start, V).drift)

    def general(roots: np.ndarray) -> Any:
        factor = np.concatenate(np.swapaxes(dense["J"], 1, 2) @ roots, axis=1) / np.sqrt(2)
        return ss.coefficients(problem(ss.GaussianNoise(factor)), optimizer, start, V)

    values, vectors = np.linalg.eigh(softmax_covariance(TARGETS))
    right = general(vectors * np.sqrt(np.maximum(values, 0))[:, None, :])
    np.testing.assert_allclose(ravel(right.drift), expected, rtol=1e-7, atol=1e-10)
    assert np.max(np.abs(right.diffusion)) < 1e-8
    wrong = general(np.sqrt(TARGETS)[:, :, None] * np.eye(3))
    assert np.max(np.abs(ravel(wrong.drift) - expected)) > 0.1 * np.max(np.abs(expected))


def test_routes_agree_on_noise_that_diffuses(start: Any) -> None:
    noisy = problem(ss.GaussianNoise(np.random.default_rng(4).normal(size=(24, 2))))
    found = [ss.coefficients(noisy, ss.adam(c=2.0, eps=EPS), start, V, route=route) for route in ROUTES]
    np.testing.assert_allclose(ravel(found[0].drift), ravel(found[1].drift), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found[0].diffusion, found[1].diffusion, atol=1e-9)
    assert np.max(np.abs(found[0].diffusion)) > 0.1


def test_coefficients_under_jit_and_vmap(start: Any) -> None:
    noisy, optimizer = problem(ss.LabelNoise(batch_size=1)), ss.adam(c=2.0, eps=EPS)
    expected = ravel(ss.coefficients(noisy, optimizer, start, V).drift)
    with jax.enable_x64(True):
        params, v = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (start, V))
        found = jax.jit(jax.vmap(lambda p, s: ss.coefficients(noisy, optimizer, p, s).drift))(params, v)
    np.testing.assert_allclose(ravel(found), expected, rtol=1e-9, atol=1e-12)


def test_nothing_of_size_p_by_p_is_formed() -> None:
    """Every array on the kernel route at p = 3210 is far smaller than p², other than on the dense route."""
    rng = np.random.default_rng(5)
    params = {"w": rng.normal(size=(40, 40)), "u": rng.normal(size=(40, 40)), "a": rng.normal(size=(1, 10))}
    p = sum(leaf.size for leaf in params.values())

    def net(q: Any, z: Any) -> Any:
        return jnp.tanh(q["u"] @ jnp.tanh(q["w"] @ z))[:3] + q["a"][0, :3]

    large = ss.Classification(net, rng.normal(size=(5, 40)), rng.dirichlet(np.ones(3), 5), ss.LabelNoise(batch_size=1))
    with jax.enable_x64(True):
        x, large = jnp.asarray(ravel(params)), cast(large, "float64")

        def largest(route: str) -> int:
            loss = large.flat_loss(Coordinates.of(params), route)

            def everything(y: Any) -> Any:
                normal = loss.normal_space(y, mf.Diagonal(jnp.ones(p)))
                return (
                    normal.project_gradient(loss.contract_metric(y, normal.metric)),
                    loss.newton_step(y, normal),
                    loss.damped_solver(y, normal.metric, jnp.asarray(0.1))(y),
                    loss.gradient(y),
                    loss.hessian_diagonal(y),
                )

            return largest_array(jax.make_jaxpr(everything)(x).jaxpr)

        assert largest("kernel") < 40 * p
        assert largest("dense") >= p * p


def largest_array(jaxpr: Any) -> int:
    """The size of the largest array computed anywhere in a jaxpr."""
    sizes = [int(np.prod(v.aval.shape)) for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")]
    inner = [
        sub for e in jaxpr.eqns for sub in jax.tree.leaves(list(e.params.values()), is_leaf=is_jaxpr) if is_jaxpr(sub)
    ]
    return max(sizes + [largest_array(getattr(sub, "jaxpr", sub)) for sub in inner], default=0)


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


# Labels drawn from the targets ----------------------------------------------------------------------------------------

DRAWS = 40_000


@pytest.mark.parametrize("batch", BATCHES)
def test_drawn_gradients_have_covariance_hessian_over_b(start: Any, dense: Any, batch: str) -> None:
    """Entries of the covariance of 40 000 draws are within 5 s.e. of H/b = BBᵀ, and of no mutant."""
    size, alpha = BATCHES[batch]
    noise = ss.LabelNoise(batch_size=size)
    noisy = problem(noise)
    with jax.enable_x64(True):
        chart, x = Coordinates.of(start), jnp.asarray(dense["x"])
        factor = np.asarray(noise.factor(noisy, chart, x))
        keys = jr.split(jr.key(0), DRAWS)
        draws = np.asarray(jax.jit(jax.vmap(lambda key: noise.gradient(noisy, chart, x, key)))(keys))
    np.testing.assert_allclose(factor @ factor.T, alpha * dense["H"], atol=1e-13)
    assert np.all(np.abs(draws.mean(axis=0)) < 5 * draws.std(axis=0) / np.sqrt(DRAWS))
    entries = np.einsum("ni,nj->nij", draws[:, ::3], draws[:, ::3]).reshape(DRAWS, -1)
    error = entries.std(axis=0) / np.sqrt(DRAWS)

    def score(covariance: np.ndarray) -> float:
        return float(np.max(np.abs(entries.mean(axis=0) - covariance[::3, ::3].ravel()) / error))

    without_outer = np.mean(np.swapaxes(dense["J"], 1, 2) @ (TARGETS[:, :, None] * dense["J"]), axis=0)
    assert score(alpha * dense["H"]) < 5
    assert score(1.1 * alpha * dense["H"]) > 6
    assert score(alpha * without_outer) > 20


OBSERVABLES = ("trace_hessian", "trace_sqrt_diag_hessian")
RUNS = {"adam": (ss.adam(c=1.0, eps=EPS), (0.08, 0.03, 0.015), 0.5, 2), "sgd": (ss.sgd(0.5), (0.4, 0.1, 0.04), 1.0, 1)}


@pytest.mark.parametrize("name", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_discrete_runs_approach_the_slow_flow_as_the_learning_rate_falls(start: Any, name: str) -> None:
    """256 runs each. The gap at t1 falls, to 3 % of what moves or 4 s.e.; a flow twice as fast would be 20 s.e. off."""
    optimizer, rates, t1, batch = RUNS[name]
    noisy = problem(ss.LabelNoise(batch_size=batch))
    slow = ss.simulate(noisy, optimizer, start, 2 * t1, save_at=5, metrics=OBSERVABLES)
    runs = [
        ss.run_discrete(noisy, optimizer, start, t1, lr=lr, paths=256, save_at=3, metrics=OBSERVABLES) for lr in rates
    ]
    compared = [ss.compare(slow, run) for run in runs]
    assert np.max(slow.stats["residual"]) < 1e-12
    for observable in OBSERVABLES:
        gaps = [abs(c.gap[observable][-1]) for c in compared]
        errors = [c.standard_error[observable][-1] for c in compared]
        moved = np.ptp(compared[-1].slow_mean[observable])
        assert gaps[2] < 0.03 * moved + 4 * errors[2]
        assert gaps[2] < gaps[0] + 4 * np.hypot(errors[0], errors[2])
        if name == "adam":  # resolved: the gap falls beyond its errors
            assert gaps[1] < 0.5 * gaps[0] - 4 * errors[1]
        twice_as_fast = slow.metrics[observable][0, -1]
        assert abs(compared[-1].discrete_mean[observable][-1] - twice_as_fast) > 20 * errors[2]


def test_solvers_agree_and_the_run_is_described(start: Any) -> None:
    """Implicit against explicit (the run of the test above); `validity` finds finite ratios."""
    optimizer, _, t1, batch = RUNS["adam"]
    noisy = problem(ss.LabelNoise(batch_size=batch))
    runs = [
        ss.simulate(noisy, optimizer, start, 2 * t1, save_at=5, metrics=OBSERVABLES, solver=solver)
        for solver in ("auto", "tsit5")
    ]
    assert [run.stats["solver"] for run in runs] == ["implicit", "tsit5"]
    for name in OBSERVABLES:
        np.testing.assert_allclose(runs[1].metrics[name], runs[0].metrics[name], rtol=1e-4)
    assert runs[0].stats["route"] == "kernel"
    assert runs[0].stats["rank"] == 4
    ratios = ss.validity(noisy, optimizer, runs[0], lr=0.01).ratios
    assert all(np.all(np.isfinite(ratio) & (ratio >= 0)) for ratio in ratios.values())


def test_the_sharpness_of_single_samples(start: Any, dense: Any) -> None:
    """max_i tr JᵢᵀΛᵢJᵢ S − λ_max, over b: what single samples add to the stability edge."""
    with jax.enable_x64(True):
        sde = slow_sde(problem(ss.LabelNoise(batch_size=2)), ss.sgd(), Coordinates.of(start))
        x = jnp.asarray(dense["x"])
        found = float(sampling_eigenvalue(sde, x, mf.Identity(), sde.loss.normal_space(x, mf.Identity()).largest))
    single = np.swapaxes(dense["J"], 1, 2) @ softmax_covariance(TARGETS) @ dense["J"]
    expected = (np.max(np.trace(single, axis1=1, axis2=2)) - np.linalg.eigvalsh(dense["H"])[-1]) / 2
    assert found == pytest.approx(expected, rel=1e-10)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.eye(3)[:2], r"targets\[0\] = .* strictly between 0 and 1.*\n?.*Smooth them"),
        (np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), r"targets\[0\].*strictly between"),
        (
            np.array([[0.2, 0.3, 0.5], [0.2, np.nan, 0.5]]),
            r"targets has 1 entries that are NaN .* the first at \(1, 1\)",
        ),
        (np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.4]]), r"targets\[1\] sums to 1.1, not to 1"),
        (np.array([0, 2]), r"targets has shape \(2,\).*smooth one-hot rows"),
        (np.full((2, 1), 1.0), r"targets has shape \(2, 1\); .* K ≥ 2"),
        (np.full((3, 3), 1 / 3), "inputs and targets must be arrays with one common leading axis"),
    ],
)
def test_unfit_targets(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.Classification(network, INPUTS, targets)


def test_targets_in_single_precision_are_scaled_to_sum_to_one() -> None:
    found = ss.Classification(network, INPUTS, TARGETS.astype(np.float32)).targets
    np.testing.assert_allclose(np.sum(found, axis=1), 1, atol=1e-15)


def test_logits_that_do_not_fit_the_targets() -> None:
    for logits in (lambda p, z: network(p, z)[:2], lambda p, z: network(p, z)[None], lambda p, z: p["b"][0]):
        with pytest.raises(ValueError, match=r"logits returns shape .* one number for each of the 3 classes"):
            ss.to_manifold(ss.Classification(logits, INPUTS, TARGETS), GUESS)


def test_label_noise_that_does_not_fit() -> None:
    for noise in (ss.LabelNoise(0.5), ss.LabelNoise(kind="normal")):
        with pytest.raises(ValueError, match="does not suit Classification"):
            ss.simulate(problem(noise), ss.sgd(), GUESS, 1.0)
    line = ss.LeastSquares(lambda w, z: z @ w, INPUTS, np.ones(2), ss.LabelNoise(batch_size=1))
    with pytest.raises(ValueError, match=r"std=None.*give std"):
        ss.simulate(line, ss.sgd(), np.ones(2), 1.0)
    with pytest.raises(ValueError, match="noise vanishes on the manifold"):
        ss.simulate(problem(ss.MinibatchNoise(1)), ss.sgd(), GUESS, 1.0)


def test_targets_that_cannot_be_fitted() -> None:
    """One input with two targets: no interpolation."""
    twice = ss.Classification(network, np.stack([INPUTS[0]] * 2), TARGETS, ss.LabelNoise(batch_size=1))
    with pytest.raises(ValueError, match=r"do not interpolate|does not converge"):
        ss.simulate(twice, ss.sgd(), GUESS, 1.0)


def test_accuracy_asks_for_class_numbers() -> None:
    with pytest.raises(ValueError, match=r"labels has shape \(2, 3\)"):
        ss.metrics.accuracy(network, INPUTS, TARGETS)
    best = [int(np.argmax(network(GUESS, z))) for z in INPUTS]
    for labels, share in ((best, 1.0), ([best[0], (best[1] + 1) % 3], 0.5)):
        assert float(ss.metrics.accuracy(network, INPUTS, labels)(problem(), GUESS)) == share

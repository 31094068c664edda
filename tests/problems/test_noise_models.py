"""Noise beyond one standard deviation: minibatches, labels of several outputs, labels that differ, samplers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import slowsde as ss
from manifolds.support.coordinates import Coordinates, ravel

RNG = np.random.default_rng(7)
INPUTS = RNG.normal(size=(2, 2))
TARGETS = 0.5 * RNG.normal(size=(2, 2))
GUESS = {"a": RNG.normal(size=(2, 3)), "w": RNG.normal(size=(3, 2))}
V = jax.tree.map(lambda leaf: 0.1 + np.abs(leaf), GUESS)
EPS = 0.1
ADAM = ss.adam(c=1.0, eps=EPS)


def network(p: Any, z: Any) -> Any:
    """Two outputs, 12 parameters."""
    return p["a"] @ jnp.tanh(p["w"] @ z)


def regression(noise: Any = None) -> ss.LeastSquares:
    return ss.LeastSquares(network, INPUTS, TARGETS, noise)


@pytest.fixture(scope="module")
def start() -> Any:
    return ss.to_manifold(regression(), GUESS)


@pytest.fixture(scope="module")
def geometry(start: Any) -> dict[str, np.ndarray]:
    """x, the Jacobians of the outputs (n, k, p), H, ∇³L and S at the state V, by automatic differentiation."""
    chart = Coordinates.of(start)

    def everything(x: Any) -> Any:
        hessian = jax.hessian(lambda y: 0.5 * jnp.mean(jnp.sum((outputs(y) - TARGETS) ** 2, axis=1)))
        return jax.jacobian(outputs)(x), hessian(x), jax.jacobian(hessian)(x)

    def outputs(x: Any) -> Any:
        return jnp.stack([network(chart.unravel(x), z) for z in INPUTS])

    with jax.enable_x64(True):
        x = jnp.asarray(ravel(start))
        jacobian, hessian, third = map(np.asarray, jax.jit(everything)(x))
    return {"x": np.asarray(x), "J": jacobian, "H": hessian, "T": third, "s": 1 / (np.sqrt(ravel(V)) + EPS)}


def lyapunov_drift(geometry: dict[str, np.ndarray], covariance: np.ndarray) -> np.ndarray:
    """−½ Π S T[C] for noise normal to Γ, in NumPy, from the full third derivative."""
    half = np.sqrt(geometry["s"])
    values, q = np.linalg.eigh(half[:, None] * geometry["H"] * half)
    normal = values > 1e-9
    inner = q.T @ (half[:, None] * covariance * half) @ q
    weights = np.where(
        normal[:, None] & normal, 1 / np.where(normal[:, None] & normal, np.add.outer(values, values), 1), 0
    )
    c = half[:, None] * (q @ (weights * inner) @ q.T) * half
    contraction = np.einsum("ijk,ij->k", geometry["T"], c)
    projector = half[:, None] * (q[:, ~normal] @ q[:, ~normal].T) / half
    return -0.5 * projector @ (geometry["s"] * contraction)


def covariance_score(draws: np.ndarray, covariance: np.ndarray) -> float:
    """The largest distance of a sample covariance (about 0) from `covariance`, in standard errors of its entries."""
    products = np.einsum("ni,nj->nij", draws, draws)
    error = products.std(axis=0) / np.sqrt(len(draws))
    return float(np.max(np.abs(products.mean(axis=0) - covariance) / (error + 1e-12)))


def draw(problem: Any, x: Any, like: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` stochastic gradients at x, and B Bᵀ."""
    chart = Coordinates.of(like)
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        factor = np.asarray(problem.noise.factor(problem, chart, x))
        one = jax.jit(jax.vmap(lambda key: problem.noise.gradient(problem, chart, x, key)))
        return np.asarray(one(jr.split(jr.key(3), count))), factor @ factor.T


# Label noise: several outputs, and standard deviations that differ ----------------------------------------------------

PER_SAMPLE = np.array([0.2, 1.0])
STDS = {
    "one": (0.5, np.full((2, 2), 0.5)),
    "per sample": (PER_SAMPLE, np.stack([PER_SAMPLE, PER_SAMPLE], axis=1)),
    "per output": (PER_SAMPLE[None], np.stack([PER_SAMPLE, PER_SAMPLE])),
    "per entry": (np.array([[0.0, 1.0], [0.5, 0.2]]), np.array([[0.0, 1.0], [0.5, 0.2]])),
}


def label_covariance(geometry: dict[str, np.ndarray], stds: np.ndarray, batch: int) -> np.ndarray:
    """(1/(n b)) Σ_i Jᵢᵀ Diag(stdᵢ²) Jᵢ."""
    return np.einsum("ikp,ik,ikq->pq", geometry["J"], stds**2, geometry["J"]) / (2 * batch)


@pytest.mark.parametrize("name", STDS)
@pytest.mark.parametrize("batch", [1, None])
def test_label_noise_of_several_outputs(start: Any, geometry: Any, name: str, batch: int | None) -> None:
    """Covariance of 20 000 draws within 5 s.e. of BBᵀ, the formula; that of labels with the mean variance is not."""
    std, entries = STDS[name]
    problem = regression(ss.LabelNoise(std, batch_size=batch))
    expected = label_covariance(geometry, entries, batch or 2)
    draws, found = draw(problem, geometry["x"], start, 20_000)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    assert covariance_score(draws, expected) < 5
    even = label_covariance(geometry, np.full((2, 2), np.sqrt(np.mean(entries**2))), batch or 2)
    if name == "one":
        np.testing.assert_allclose(expected, 0.25 / (batch or 2) * geometry["H"], atol=1e-13)  # Σ = αH
        assert covariance_score(draws, 1.2 * expected) > 8
    else:
        assert covariance_score(draws, even) > 20


@pytest.mark.parametrize(("name", "route"), [("one", "kernel"), ("per sample", "kernel"), ("per entry", "dense")])
def test_drift_of_label_noise_is_that_of_its_lyapunov_equation(
    start: Any, geometry: Any, name: str, route: str
) -> None:
    std, entries = STDS[name]
    found = ss.coefficients(regression(ss.LabelNoise(std, batch_size=1)), ADAM, start, V, route=route)
    expected = lyapunov_drift(geometry, label_covariance(geometry, entries, 1))
    np.testing.assert_allclose(ravel(found.drift), expected, rtol=1e-8, atol=1e-10)
    assert found.diffusion.shape[1] == 0
    if name != "one":
        even = lyapunov_drift(geometry, np.mean(entries**2) * geometry["H"])
        assert np.max(np.abs(expected - even)) > 0.05 * np.max(np.abs(expected))


def test_noise_of_different_labels_is_normal_to_the_manifold(start: Any, geometry: Any) -> None:
    """Π S B = 0, although Σ is no multiple of H: the same factor as Gaussian noise, which is taken to diffuse."""
    noise = ss.LabelNoise(PER_SAMPLE, batch_size=1)
    with jax.enable_x64(True):
        factor = np.asarray(noise.factor(regression(), Coordinates.of(start), jnp.asarray(geometry["x"])))
    general = ss.coefficients(regression(ss.GaussianNoise(factor)), ADAM, start, V)
    assert np.max(np.abs(general.diffusion)) < 1e-10
    special = ss.coefficients(regression(noise), ADAM, start, V)
    np.testing.assert_allclose(ravel(general.drift), ravel(special.drift), rtol=1e-8, atol=1e-11)
    assert not noise.diffuses(regression())
    assert noise.hessian_scale(regression()) is None
    assert float(ss.LabelNoise(np.full(2, 0.5), batch_size=2).hessian_scale(regression())) == 0.125


@pytest.mark.slow
def test_discrete_runs_of_different_labels_approach_the_slow_ode(start: Any) -> None:
    """256 runs each; the gap falls to 3 % or 4 s.e. A flow with the mean variance is more than 10 s.e. off."""
    std, options = np.array([0.2, 1.5]), {"save_at": 3, "metrics": ("trace_hessian",)}
    problem = regression(ss.LabelNoise(std, batch_size=1))
    even = np.sqrt(np.mean(std**2)) * np.array([1, 1 + 1e-12])  # still an array, for the same compiled code
    slow = ss.simulate(problem, ADAM, start, 0.4, **options)
    mutant = ss.simulate(regression(ss.LabelNoise(even, batch_size=1)), ADAM, start, 0.4, **options)
    assert slow.stats["solver"] == "tsit5"
    runs = [ss.run_discrete(problem, ADAM, start, 0.4, lr=lr, paths=256, **options) for lr in (0.06, 0.015)]
    compared = [ss.compare(slow, run) for run in runs]
    gaps = [abs(c.gap["trace_hessian"][-1]) for c in compared]
    errors = [c.standard_error["trace_hessian"][-1] for c in compared]
    assert gaps[1] < gaps[0] + 4 * np.hypot(*errors)
    assert gaps[1] < 0.03 * np.ptp(slow.metrics["trace_hessian"]) + 4 * errors[1]
    assert abs(ss.compare(mutant, runs[1]).gap["trace_hessian"][-1]) > 10 * errors[1]


def test_unfit_standard_deviations(start: Any) -> None:
    with pytest.raises(ValueError, match="solver='implicit' needs noise with Σ = αH"):
        ss.simulate(regression(ss.LabelNoise(PER_SAMPLE)), ADAM, start, 1.0, solver="implicit")
    for std in (np.ones(3), np.arange(3.0), np.ones((2, 3)), np.arange(8.0).reshape(2, 2, 2)):
        with pytest.raises(ValueError, match=r"std has shape .* but targets \(2, 2\)"):
            ss.coefficients(regression(ss.LabelNoise(std)), ADAM, start)
    for std in (np.array([-1.0, 1.0]), np.zeros(2), np.array([np.nan, 1.0]), "loud", [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"std=.* must be a positive number"):
            ss.LabelNoise(std)
    with pytest.raises(ValueError, match=r"std=None.*give std"):
        ss.coefficients(regression(ss.LabelNoise()), ADAM, start)


# Minibatches of samples that disagree on Γ ----------------------------------------------------------------------------

DATA = RNG.normal(size=(12, 2))
DATA -= DATA.mean(axis=0)  # so that the mean loss is ½(1 + ½ sin y)x², with Γ = {x = 0}


def disagreeing(x: Any, z: Any) -> Any:
    return 0.5 * (1 + 0.5 * jnp.sin(x[1])) * x[0] ** 2 + z[0] * x[0] + 0.2 * z[1] * jnp.sin(x[1])


def test_minibatch_noise_of_samples_that_disagree() -> None:
    """Covariance and coefficients in closed form: dy = −¼ S_x S_y Σ_xx (ln h)' dt + ..., h = 1 + ½ sin y."""
    y = 0.3
    problem = ss.EmpiricalRisk(disagreeing, DATA, ss.MinibatchNoise(3))
    gradients = np.stack([DATA[:, 0], 0.2 * np.cos(y) * DATA[:, 1]], axis=1)
    covariance = gradients.T @ gradients / (12 * 3)
    draws, found = draw(problem, np.array([0.0, y]), np.zeros(2), 20_000)
    np.testing.assert_allclose(found, covariance, atol=1e-14)
    assert covariance_score(draws, covariance) < 5
    assert covariance_score(draws, 1.2 * covariance) > 8
    point = np.array([0.0, y])
    v = np.array([0.3, 0.05])
    found = ss.coefficients(problem, ADAM, point, v)
    s = 1 / (np.sqrt(v) + EPS)
    h, slope = 1 + 0.5 * np.sin(y), 0.5 * np.cos(y)
    # C_xx = S_x Σ_xx/(2h), and only ∂_y ∂_x² L = h' enters along Γ; C_xy meets ∂_y² ∂_x L = 0.
    expected = -0.5 * s[1] * slope * s[0] * covariance[0, 0] / (2 * h)
    assert found.drift[1] == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(
        found.diffusion @ found.diffusion.T, np.diag([0, s[1] ** 2 * covariance[1, 1]]), atol=1e-12
    )


@pytest.mark.slow
def test_runs_with_minibatches_of_samples_that_disagree() -> None:
    """1024 runs of RMSProp against as many slow paths: first two moments within 4 s.e. and 0.01."""
    y, point = 0.3, np.array([0.0, 0.3])
    problem = ss.EmpiricalRisk(disagreeing, DATA, ss.MinibatchNoise(3))
    options: dict[str, Any] = {"paths": 1024, "save_at": 2, "metrics": {"y": lambda x: x[1], "y²": lambda x: x[1] ** 2}}
    optimizer = ss.rmsprop(c=1.0, eps=EPS)
    slow = ss.simulate(problem, optimizer, point, 0.3, dt=0.01, **options)
    fast = ss.run_discrete(problem, optimizer, point, 0.3, lr=0.02, key=jr.key(1), **options)
    compared = ss.compare(slow, fast)
    for name in ("y", "y²"):
        assert abs(compared.gap[name][-1]) < 4 * compared.standard_error[name][-1] + 0.01
    assert abs(compared.slow_mean["y"][-1] - y) > 10 * compared.standard_error["y"][-1]


# Noise known by its draws ---------------------------------------------------------------------------------------------

ROOT = RNG.normal(size=(12, 12)) / 4


def gaussian_sampler(params: Any, key: Any) -> Any:
    """∇L + B ξ with a B that depends smoothly on params."""
    chart = Coordinates.of(params)
    x = ravel(params)
    slope = jax.grad(lambda y: regression().loss(chart.unravel(y)))(x)
    return chart.unravel(slope + true_factor(x) @ jr.normal(key, (12,), dtype=x.dtype))


def true_factor(x: Any) -> Any:
    return (1 + 0.3 * x[0] ** 2) * jnp.asarray(ROOT, x.dtype)


def sampled_factor(noise: Any, like: Any, x: Any) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(jax.jit(lambda y: noise.factor(regression(), Coordinates.of(like), y))(jnp.asarray(x)))


def test_a_sampler_is_known_to_the_error_it_reports(start: Any, geometry: Any) -> None:
    """Over 40 seeds the errors of tr Σ̂ and Σ̂ have the size that `error` says, and Σ̂ is unbiased to 4 s.e."""
    x, n = geometry["x"], 200
    with jax.enable_x64(True):
        root = np.asarray(true_factor(jnp.asarray(x)))
        chart, noise = Coordinates.of(start), ss.SampledNoise(gaussian_sampler, n)

        def seeded(seed: Any) -> Any:
            return eqx.tree_at(lambda s: s.seed, noise, seed).factor(regression(), chart, jnp.asarray(x))

        factors = np.asarray(jax.jit(jax.vmap(seeded))(jnp.arange(40)))
    covariance, found = root @ root.T, factors @ np.swapaxes(factors, 1, 2)
    assert factors.shape == (40, 12, n)
    np.testing.assert_allclose(
        factors[3], sampled_factor(ss.SampledNoise(gaussian_sampler, n, seed=3), start, x), atol=1e-13
    )
    spread = found.std(axis=0) / np.sqrt(40)
    assert np.max(np.abs(found.mean(axis=0) - covariance) / spread) < 4.5
    wrong = found * (n - 1) / n * 1.1
    assert np.max(np.abs(wrong.mean(axis=0) - covariance) / spread) > 6
    reported = ss.SampledNoise(gaussian_sampler, n).error(regression(), start)
    traces = np.trace(found, axis1=1, axis2=2) / np.trace(covariance) - 1
    assert float(reported["noise_error"]) == pytest.approx(np.std(traces), rel=0.4)
    distances = np.linalg.norm(found - covariance, axis=(1, 2)) / np.linalg.norm(covariance)
    assert float(reported["noise_covariance_error"]) == pytest.approx(np.sqrt(np.mean(distances**2)), rel=0.3)
    assert float(reported["noise_bias"]) < 3
    assert float(reported["noise_lost"]) < 1e-12
    four_times = ss.SampledNoise(gaussian_sampler, 4 * n).error(regression(), start)
    assert float(four_times["noise_error"]) == pytest.approx(float(reported["noise_error"]) / 2, rel=0.25)


def test_a_sampled_covariance_is_a_smooth_function_of_params(start: Any, geometry: Any) -> None:
    """Its derivative is that of the formula up to the sampling error: draws at fixed keys, not fresh ones."""
    x, h = geometry["x"], 1e-6
    step = np.eye(12)[0] * h
    noise = ss.SampledNoise(gaussian_sampler, 400)
    here, there = (sampled_factor(noise, start, point) for point in (x, x + step))
    change = (np.trace(there @ there.T) - np.trace(here @ here.T)) / h
    expected = 2 * 0.6 * x[0] / (1 + 0.3 * x[0] ** 2) * np.trace(here @ here.T)
    assert change == pytest.approx(expected, rel=0.02)


def test_leading_components_of_a_sampled_covariance(start: Any, geometry: Any) -> None:
    full = sampled_factor(ss.SampledNoise(gaussian_sampler, 50), start, geometry["x"])
    values = np.linalg.eigvalsh(full @ full.T)
    kept = sampled_factor(ss.SampledNoise(gaussian_sampler, 50, rank=12), start, geometry["x"])
    np.testing.assert_allclose(kept @ kept.T, full @ full.T, atol=1e-12)
    few = ss.SampledNoise(gaussian_sampler, 50, rank=4)
    factor = sampled_factor(few, start, geometry["x"])
    assert factor.shape == (12, 4)
    np.testing.assert_allclose(np.linalg.eigvalsh(factor.T @ factor), values[-4:], rtol=1e-10)
    lost = float(few.error(regression(), start)["noise_lost"])
    assert lost == pytest.approx(1 - values[-4:].sum() / values.sum(), rel=1e-8)


def test_coefficients_of_a_sampler_are_those_of_its_factor_to_the_reported_error(start: Any) -> None:
    """4000 draws: drift and diffusion within four times the reported 6 % of Σ; a noise 60 % larger is not."""
    sampler = ss.SampledNoise(gaussian_sampler, 4000, rank=12)
    optimizer = ss.adam(c=1.0, eps=0.3)
    reported = float(sampler.error(regression(), start)["noise_covariance_error"])
    with jax.enable_x64(True):
        root = np.asarray(true_factor(jnp.asarray(ravel(start))))
    found, right, wrong = (
        ss.coefficients(regression(noise), optimizer, start, V)
        for noise in (sampler, ss.GaussianNoise(root), ss.GaussianNoise(np.sqrt(1.6) * root))
    )

    def distances(exact: Any) -> list[float]:
        pairs = [(ravel(c.drift), c.diffusion @ c.diffusion.T) for c in (exact, found)]
        return [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(*pairs, strict=True)]

    assert 0.03 < reported < 0.08
    assert max(distances(right)) < 4 * reported < min(distances(wrong))


@pytest.mark.slow
def test_a_run_with_sampled_noise_tells_its_error(start: Any) -> None:
    sampled = regression(ss.SampledNoise(gaussian_sampler, 100, rank=12))
    run = ss.simulate(sampled, ss.sgd(), start, 0.05, paths=2, save_at=2, dt=0.025)
    assert 0.02 < run.stats["noise_error"] < 0.2
    assert run.stats["noise_bias"] < 4
    assert np.max(run.stats["residual"]) < 1e-12


def test_unfit_samplers(start: Any) -> None:
    def doubled(params: Any, key: Any) -> Any:
        return jax.tree.map(lambda g: g + 0.5, gaussian_sampler(params, key))

    with pytest.raises(ValueError, match="sample is not an unbiased gradient of the loss"):
        ss.simulate(regression(ss.SampledNoise(doubled)), ss.sgd(), start, 1.0)
    with pytest.raises(ValueError, match=r"sample returns arrays of shapes \[\(2, 3\)\]"):
        ss.simulate(regression(ss.SampledNoise(lambda p, key: p["a"])), ss.sgd(), start, 1.0)
    for kwargs, message in (
        ({"sample": 3.0}, "sample=3.0 must be a function"),
        ({"draws": 1}, "draws=1 must be an integer of at least 2"),
        ({"rank": 0}, "rank=0 must be an integer from 1 to draws=256"),
        ({"rank": 257}, "rank=257"),
        ({"seed": 0.5}, "seed=0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            ss.SampledNoise(**({"sample": gaussian_sampler} | kwargs))

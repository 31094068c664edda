"""Orders of the tangential Euler step in its length: weak against closed forms, strong on coupled Brownian paths.

Weak errors are measured twice: without any randomness, by composing the transition operator of the library's own step
by quadrature; and on runs of `simulate`, with control variates driven by the same increments whose means are known.
"""

import functools
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import norm
from scipy.stats import t as student
from test_valley import EPS, SIGMA, V0, Y0, C, exact_moments, state, valley

import manifolds as mf
import slowsde as ss
from manifolds.maps.return_map import Returned, gauss_newton_return
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.diffusion import step_grid
from slowsde.dynamics.slow_sde import SlowSDE, slow_sde
from slowsde.dynamics.solvers.brownian import StepBrownianPath, step_keys
from slowsde.dynamics.solvers.euler import ManifoldEuler
from slowsde.dynamics.solvers.state import SlowDiffusion, SlowFlow, SlowState
from slowsde.dynamics.start import start_on_manifold

# The ellipse (a cos φ, b sin φ), L = ½ r² with r = (x²/a² + y²/b² − 1)/√2, and a constant metric S = Diag(s) ≠ I. With
# τ = dζ/dφ, g = τᵀ S⁻¹ τ and N = ∇rᵀ S ∇r, the noise B = (S⁻¹ τ/√g, β ∇r) has
#     Π S B = (τ/√g, 0): Brownian motion of unit speed in the metric S⁻¹, in which Π is the orthogonal projection, and
#     C = β² S ∇r ∇rᵀ S/(2N), so that −½ Π S T[C] = −¼ β² Π S ∇N, the gradient flow of ¼ β² N in the metric S⁻¹.
# In the arc length u of S⁻¹, du = √g dφ, thus du = −¼ β² N'(u) du + dW, and by Itô's formula
#     dφ = −(¼ β² N'(φ)/g + ¼ g'(φ)/g²) dt + g^-½ dW.
AXES, S, BETA, PHI0, T = np.array([1.0, 0.8]), np.array([0.8, 1.4]), 0.7, 0.6, 0.25
WAVES: dict[str, Callable[[Any], Any]] = {"cos": np.cos, "sin": np.sin, "cos 2": lambda phi: np.cos(2 * phi)}


def speed(phi: Any) -> tuple[Any, Any]:
    """g and g'."""
    first, second = AXES**2 / S
    return first * np.sin(phi) ** 2 + second * np.cos(phi) ** 2, (first - second) * np.sin(2 * phi)


def angle_sde(phi: Any) -> tuple[Any, Any, Any]:
    """Drift, diffusion and the derivative of the diffusion of φ."""
    g, dg = speed(phi)
    first, second = 2 * S / AXES**2
    dN = (second - first) * np.sin(2 * phi)
    return -0.25 * BETA**2 * dN / g - 0.25 * dg / g**2, g**-0.5, -0.5 * dg * g**-1.5


def ellipse_problem() -> tuple[ss.Problem, ss.AGM]:
    a, b = AXES

    def loss(x: Any) -> Any:
        return 0.25 * (x[0] ** 2 / a**2 + x[1] ** 2 / b**2 - 1) ** 2

    def factor(x: Any) -> Any:
        tangent = jnp.stack([-a * x[1] / b, b * x[0] / a]) / S
        gradient = jnp.sqrt(2.0) * x / AXES**2
        return jnp.stack([tangent / jnp.sqrt(tangent @ (S * tangent)), BETA * gradient], axis=1)

    return ss.Problem(loss, ss.GaussianNoise(factor)), ss.AGM(V=lambda g: None, S=lambda v: mf.Diagonal(S), c=1.0)


def point(phi: Any) -> Any:
    return np.stack([AXES[0] * np.cos(phi), AXES[1] * np.sin(phi)], axis=-1)


def angle(x: Any) -> Any:
    return np.arctan2(x[..., 1] / AXES[1], x[..., 0] / AXES[0])


class Increment(dfx.AbstractPath):
    """A driver whose increment is given, whatever the interval."""

    value: jax.Array
    t0: float = 0.0
    t1: float = 1.0

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> jax.Array:
        return self.value


def one_step(slow: SlowState, x: Any, h: Any, dW: Any) -> Any:
    """ζ after one step of the library's solver."""
    terms = dfx.MultiTerm(dfx.ODETerm(SlowFlow(slow)), dfx.ControlTerm(SlowDiffusion(slow), Increment(dW)))
    return ManifoldEuler(slow).step(terms, jnp.zeros(()), h, (x, None), None, None, False)[0][0]


def slow_state(problem: ss.Problem, optimizer: ss.AGM, x0: np.ndarray) -> SlowState:
    sde = slow_sde(problem, optimizer, Coordinates.of(x0))
    return start_on_manifold(sde, jnp.asarray(x0), None, None)[0]


# Weak error without randomness --------------------------------------------------------------------

MODES = 61
GRID = PHI0 + 2 * np.pi * np.arange(MODES) / MODES
NORMAL, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def cardinal(phi: np.ndarray) -> np.ndarray:
    """Trigonometric interpolation from GRID: (..., MODES)."""
    half = (phi[..., None] - GRID) / 2
    near = np.abs(np.sin(half)) < 1e-13
    return np.where(near, 1.0, np.sin(MODES * half) / (MODES * np.where(near, 1.0, np.sin(half))))


def operator(after: np.ndarray) -> np.ndarray:
    """(MODES, MODES): f ↦ E f(φ₊) on GRID, from φ₊ at every grid point and Gaussian node (MODES, nodes)."""
    return np.einsum("q,iqj->ij", WEIGHTS, cardinal(after))


def expectation(transition: np.ndarray, steps: int, f: Callable[[Any], Any]) -> float:
    """E f(φ_steps) from φ0 = PHI0 = GRID[0]."""
    return float((np.linalg.matrix_power(transition, steps) @ f(GRID))[0])


def exact_expectation(f: Callable[[Any], Any], t: float = T) -> float:
    """E f(φ(t)) from the backward equation ∂u/∂t = μ u' + ½ σ² u'', by Fourier collocation."""
    half = (GRID[:, None] - GRID[None, :]) / 2
    signs = (-1.0) ** (np.arange(MODES)[:, None] - np.arange(MODES)[None, :])
    off = ~np.eye(MODES, dtype=bool)
    first = np.where(off, 0.5 * signs / np.where(off, np.sin(half), 1.0), 0.0)
    drift, diffusion, _ = angle_sde(GRID)
    generator = drift[:, None] * first + 0.5 * diffusion[:, None] ** 2 * (first @ first)
    return float((expm(t * generator) @ f(GRID))[0])


def library_operators(lengths: np.ndarray) -> list[np.ndarray]:
    """The transition operators of the library's steps of these lengths on the ellipse."""
    with jax.enable_x64(True):
        slow = slow_state(*ellipse_problem(), point(PHI0))

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(0, None, None))
        @functools.partial(jax.vmap, in_axes=(None, 0, None))
        def after(x: Any, xi: Any, h: Any) -> Any:
            return one_step(slow, x, h, jnp.sqrt(h) * jnp.stack([xi, jnp.zeros(())]))

        return [operator(angle(np.asarray(after(point(GRID), NORMAL, h)))) for h in lengths]


def milstein(phi: Any, h: float, dW: Any) -> Any:
    """One Milstein step of the angle, a control variate; NumPy, and nothing of the library in it."""
    drift, diffusion, slope = angle_sde(phi)
    return phi + drift * h + diffusion * dW + 0.5 * diffusion * slope * (dW**2 - h)


def milstein_operator(h: float) -> np.ndarray:
    return operator(milstein(GRID[:, None], h, np.sqrt(h) * NORMAL))


def quadrature_errors(steps: np.ndarray) -> dict[str, np.ndarray]:
    """name -> weak errors at T of the library's step with T/steps."""
    transitions = library_operators(T / steps)
    return {
        name: np.array([expectation(P, n, f) for P, n in zip(transitions, steps, strict=True)]) - exact_expectation(f)
        for name, f in WAVES.items()
    }


def local_orders(errors: np.ndarray) -> np.ndarray:
    """log2 of the ratio of successive errors, each step half the last."""
    return np.log2(np.abs(errors[:-1] / errors[1:]))


FINE = np.array([32, 64, 128, 256, 512])


def test_the_reference_is_exact_where_the_angle_is_known() -> None:
    """Itô's formula: the arc length in the metric S⁻¹ is a Brownian motion but for the drift −¼ β² N'(u)."""
    for name, f in WAVES.items():
        fine = [expectation(milstein_operator(T / n), n, f) for n in (256, 512)]
        assert 2 * fine[1] - fine[0] == pytest.approx(exact_expectation(f), abs=1e-6), name
    with jax.enable_x64(True):
        problem, optimizer = ellipse_problem()
    for phi in (0.3, 1.1, 2.5):
        found = ss.coefficients(problem, optimizer, point(phi))
        drift, diffusion, _ = angle_sde(phi)
        tangent = np.array([-AXES[0] * np.sin(phi), AXES[1] * np.cos(phi)])
        np.testing.assert_allclose(found.diffusion, np.stack([diffusion * tangent, 0 * tangent], axis=1), atol=1e-12)
        np.testing.assert_allclose(found.drift, drift * tangent - 0.5 * diffusion**2 * point(phi), rtol=1e-9)


def test_weak_order_one_on_an_ellipse_with_an_oblique_metric() -> None:
    """Without noise there is no interval: the order between two steps goes to 1 linearly in the step."""
    for name, errors in quadrature_errors(FINE).items():
        orders = local_orders(errors)
        print(f"{name}: errors {errors}, orders {orders}")
        assert abs(orders[-1] - 1) < 0.03, name
        assert abs(2 * orders[-1] - orders[-2] - 1) < 0.005, name


def central_return(loss: Any, x: Any, metric: Any, rank: Any = None, max_steps: int = 20) -> Returned:
    """A mutant: back to the ellipse on a ray from its centre, which moves the angle by arctan(σ ΔW): no Itô drift."""
    return eqx.tree_at(
        lambda found: found.point, gauss_newton_return(loss, x, metric, rank), x / jnp.linalg.norm(x / AXES)
    )


def euclidean_return(loss: Any, x: Any, metric: Any, rank: Any = None, max_steps: int = 20) -> Returned:
    """A mutant: Gauss–Newton in the Euclidean metric in place of S."""
    return gauss_newton_return(loss, x, mf.Identity(), rank)


def without_drift(self: Any, x: Any, normal: Any, t: Any) -> Any:
    """A mutant: no drift along Γ."""
    return jnp.zeros_like(x)


MUTANTS = {
    "euclidean return": ("slowsde.dynamics.solvers.euler.gauss_newton_return", euclidean_return),
    "no Itô drift": ("slowsde.dynamics.solvers.euler.gauss_newton_return", central_return),
    "no tangential drift": (SlowSDE, "tangential_drift", without_drift),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_weak_error_of_a_mutant_does_not_vanish(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[mutant])
    jax.clear_caches()
    try:
        found = quadrature_errors(FINE)
    finally:
        jax.clear_caches()
    worst = max(found.values(), key=lambda errors: abs(errors[-1]))
    print(f"{mutant}: errors {worst}, orders {local_orders(worst)}")
    assert abs(worst[-1]) > 5e-3
    assert np.all(np.abs(local_orders(worst)[1:]) < 0.3)


# Weak error of simulate ---------------------------------------------------------------------------


def increments(key: Any, grid: np.ndarray, dt: float, paths: int, columns: int) -> np.ndarray:
    """(paths, steps, columns): those of `simulate` with this key and step."""
    with jax.enable_x64(True):
        knots, keys = jnp.asarray(grid), step_keys(key, grid, dt)

        def path(index: Any) -> Any:
            brownian = StepBrownianPath(knots, keys, index, columns)
            return jax.vmap(brownian.evaluate)(knots[:-1], knots[1:])

        return np.asarray(jax.jit(jax.vmap(path))(jnp.arange(paths)))


def controlled_mean(values: np.ndarray, controls: list[np.ndarray]) -> tuple[float, float]:
    """Mean and standard error of `values` after regression on controls of mean zero."""
    design = np.stack([np.ones_like(values), *controls], axis=1)
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = values - design @ solution
    error = np.sqrt(rest @ rest / (len(values) - design.shape[1]) / len(values))
    return float(solution[0]), float(error)


def leading_order(steps: list[int], errors: np.ndarray, spreads: np.ndarray) -> tuple[float, float, float]:
    """q and its 95 % interval in |error| = C h^q (1 + d h): weighted least squares of log|error| on (1, log h, h).

    Without d, errors known to a thousandth would tell q apart from its limit by the next order alone. Where χ² per
    degree of freedom exceeds 1 it widens the interval, with Student's t.
    """
    assert np.all(np.abs(errors) > 4 * spreads)
    assert np.ptp(np.sign(errors)) == 0
    h = T / np.array(steps)
    weights = np.abs(errors) / spreads
    design = np.stack([np.ones_like(h), np.log(h), h], axis=1) * weights[:, None]
    solution, *_ = np.linalg.lstsq(design, np.log(np.abs(errors)) * weights, rcond=None)
    spread = np.sqrt(np.linalg.inv(design.T @ design)[1, 1])
    misfit = np.sum((np.log(np.abs(errors)) * weights - design @ solution) ** 2) / (len(h) - 3)
    half = spread * (norm.ppf(0.975) if misfit <= 1 else student.ppf(0.975, len(h) - 3) * np.sqrt(misfit))
    print(f"order {solution[1]:.3f} ± {half:.3f}, misfit {misfit:.1f}, errors {errors}, s.e. {spreads}")
    return float(solution[1]), float(solution[1] - half), float(solution[1] + half)


def ellipse_runs(steps: list[int], paths: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> errors and standard errors of `simulate` on the ellipse, one for each number of steps."""
    problem, optimizer = ellipse_problem()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAVES}
    for n in steps:
        key = jr.key(n)
        run = ss.simulate(problem, optimizer, point(PHI0), T, paths=paths, key=key, save_at=[T], dt=T / n)
        dW = increments(key, step_grid(np.array([T]), 0.0, T, T / n), T / n, paths, 2)
        phi = np.full(paths, PHI0)
        for k in range(n):
            phi = milstein(phi, T / n, dW[:, k, 0])
        transition = milstein_operator(T / n)
        waves = [*WAVES.values(), lambda phi: np.sin(2 * phi), lambda phi: np.cos(3 * phi)]
        controls = [f(phi) - expectation(transition, n, f) for f in waves]
        for name, f in WAVES.items():
            mean, error = controlled_mean(f(angle(run.params[:, -1])), controls)
            found[name].append((mean - exact_expectation(f), error))
    return {name: (np.array(rows)[:, 0], np.array(rows)[:, 1]) for name, rows in found.items()}


@pytest.mark.slow
def test_simulate_has_the_weak_errors_of_its_step_on_the_ellipse() -> None:
    """Two routes to one number: the mean over sampled paths and the composed operator, whose order is known."""
    runs, exact = ellipse_runs([16], 20_000), quadrature_errors(np.array([16]))
    for name, (errors, spreads) in runs.items():
        assert abs(errors[0]) > 10 * spreads[0], name
        assert abs(errors[0] - exact[name][0]) < 4 * spreads[0], name


@pytest.mark.slow
def test_simulate_has_weak_order_one_on_the_ellipse() -> None:
    steps = [32, 64, 128, 256, 512]  # with longer ones the third order in the step moves the slope by 0.02
    for name, (errors, spreads) in ellipse_runs(steps, 40_000).items():
        _, low, high = leading_order(steps, errors, spreads)
        assert low < 1 < high < low + 0.4, name


@functools.cache
def exact_mean(t: float) -> float:
    return exact_moments(t)[0] if t > 0 else Y0


def valley_run(n: int, paths: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of E y and E y² at T in the valley and their standard errors.

    y_n is linear in the increments; M = Σ P(t_k) S_y σ_y ΔW_k with the exact propagator P from t_k to T is nearly the
    same sum, with mean zero and a known variance.
    """
    problem = ss.Problem(valley, ss.GaussianNoise(np.diag(SIGMA)))
    key, grid = jr.key(100 + n), step_grid(np.array([T]), 0.0, T, T / n)
    run = ss.simulate(
        problem, ss.adam(c=C, eps=EPS), np.array([0.0, Y0]), T, v0=V0, paths=paths, key=key, save_at=[T], dt=T / n
    )
    to_end = np.array([exact_mean(T) / exact_mean(t) for t in grid[:-1].tolist()])
    gain = to_end * SIGMA[1] / (np.sqrt([state(t)[1] for t in grid[:-1]]) + EPS)
    M = increments(key, grid, T / n, paths, 2)[:, :, 1] @ gain
    controls = [M, M**2 - np.sum(gain**2) * T / n]
    y = run.params[:, -1, 1]
    rows = np.array([controlled_mean(values, controls) for values in (y, y**2)])
    return rows[:, 0] - exact_moments(T), rows[:, 1]


@pytest.mark.slow
def test_simulate_has_weak_order_one_in_a_valley_with_a_moving_state() -> None:
    steps = [4, 8, 16, 32, 64]
    rows = np.array([valley_run(n, 1024) for n in steps])
    for moment in (0, 1):
        _, low, high = leading_order(steps, rows[:, 0, moment], rows[:, 1, moment])
        assert low < 1 < high < low + 0.4, moment


# Strong error -------------------------------------------------------------------------------------


def circle_ends(factor: Any, dW: np.ndarray) -> np.ndarray:
    """Angles at T of the library's steps on the unit circle with increments dW (paths, steps, r)."""
    with jax.enable_x64(True):
        problem = ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(factor))
        slow = slow_state(problem, ss.sgd(), np.array([1.0, 0.0]))
        h = jnp.asarray(T / dW.shape[1])

        def path(increments: Any) -> Any:
            return jax.lax.scan(lambda x, d: (one_step(slow, x, h, d), None), jnp.array([1.0, 0.0]), increments)[0]

        ends = np.asarray(jax.jit(jax.vmap(path))(jnp.asarray(dW)))
    return np.arctan2(ends[:, 1], ends[:, 0])


def coarser(dW: np.ndarray, steps: int) -> np.ndarray:
    """The increments of the same Brownian paths over `steps` longer steps."""
    return dW.reshape(dW.shape[0], steps, -1, dW.shape[2]).sum(axis=2)


def strong_order(steps: list[int], gaps: list[np.ndarray], batches: int = 20) -> tuple[float, float, float]:
    """q and its 95 % interval in RMS gap = C h^q (1 + d h), from the values in batches of paths."""
    h = T / np.array(steps)
    errors = np.array([np.sqrt((gap.reshape(batches, -1) ** 2).mean(axis=1)) for gap in gaps])
    design = np.stack([np.ones_like(h), np.log(h), h], axis=1)
    slopes = np.linalg.lstsq(design, np.log(errors), rcond=None)[0][1]
    half = student.ppf(0.975, batches - 1) * slopes.std(ddof=1) / np.sqrt(batches)
    print(f"strong order {slopes.mean():.3f} ± {half:.3f}, errors {errors.mean(axis=1)}")
    return float(slopes.mean()), float(slopes.mean() - half), float(slopes.mean() + half)


def wrapped(phi: np.ndarray) -> np.ndarray:
    return np.angle(np.exp(1j * phi))


@pytest.mark.slow
def test_strong_order_one_where_one_noise_drives_a_curve() -> None:
    """Noise along the circle: φ = W exactly, a step moves φ by arctan ΔW, so that the RMS error is √(15/9 · T) h."""
    steps = [16, 32, 64, 256]
    fine = np.random.default_rng(0).normal(size=(4000, steps[-1], 1)) * np.sqrt(T / steps[-1])
    exact = fine.sum(axis=(1, 2))
    gaps = [wrapped(circle_ends(lambda x: jnp.stack([-x[1], x[0]])[:, None], coarser(fine, n)) - exact) for n in steps]
    _, low, high = strong_order(steps, gaps)
    assert low < 1 < high < low + 0.2
    assert np.sqrt((gaps[-1] ** 2).mean()) == pytest.approx(np.sqrt(15 / 9 * T) * T / steps[-1], rel=0.05)


@pytest.mark.slow
def test_strong_order_one_half_where_two_noises_do_not_commute() -> None:
    """Isotropic noise: dφ = −sin φ dW¹ + cos φ dW², whose fields have the bracket 1, so that ½ is the best possible.

    The reference integrates the angle, in NumPy, on a grid 128 times finer than the finest steps compared.
    """
    steps, finest = [4, 8, 16, 64], 8192
    fine = np.random.default_rng(1).normal(size=(1000, finest, 2)) * np.sqrt(T / finest)
    phi = np.zeros(len(fine))
    for k in range(finest):
        phi = phi - np.sin(phi) * fine[:, k, 0] + np.cos(phi) * fine[:, k, 1]
    gaps = [wrapped(circle_ends(1.0, coarser(fine, n)) - phi) for n in steps]
    _, low, high = strong_order(steps, gaps)
    assert low < 0.5 < high
    assert high - low < 0.2

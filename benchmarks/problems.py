"""The small problems of the benchmarks, with their exact answers where there are any."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.optimize import linprog

import manifolds as mf
import slowsde as ss

# A valley, L = ½ e^{y²/2} x²: dy = −¼ S_x S_y σx² y dt + S_y σ_y dW, Ornstein–Uhlenbeck with moving rates ------------
SIGMA, C, EPS = np.array([0.8, 0.5]), 2.0, 0.05
VALLEY_V0, VALLEY_START = np.array([0.3, 0.6]), np.array([0.0, 1.0])


def valley() -> tuple[ss.Problem, ss.AGM]:
    """Adam with a moving state v; Γ is the line x = 0."""
    problem = ss.Problem(lambda x: 0.5 * jnp.exp(0.5 * x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(np.diag(SIGMA)))
    return problem, ss.adam(c=C, eps=EPS)


def valley_moments(t: float) -> dict[str, float]:
    """E y and E y² at t, by quadrature of their linear equations."""

    def field(time: float, moments: np.ndarray) -> list[float]:
        v = SIGMA**2 + (VALLEY_V0 - SIGMA**2) * np.exp(-C * time)
        s = 1 / (np.sqrt(v) + EPS)
        k = -0.25 * s[0] * s[1] * SIGMA[0] ** 2
        return [k * moments[0], 2 * k * moments[1] + (s[1] * SIGMA[1]) ** 2]

    mean, second = solve_ivp(field, (0, t), [1.0, 1.0], rtol=1e-11, atol=1e-13).y[:, -1]
    return {"y": float(mean), "y²": float(second)}


VALLEY_OBSERVABLES = {"y": lambda x: x[1], "y²": lambda x: x[1] ** 2}

# An ellipse (a cos φ, b sin φ) in a constant oblique metric S: dφ = μ(φ) dt + g(φ)^-½ dW ----------------------------
AXES, S, BETA, PHI0 = np.array([1.0, 0.8]), np.array([0.8, 1.4]), 0.7, 0.6
ELLIPSE_START = np.array([AXES[0] * np.cos(PHI0), AXES[1] * np.sin(PHI0)])


def ellipse() -> tuple[ss.Problem, ss.AGM]:
    """Noise S⁻¹τ/√g along the ellipse, τ = dζ/dφ, g = τᵀS⁻¹τ, and β∇r across it, for L = ½r²."""
    a, b = AXES

    def loss(x: Any) -> Any:
        return 0.25 * (x[0] ** 2 / a**2 + x[1] ** 2 / b**2 - 1) ** 2

    def factor(x: Any) -> Any:
        tangent = jnp.stack([-a * x[1] / b, b * x[0] / a]) / S
        gradient = jnp.sqrt(2.0) * x / AXES**2
        return jnp.stack([tangent / jnp.sqrt(tangent @ (S * tangent)), BETA * gradient], axis=1)

    return ss.Problem(loss, ss.GaussianNoise(factor)), ss.AGM(V=lambda g: None, S=lambda v: mf.Diagonal(S), c=1.0)


def ellipse_sde(phi: Any) -> tuple[Any, Any, Any]:
    """Drift, diffusion of φ and the derivative of the diffusion: du = √g dφ is the arc length in S⁻¹."""
    first, second = AXES**2 / S
    g, dg = first * np.sin(phi) ** 2 + second * np.cos(phi) ** 2, (first - second) * np.sin(2 * phi)
    dN = 2 * (S[1] / AXES[1] ** 2 - S[0] / AXES[0] ** 2) * np.sin(2 * phi)
    return -0.25 * BETA**2 * dN / g - 0.25 * dg / g**2, g**-0.5, -0.5 * dg * g**-1.5


def ellipse_expectation(f: Any, t: float, modes: int = 61) -> float:
    """E f(φ(t)) from the backward equation ∂u/∂t = μu' + ½σ²u'', by Fourier collocation."""
    grid = PHI0 + 2 * np.pi * np.arange(modes) / modes
    half = (grid[:, None] - grid[None, :]) / 2
    signs = (-1.0) ** (np.arange(modes)[:, None] - np.arange(modes)[None, :])
    off = ~np.eye(modes, dtype=bool)
    first = np.where(off, 0.5 * signs / np.where(off, np.sin(half), 1.0), 0.0)
    drift, diffusion, _ = ellipse_sde(grid)
    generator = drift[:, None] * first + 0.5 * diffusion[:, None] ** 2 * (first @ first)
    return float((expm(t * generator) @ f(grid))[0])


ELLIPSE_WAVES = {"cos φ": np.cos, "sin φ": np.sin}
ELLIPSE_OBSERVABLES = {"cos φ": lambda x: x[0] / AXES[0], "sin φ": lambda x: x[1] / AXES[1]}

# Networks ------------------------------------------------------------------------------------------


def network(hidden: int = 33, samples: int = 8, columns: int = 4) -> tuple[ss.LeastSquares, ss.AGM, dict[str, Any]]:
    """A tanh network 4-33-1 (p = 199 at the default) on eight samples, with Gaussian noise of four columns; Adam."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(samples, 4))
    params = {
        "w": rng.normal(size=(4, hidden)) / 2,
        "b": 0.1 * rng.normal(size=hidden),
        "a": rng.normal(size=hidden) / np.sqrt(hidden),
        "c": np.zeros(1),
    }
    size = sum(leaf.size for leaf in params.values())
    noise = ss.GaussianNoise(0.3 * rng.normal(size=(size, columns)) / np.sqrt(size))

    def predict(w: Any, z: Any) -> Any:
        return jnp.tanh(z @ w["w"] + w["b"]) @ w["a"] + w["c"][0]

    return ss.LeastSquares(predict, inputs, np.sin(3 * inputs[:, 0]), noise), ss.adam(c=C, eps=EPS), params


def diagonal_network() -> tuple[ss.LeastSquares, dict[str, np.ndarray]]:
    """f(z) = ⟨z, u² − v²⟩ with six parameters on two samples, label noise, and a start on Γ."""
    inputs = np.array([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    targets = inputs @ np.array([1.0, 0.5, -0.3])
    problem = ss.LeastSquares(lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, targets, ss.LabelNoise(1.0))
    guess = {"u": np.array([1.0, 0.9, 0.6]), "v": np.array([0.3, 0.5, 0.8])}
    return problem, ss.to_manifold(problem, guess)


def small_network() -> tuple[ss.LeastSquares, dict[str, Any]]:
    """A tanh network 3-3-1 (p = 15) on four samples, label noise, and a start on Γ."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(4, 3)), rng.normal(size=4)
    problem = ss.LeastSquares(lambda p, z: p["a"] @ jnp.tanh(p["W"] @ z + p["b"]), inputs, targets, ss.LabelNoise(0.5))
    guess = {"W": rng.normal(size=(3, 3)), "b": 0.1 * rng.normal(size=3), "a": rng.normal(size=3)}
    return problem, ss.to_manifold(problem, guess)


def basis_pursuit(inputs: np.ndarray, targets: np.ndarray, scale: Any = 1.0) -> np.ndarray:
    """argmin Σ_j scale_j |w_j| among exact fits of ⟨inputs, w⟩ = targets, as w = w₊ − w₋ with both parts ≥ 0."""
    cost = np.broadcast_to(scale, inputs.shape[1:])
    parts = linprog(np.r_[cost, cost], A_eq=np.c_[inputs, -inputs], b_eq=targets, bounds=(0, None), method="highs").x
    return parts[: cost.size] - parts[cost.size :]


def sparse_network() -> tuple[ss.LeastSquares, dict[str, np.ndarray]]:
    """f(z) = ⟨z, u² − v²⟩ with d = 100 on 50 samples of a truth of five weights ±1, fresh noise on every label (α =
    0.005), and a start on Γ that training reaches early. The end of Adam is the truth, Σ|θ_i| = 5."""
    rng = np.random.default_rng(0)
    inputs, truth = rng.choice([-1.0, 1.0], size=(50, 100)), np.zeros(100)
    truth[rng.choice(100, 5, replace=False)] = rng.choice([-1.0, 1.0], 5)
    problem = ss.LeastSquares(lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, inputs @ truth, ss.LabelNoise(0.5))
    return problem, ss.to_manifold(problem, {"u": np.full(100, 0.3), "v": np.full(100, 0.3)})


def mlp() -> tuple[ss.LeastSquares, dict[str, Any]]:
    """A tanh network 8-32-32-1 (p = 1377) on 40 random samples, label noise of one sample a step, a start on Γ."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(40, 8)), rng.normal(size=40)
    params = {
        "w1": rng.normal(size=(8, 32)) / 8**0.5,
        "b1": np.zeros(32),
        "w2": rng.normal(size=(32, 32)) / 32**0.5,
        "b2": np.zeros(32),
        "w3": rng.normal(size=32) / 32**0.5,
        "b3": np.zeros(1),
    }

    def predict(p: Any, z: Any) -> Any:
        hidden = jnp.tanh(z @ p["w1"] + p["b1"])
        return jnp.tanh(hidden @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"][0]

    problem = ss.LeastSquares(predict, inputs, targets, ss.LabelNoise(0.3, batch_size=1))
    return problem, ss.to_manifold(problem, params)

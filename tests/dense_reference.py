"""The slow SDE at a point by textbook linear algebra: S a p×p matrix, ∇³L a p×p×p array; and the library's."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import slowsde as ss

RNG = np.random.default_rng(5)
INPUTS = RNG.normal(size=(3, 2))
TARGETS = 0.5 * RNG.normal(size=3)
GUESS = {
    "b": 0.3 * RNG.normal(size=3),
    "q": np.eye(2) + 0.5 * RNG.normal(size=(2, 2)),
    "s": np.asarray(0.8),
    "t": 0.6 * RNG.normal(size=(2, 2, 2)),
    "w": 0.8 * RNG.normal(size=(3, 2)),
}
SIZE = 22


def predict(p: Any, z: Any) -> Any:
    """A network of two matrices, a vector, a scalar and a tensor."""
    h = jnp.tanh(p["w"] @ (p["q"] @ z) + p["b"])
    return p["s"] * (h[0] - h[1] + h[2]) + jnp.einsum("ijk,i,j,k", p["t"], z, h[:2], h[1:])


class Derivatives(NamedTuple):
    """At a flat point x of Γ: ∇²L, ∇³L and the prediction's Jacobian."""

    x: np.ndarray
    hessian: np.ndarray
    third: np.ndarray
    jacobian: np.ndarray


def at_a_minimizer() -> tuple[Any, Derivatives]:
    """Params with zero residuals near GUESS, by plain Gauss–Newton, and the derivatives of the loss there."""
    with jax.enable_x64(True):
        x, unravel = ravel_pytree(jax.tree.map(jnp.asarray, GUESS))

        def residuals(y: Any) -> Any:
            return jax.vmap(lambda z: predict(unravel(y), z))(jnp.asarray(INPUTS)) - TARGETS

        def loss(y: Any) -> Any:
            return 0.5 * jnp.mean(residuals(y) ** 2)

        both = jax.jit(lambda y: (residuals(y), jax.jacfwd(residuals)(y)))
        for _ in range(30):
            r, J = map(np.asarray, both(x))
            x = x - np.linalg.pinv(J) @ r
        assert np.max(np.abs(r)) < 1e-14
        hessian, third = jax.jit(lambda y: (jax.hessian(loss)(y), jax.jacfwd(jax.hessian(loss))(y)))(x)
        params = jax.tree.map(np.asarray, unravel(x))
        return params, Derivatives(*map(np.asarray, (x, hessian, third, J)))


def slow_coefficients(at: Derivatives, factor: np.ndarray, S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """½ ∂²Φ_S[SΣS] and Π S B for Σ = B Bᵀ, with the Lyapunov equation solved entry by entry."""
    values, vectors = np.linalg.eigh(S)
    half, inverse_half = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    lam, Q = np.linalg.eigh(half @ at.hessian @ half)
    normal = lam > 1e-9 * lam[-1]
    lam = np.where(normal, lam, 0)
    Pi = half @ (Q * ~normal) @ Q.T @ inverse_half
    pseudo_inverse = half @ (Q * np.where(normal, 1 / np.where(normal, lam, 1), 0)) @ Q.T @ half
    noise = Q.T @ half @ factor @ factor.T @ half @ Q
    sums = lam[:, None] + lam[None, :]
    C = half @ Q @ np.where(sums > 0, noise / np.where(sums > 0, sums, 1), 0) @ Q.T @ half
    diffusion = Pi @ S @ factor

    def T(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("ijk,jk->i", at.third, matrix)

    return -0.5 * Pi @ S @ T(C) - 0.5 * pseudo_inverse @ T(diffusion @ diffusion.T), diffusion


def relative(got: Any, expected: Any) -> float:
    """The largest difference over the largest entry."""
    got, expected = np.asarray(got), np.asarray(expected)
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def flat(tree: Any) -> np.ndarray:
    """The leaves, row by row, one after the other in the order of keys."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def curl(field: Any, at: Derivatives) -> float:
    """The relative curl on Γ of a covector field of x: |A − Aᵀ|/|A| for its derivative A in coordinates u of Γ.

    x(u) returns ζ + T u to Γ (T spans the tangent space); the field pulls back to a(u) = (∂x/∂u)ᵀ field(x(u)), and A is
    its derivative, by differences of fourth order.
    """
    with jax.enable_x64(True):
        _, unravel = ravel_pytree(jax.tree.map(jnp.asarray, GUESS))
        tangent = np.linalg.svd(at.jacobian)[2][len(at.jacobian) :].T

        def residuals(y: Any) -> Any:
            return jax.vmap(lambda z: predict(unravel(y), z))(jnp.asarray(INPUTS)) - TARGETS

        def point(u: Any) -> Any:
            x = at.x + tangent @ u
            for _ in range(2):  # quadratically convergent from a distance of order h²
                step = jnp.linalg.solve(jax.jacrev(residuals)(x) @ at.jacobian.T, residuals(x))
                x = x - at.jacobian.T @ step
            return x

        def pulled_back(u: Any) -> Any:
            x, pull = jax.vjp(point, u)
            return pull(field(x))[0]

        h, m = 2e-3, tangent.shape[1]
        steps = h * np.concatenate([k * np.eye(m) for k in (-2, -1, 1, 2)])
        a = np.asarray(jax.jit(lambda us: jax.lax.map(pulled_back, us))(jnp.asarray(steps))).reshape(4, m, m)
        A = (a[0] - 8 * a[1] + 8 * a[2] - a[3]) / (12 * h)
    return float(np.linalg.norm(A - A.T) / np.linalg.norm(A))


COLUMNS = 0.7 * RNG.normal(size=(SIZE, 2))
ALPHA = 0.5**2 / 3  # label noise of standard deviation ½ on all three labels at once


def noise_factors(at: Derivatives) -> dict[str, np.ndarray]:
    """B of each noise below: Σ = αH = (α/n) JᵀJ for label noise."""
    return {"label": np.sqrt(ALPHA / len(INPUTS)) * at.jacobian.T, "gaussian": COLUMNS}


ROUTES = [(noise, route) for noise in ("label", "gaussian") for route in ("kernel", "dense")]


def library_coefficients(optimizers: list[Any], params: Any, states: list[Any], routes: Any = ROUTES) -> list[Any]:
    """`slowsde.coefficients` inside jit and vmap, over optimizers that differ in numbers only and their states.

    Returns {(noise, route): Coefficients} for each optimizer, noise "label" or "gaussian".
    """
    noises = {"label": ss.LabelNoise(0.5), "gaussian": ss.GaussianNoise(COLUMNS)}
    numbers, rest = zip(*(eqx.partition(o, eqx.is_inexact_array_like) for o in optimizers), strict=True)
    found: list[dict[Any, Any]] = [{} for _ in optimizers]
    for noise, route in routes:
        problem = ss.LeastSquares(predict, INPUTS, TARGETS, noises[noise])

        def at(values: Any, v: Any, p: Any, problem: Any = problem, route: str = route) -> Any:
            return ss.coefficients(problem, eqx.combine(values, rest[0]), p, v, route=route)

        quick = jax.jit(
            jax.vmap(at, (0, 0, None)), compiler_options={"xla_backend_optimization_level": 0}
        )  # compiles twice as fast
        with jax.enable_x64(True):
            stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (numbers, states)]
            values = jax.tree.map(np.asarray, quick(*stacked, jax.tree.map(jnp.asarray, params)))
        for i, each in enumerate(found):
            each[noise, route] = jax.tree.map(lambda leaf, i=i: leaf[i], values)
    return found


def small_network(p: Any, z: Any) -> Any:
    return p["a"] @ jnp.tanh(p["w"] @ z + p["b"])


SMALL = ss.LeastSquares(
    small_network, np.array([[1.0, 0.5], [-0.6, 0.9]]), np.array([0.6, -0.4]), ss.LabelNoise(1.0, batch_size=1)
)
START = {"a": np.array([1.1, -0.9]), "b": np.array([0.2, -0.1]), "w": np.array([[1.0, 0.3], [0.4, -1.2]])}


def gaps(optimizer: ss.AGM, lrs: tuple[float, ...], paths: int, project: bool) -> tuple[np.ndarray, np.ndarray, Any]:
    """Gap of tr H at t = 1 between discrete runs and the slow flow for each lr, with standard errors; the slow flow."""
    saved: dict[str, Any] = {"save_at": 3, "metrics": ("trace_hessian",)}
    slow = ss.simulate(SMALL, optimizer, START, 1.0, **saved)
    runs = [ss.run_discrete(SMALL, optimizer, START, 1.0, lr=lr, paths=paths, project=project, **saved) for lr in lrs]
    compared = [ss.compare(slow, run) for run in runs]
    gap, error = (np.array([getattr(c, k)["trace_hessian"][-1] for c in compared]) for k in ("gap", "standard_error"))
    return gap, error, slow

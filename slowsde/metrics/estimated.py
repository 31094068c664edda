"""Traces and eigenvalues of Hessians too large to form, from products ∇²L w at random vectors, with error bars.

The Hessian is that of the loss where it is asked for; on Γ that is the one of `slowsde.metrics`. `metric` is S, for
H' = S^½ ∇²L S^½ (see `manifolds.as_metric`; None for S = I). One product costs about three gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import in_working_precision

from ..problems.abstract import AbstractProblem
from ..support import arguments

BATCH = 8  # products at once
Product = Callable[[Float[Array, " p"]], Float[Array, " p"]]


class Estimate(NamedTuple):
    """A random estimate and its standard error."""

    value: Any
    standard_error: Any


class Eigenvalue(NamedTuple):
    """A lower bound of the largest eigenvalue; some eigenvalue lies within `residual` of it."""

    value: Any
    residual: Any


@in_working_precision
def trace_hessian(
    problem: AbstractProblem,
    params: PyTree,
    probes: int = 64,
    key: Any = None,
    *,
    metric: Any = None,
    sketch: int = 0,
) -> Estimate:
    """tr H, or tr S H = tr H', by Hutchinson's estimator: the mean of zᵀH'z over `probes` random sign vectors z.

    Its variance is 2 Σ_{i≠j} H'_ij²/probes. With `sketch` = r the range of H' on r random vectors is taken exactly and
    only the rest is estimated (Hutch++; Meyer, Musco, Musco and Woodruff 2021):

        tr QᵀH'Q + mean of zᵀ(I−QQᵀ)H'(I−QQᵀ)z,     Q an orthonormal basis of H'·(r random sign vectors),

    which pays where the spectrum falls off fast; where H' has rank at most r it is exact. Costs probes + 2r products.
    Raises ValueError for fewer than two probes.

    Example:
        >>> value, error = metrics.estimated.trace_hessian(problem, slow.at(1.0).params[0], probes=100)
    """
    arguments.positive_integer("probes", probes)
    if probes < 2:
        raise ValueError(f"probes={probes} must be at least 2, for a standard error.")
    if not arguments.is_integer(sketch) or sketch < 0:
        raise ValueError(f"sketch={sketch!r} must be a number of vectors, 0 for none.")
    product, x = _hessian(problem, params, metric)
    known, rest = jr.split(arguments.check_key(key))
    exact, clear = jnp.zeros((), x.dtype), lambda z: z
    if sketch:
        # Probes and sketch from two keys: the estimate of the rest is unbiased only if its probes know nothing of Q.
        columns = _apply(product, jr.rademacher(known, (min(int(sketch), x.size), x.size), x.dtype))
        basis = jnp.linalg.qr(columns.T)[0].T
        # tr QᵀH'Q, without the r×r matrix.
        exact = jnp.sum(basis * _apply(product, basis))
        clear = lambda z: z - (z @ basis.T) @ basis  # noqa: E731
    signs = clear(jr.rademacher(rest, (int(probes), x.size), x.dtype))
    samples = jnp.sum(signs * _apply(product, signs), axis=1)
    return Estimate(exact + jnp.mean(samples), jnp.std(samples, ddof=1) / np.sqrt(probes))


@in_working_precision
def largest_eigenvalue(
    problem: AbstractProblem, params: PyTree, iterations: int = 30, key: Any = None, *, metric: Any = None
) -> Eigenvalue:
    """λ_max(H), or λ_max(H'), by `iterations` steps of Lanczos from a random vector, reorthogonalized in full.

    The Ritz value θ = qᵀH'q, |q| = 1, is at most λ_max, and an eigenvalue lies within `residual` = |H'q − θq| of it.
    Raises ValueError for fewer than one iteration.

    Example:
        >>> value, residual = metrics.estimated.largest_eigenvalue(problem, slow.at(1.0).params[0])
    """
    arguments.positive_integer("iterations", iterations)
    # λ_max without a loss's own route: a general loss of many parameters has products only. (Least squares on the
    # matrix-free route has `manifolds.normal.lanczos`, which goes on to a tolerance.)
    product, x = _hessian(problem, params, metric)
    count = min(int(iterations), x.size)
    tiny = jnp.finfo(x.dtype).eps

    def step(k: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, images = state
        image = product(basis[k])
        rest = image - basis.T @ (basis @ image)
        rest = rest - basis.T @ (basis @ rest)  # twice is enough
        length = jnp.linalg.norm(rest)
        # An invariant subspace ends the recursion: further basis vectors are zero.
        following = jnp.where(length > 100 * tiny * jnp.linalg.norm(image), rest / length, 0)
        return basis.at[k + 1].set(following), images.at[k].set(image)

    start = jr.normal(arguments.check_key(key), x.shape, x.dtype)
    basis = jnp.zeros((count + 1, x.size), x.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, images = jax.lax.fori_loop(0, count, step, (basis, jnp.zeros((count, x.size), x.dtype)))
    # H'V is kept, so that the residual of the Ritz vector costs no further product.
    projected = basis[:-1] @ images.T
    values, vectors = jnp.linalg.eigh(0.5 * (projected + projected.T))
    # Zero rows of an exhausted space have eigenvalues 0, which would win over negative ones.
    used = jnp.sum(vectors**2 * jnp.any(basis[:-1] != 0, axis=1)[:, None], axis=0) > 0.5
    best = jnp.argmax(jnp.where(used, values, -jnp.inf))
    q, image = basis[:-1].T @ vectors[:, best], images.T @ vectors[:, best]
    return Eigenvalue(values[best], jnp.linalg.norm(image - values[best] * q))


def _hessian(problem: AbstractProblem, params: PyTree, metric: Any) -> tuple[Product, Float[Array, " p"]]:
    """w ↦ S^½ ∇²L S^½ w, and the point."""
    chart, x = Coordinates.of(params), ravel(params)
    loss, s = problem.flat_loss(chart), mf.as_metric(metric, chart.size)
    return lambda w: s.sqrt(jax.jvp(loss.gradient, (x,), (s.sqrt(w),))[1]), x


def _apply(product: Product, rows: Float[Array, "k p"]) -> Float[Array, "k p"]:
    return jax.lax.map(product, rows, batch_size=BATCH)

"""Noise that is known by its draws only."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from manifolds.support.arrays import nonzero
from manifolds.support.compilation import compiled
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import in_working_precision
from manifolds.support.user_functions import shown

from ..support.arguments import is_integer
from .abstract import (
    AbstractNoise,
    AbstractProblem,
    Vector,
)


class SampledNoise(AbstractNoise):
    """Noise known by its draws alone: `sample(params, key)` -> one stochastic gradient, params-like and unbiased.

    Σ is estimated from N = `draws` gradients g_j at fixed keys (common random numbers, so that B is as smooth in params
    as `sample` is): B has the columns (g_j − ḡ)/√(N−1), or with `rank` = r their r leading principal components.

    B Bᵀ is unbiased for Σ, and so is all that is linear in Σ: V(Σ) and, at a given v, Π S B BᵀS Πᵀ and the drift. But
    the estimate is the same all along a run: coefficients are off by a relative O(1/√N) that neither time nor paths
    average out, and what is curved in Σ (S(V(Σ)), means over a run) by a bias of O(1/N) on top. `rank` loses the
    variance beyond r components. `error` measures all this; change `seed` to see its effect on a result.

    A sampler whose draws depend on params in jumps (labels drawn from the model) is not smooth: prefer reparametrized
    draws. The stats of `simulate` hold the errors at its start. It refuses a sampler whose mean is not ∇L (by 6 s.e.).

    Args:
        sample: (params, key) -> params-like.
        draws: N ≥ 2.
        rank: r, 1 ≤ r ≤ N; None for N columns. Work grows with the number of columns.
        seed: of the fixed keys.

    Example:
        >>> noise = SampledNoise(lambda w, key: w[::-1] * jax.random.normal(key), draws=512)
        >>> noise.error(problem, np.array([2.0, 0.5]))["noise_error"]  # of Σ, relative
    """

    sample: Callable[[PyTree, PRNGKeyArray], PyTree]
    draws: int = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    seed: Int[Any, ""]

    def __init__(
        self, sample: Callable[[PyTree, PRNGKeyArray], PyTree], draws: int = 256, rank: int | None = None, seed: int = 0
    ):
        if not callable(sample):
            raise ValueError(f"sample={shown(sample)} must be a function (params, key) -> stochastic gradient.")
        if not (is_integer(draws) and draws >= 2):
            raise ValueError(f"draws={draws!r} must be an integer of at least 2.")
        if rank is not None and not (is_integer(rank) and 1 <= rank <= draws):
            raise ValueError(f"rank={rank!r} must be an integer from 1 to draws={draws}, or None.")
        if not is_integer(seed):
            raise ValueError(f"seed={seed!r} must be an integer.")
        self.sample, self.draws, self.rank = sample, int(draws), rank
        self.seed = np.asarray(seed)  # an array, so that compiled code serves every seed

    def gradients(self, chart: Coordinates, x: Vector) -> Float[Array, "N p"]:
        """The N gradients at the fixed keys."""
        # Common random numbers: so B is a function of params, as smooth as `sample` is.
        keys = jr.split(jr.key(self.seed), self.draws)
        return jax.vmap(lambda key: self._draw(chart, x, key))(keys)

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        gradients = self.gradients(chart, x)
        # N − 1, as the mean is estimated too: B Bᵀ is unbiased.
        columns = (gradients - jnp.mean(gradients, axis=0)).T / np.sqrt(self.draws - 1)
        if self.rank is None:
            return columns
        if chart.size > self.draws:  # through the smaller of the two Gram matrices
            return columns @ jnp.linalg.eigh(columns.T @ columns)[1][:, -self.rank :]
        values, axes = jnp.linalg.eigh(columns @ columns.T)
        # Signs and, within equal eigenvalues, directions of columns are arbitrary: only B Bᵀ is continuous, and the law
        # of the SDE depends on it alone.
        return (axes * jnp.sqrt(jnp.maximum(values, 0)))[:, -self.rank :]

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        return self._draw(chart, x, key)

    def check(self, problem: AbstractProblem) -> None:
        return None

    @in_working_precision
    def error(self, problem: AbstractProblem, params: PyTree) -> dict[str, Any]:
        """How well Σ is known at params from the draws.

        Returns a dict: noise_error, the relative standard error of tr Σ; noise_covariance_error, that of Σ itself in
        the Frobenius norm (E|Σ̂ − Σ|²)^½/|Σ|; noise_lost, the share of tr Σ beyond `rank`; noise_bias, |ḡ − ∇L| in
        units of its standard error (tr Σ/N)^½.
        """
        chart = Coordinates.of(params)
        return _sampling_error(self, problem, chart, ravel(params))

    def report(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> dict[str, float]:
        found = {name: float(value) for name, value in _sampling_error(self, problem, chart, x).items()}
        # A sum over a batch in the place of a mean, or another loss, shows here before a run on wrong coefficients.
        if found["noise_bias"] > 6:
            raise ValueError(
                f"sample is not an unbiased gradient of the loss: at the start on Γ the mean of {self.draws} draws "
                f"differs from ∇L by {found['noise_bias']:.3g} standard errors. Check its scale (mean or sum over a "
                "batch?) and that it differentiates the same loss."
            )
        return found

    def _draw(self, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        params = chart.unravel(x)
        gradient = self.sample(params, key)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(eqx.filter(gradient, eqx.is_array))]
        expected = [shape for shape in chart.shapes if shape is not None]
        if shapes != expected:
            raise ValueError(f"sample returns arrays of shapes {shapes}; a gradient has those of params, {expected}.")
        return ravel(gradient)


@compiled
def _sampling_error(
    noise: SampledNoise, problem: AbstractProblem, chart: Coordinates, x: Vector
) -> dict[str, Float[Array, ""]]:
    n = noise.draws
    gradients = noise.gradients(chart, x)
    mean = jnp.mean(gradients, axis=0)
    gram = (gradients - mean) @ (gradients - mean).T  # its diagonal is |g_j − ḡ|²
    trace = jnp.trace(gram) / (n - 1)
    frobenius = jnp.sum(gram**2) / (n - 1) ** 2  # |Σ̂|²
    # Σ̂ is nearly the mean of the matrices (g_j − ḡ)(g_j − ḡ)ᵀ: their spread over n is its squared error.
    squared = jnp.maximum(jnp.mean(jnp.diagonal(gram) ** 2) - frobenius, 0) / n
    kept = jnp.sum(noise.factor(problem, chart, x) ** 2)
    bias = jnp.linalg.norm(mean - problem.flat_loss(chart).gradient(x))
    return {
        "noise_error": jnp.std(jnp.diagonal(gram)) / jnp.sqrt(n) / nonzero(trace),
        "noise_covariance_error": jnp.sqrt(squared / nonzero(frobenius - squared)),
        "noise_lost": jnp.maximum(1 - kept / nonzero(trace), 0),
        "noise_bias": bias / nonzero(jnp.sqrt(trace / n)),
    }

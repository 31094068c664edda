"""Gaussian gradient noise of a given factor."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.support.coordinates import Coordinates
from manifolds.support.precision import is_traced
from manifolds.support.user_functions import shown

from .abstract import AbstractNoise, AbstractProblem, Vector


class GaussianNoise(AbstractNoise):
    """g = ∇L + B ξ, ξ ~ N(0, I), with `factor` B a scalar σ (B = σI), a (p, r) array or params -> (p, r) array.

    Rows of B follow the order of `jax.flatten_util.ravel_pytree(params)`.

    Example:
        >>> GaussianNoise(lambda x: jnp.diag(jnp.array([0.5, 0.1 * x[1]])))
    """

    function: Callable[[PyTree], Array] | Any

    def __init__(self, factor: Any):
        # NumPy keeps float64 until a run casts it to its own precision.
        self.function = factor if callable(factor) or is_traced(factor) else _numbers(factor)

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        factor = self.function(chart.unravel(x)) if callable(self.function) else self.function
        factor = jnp.asarray(factor, x.dtype)
        if factor.ndim == 0:
            # σI is p×p: this noise is for few parameters.
            return factor * jnp.eye(chart.size, dtype=x.dtype)
        if factor.ndim != 2 or factor.shape[0] != chart.size:
            raise ValueError(
                f"The factor of GaussianNoise has shape {factor.shape}. It must be a scalar or (p, r) with p = "
                f"{chart.size} parameters, one column for each independent noise."
            )
        return factor

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        factor = self.factor(problem, chart, x)
        slope = problem.flat_loss(chart).gradient(x)
        return slope + factor @ jr.normal(key, factor.shape[1:], dtype=x.dtype)

    def check(self, problem: AbstractProblem) -> None:
        return None


def _numbers(factor: Any) -> np.ndarray:
    """A factor as an array; ValueError unless it is one of finite real numbers."""
    try:
        found = np.asarray(factor)
    except ValueError:  # rows of several lengths
        found = np.asarray("")
    if found.dtype.kind not in "iuf" or not np.all(np.isfinite(found)):
        raise ValueError(
            f"factor={shown(factor)} must be a number σ, a (p, r) array of finite numbers, or a function of params."
        )
    return found.astype(float)

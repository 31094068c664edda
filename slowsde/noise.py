"""Models of gradient noise: each knows its covariance factor B(θ), Σ = B Bᵀ, and how to draw a stochastic gradient.

The two agree on Γ: the covariance of `gradient` there is B Bᵀ.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.coordinates import Coordinates
from manifolds.precision import is_traced

from .problems import AbstractProblem, EmpiricalRisk, LeastSquares

Vector = Float[Array, " p"]


class AbstractNoise(eqx.Module):
    """A noise model. x is the flat vector of parameters, `chart` ties it to the user's pytree."""

    @abc.abstractmethod
    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        """B(x), the factor of the covariance Σ = B Bᵀ of one stochastic gradient."""

    @abc.abstractmethod
    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        """One stochastic gradient at x: unbiased, of covariance Σ on Γ."""

    @abc.abstractmethod
    def hessian_scale(self, problem: AbstractProblem) -> Any:
        """α if Σ = αH on Γ, so that nothing diffuses; None otherwise."""

    @abc.abstractmethod
    def check(self, problem: AbstractProblem) -> None:
        """ValueError unless this noise makes sense for `problem`."""


class LabelNoise(AbstractNoise):
    """Fresh noise of standard deviation `std` on the label of every sample drawn, for `LeastSquares`.

    On an interpolating Γ, Σ = αH with α = std²/batch_size for a batch drawn with replacement, and α = std²/n for
    `batch_size=None`, the full batch with fresh noise on every label. `kind` is "rademacher" (±std) or "normal".

    Example:
        >>> LabelNoise(0.5, batch_size=1)  # one sample a step, α = 0.25
    """

    std: Any
    batch_size: int | None = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    def __init__(self, std: float | None = None, batch_size: int | None = None, kind: str = "rademacher"):
        check_batch_size(batch_size, optional=True)
        if kind not in ("rademacher", "normal"):
            raise ValueError(f"kind={kind!r} is not 'rademacher' or 'normal'.")
        if std is None or (not is_traced(std) and not (np.isfinite(std) and std > 0)):
            raise ValueError(f"std={std} must be a positive number: the standard deviation of the label noise.")
        self.std = std if is_traced(std) else np.asarray(std, float)
        self.batch_size = batch_size
        self.kind = kind

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        loss = _least_squares(problem).least_squares_loss(chart)
        return jnp.sqrt(self.hessian_scale(problem)) * loss.jacobian(x).T

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        problem = _least_squares(problem)
        draw, flip = jr.split(key)
        inputs, targets = _batch(problem.data, problem.num_samples, self.batch_size, draw)
        sample = jr.rademacher if self.kind == "rademacher" else jr.normal
        noisy = targets + self.std * sample(flip, targets.shape, dtype=x.dtype)
        return _mean_gradient(problem.datum_loss, chart, x, (inputs, noisy))

    def hessian_scale(self, problem: AbstractProblem) -> Any:
        return self.std**2 / (self.batch_size or _least_squares(problem).num_samples)

    def check(self, problem: AbstractProblem) -> None:
        _least_squares(problem)


class GaussianNoise(AbstractNoise):
    """g = ∇L + B ξ, ξ ~ N(0, I), with `factor` B a scalar σ (B = σI), a (p, r) array or params -> (p, r) array.

    Rows of B follow the order of `jax.flatten_util.ravel_pytree(params)`.

    Example:
        >>> GaussianNoise(lambda x: jnp.diag(jnp.array([0.5, 0.1 * x[1]])))
    """

    function: Callable[[PyTree], Array] | Any

    def __init__(self, factor: Any):
        self.function = factor if callable(factor) or is_traced(factor) else np.asarray(factor, float)

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        factor = self.function(chart.unravel(x)) if callable(self.function) else self.function
        factor = jnp.asarray(factor, x.dtype)
        if factor.ndim == 0:
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

    def hessian_scale(self, problem: AbstractProblem) -> None:
        return None

    def check(self, problem: AbstractProblem) -> None:
        return None


class MinibatchNoise(AbstractNoise):
    """Gradients of `batch_size` samples drawn with replacement, for `LeastSquares` and `EmpiricalRisk`.

    Σ = (1/b) Cov_i(∇ℓ_i): B has the n columns (∇ℓ_i − ∇L)/√(n b). It vanishes where every sample is fitted exactly.

    Example:
        >>> MinibatchNoise(32)
    """

    batch_size: int = eqx.field(static=True)

    def __init__(self, batch_size: int):
        check_batch_size(batch_size, optional=False)
        self.batch_size = batch_size

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        problem = _sampled(problem)

        def one(datum: PyTree) -> Vector:
            return jax.grad(lambda y: problem.datum_loss(chart.unravel(y), datum))(x)

        gradients = jax.vmap(one)(problem.data)
        return (gradients - jnp.mean(gradients, axis=0)).T / jnp.sqrt(problem.num_samples * self.batch_size)

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        problem = _sampled(problem)
        batch = _batch(problem.data, problem.num_samples, self.batch_size, key)
        return _mean_gradient(problem.datum_loss, chart, x, batch)

    def hessian_scale(self, problem: AbstractProblem) -> None:
        return None

    def check(self, problem: AbstractProblem) -> None:
        _sampled(problem)


def check_batch_size(batch_size: int | None, optional: bool) -> None:
    """ValueError unless batch_size is a positive integer (or None, where that means the full batch)."""
    if batch_size is None and optional:
        return
    if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a positive integer{' or None' if optional else ''}.")


def _least_squares(problem: AbstractProblem) -> LeastSquares:
    if not isinstance(problem, LeastSquares):
        raise ValueError(
            f"LabelNoise needs labels: a LeastSquares problem, not {type(problem).__name__}. Rewrite the loss as "
            "LeastSquares(predict, inputs, targets), or use GaussianNoise."
        )
    return problem


def _sampled(problem: AbstractProblem) -> LeastSquares | EmpiricalRisk:
    if not isinstance(problem, (LeastSquares, EmpiricalRisk)):
        raise ValueError(
            f"MinibatchNoise needs samples: a LeastSquares or EmpiricalRisk problem, not {type(problem).__name__}."
        )
    return problem


def _batch(data: PyTree, num_samples: int, batch_size: int | None, key: PRNGKeyArray) -> PyTree:
    if batch_size is None:
        return data
    rows = jr.randint(key, (batch_size,), 0, num_samples)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)


def _mean_gradient(
    datum_loss: Callable[[PyTree, PyTree], Array], chart: Coordinates, x: Vector, batch: PyTree
) -> Vector:
    def mean_loss(y: Vector) -> Array:
        return jnp.mean(jax.vmap(datum_loss, (None, 0))(chart.unravel(y), batch))

    return jax.grad(mean_loss)(x)

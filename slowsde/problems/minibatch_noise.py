"""The noise of gradients of random minibatches."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.support.coordinates import Coordinates

from .abstract import AbstractNoise, AbstractProblem, Vector, check_batch_size, drawn_batch, mean_gradient, sampled


class MinibatchNoise(AbstractNoise):
    """Gradients of `batch_size` samples drawn with replacement, for `EmpiricalRisk` and other means over samples.

    Σ = (1/b) Cov_i(∇ℓ_i): B has the n columns (∇ℓ_i − ∇L)/√(n b). It vanishes where every sample is fitted exactly.

    Example:
        >>> MinibatchNoise(32)
    """

    batch_size: int = eqx.field(static=True)

    def __init__(self, batch_size: int):
        check_batch_size(batch_size, optional=False)
        self.batch_size = batch_size

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        problem = sampled(problem)

        def one(datum: PyTree) -> Vector:
            return jax.grad(lambda y: problem.datum_loss(chart.unravel(y), datum))(x)

        gradients = jax.vmap(one)(problem.data)
        # Centered by the mean of these very gradients: columns sum to zero to rounding, however ∇L is computed
        # elsewhere.
        return (gradients - jnp.mean(gradients, axis=0)).T / jnp.sqrt(problem.num_samples * self.batch_size)

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        problem = sampled(problem)
        batch = drawn_batch(problem.data, problem.num_samples, self.batch_size, key)
        return mean_gradient(problem.datum_loss, chart, x, batch)

    def check(self, problem: AbstractProblem) -> None:
        sampled(problem)

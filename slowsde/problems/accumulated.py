"""Accumulated gradients: the noise of the mean of several gradients at one point, Σ/K."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.support.coordinates import Coordinates
from manifolds.support.user_functions import shown

from ..support.arguments import positive_integer
from .abstract import AbstractNoise, AbstractProblem, Vector
from .gaussian_noise import GaussianNoise
from .label_noise import LabelNoise
from .minibatch_noise import MinibatchNoise

P = TypeVar("P", bound=AbstractProblem)


def accumulated(problem: P, count: int) -> P:
    """`problem` with the noise of a step that averages K = `count` of its gradients: Σ/K, α/K under label noise.

    What the slow SDE of `optax.MultiSteps(transformation, K)` is to be made of, where `problem` itself has the noise of
    one micro-step. Batches of b are batches of Kb then; any other noise is averaged.

    Raises ValueError for a count that is no positive integer, and for a problem without noise.

    Example:
        >>> import optax
        >>> real = optax.MultiSteps(optax.adam(0.01, b2=0.999), 4)  # micro-batches: the noise of `problem`
        >>> fast = run_discrete(problem, real, params0, t1=0.1, lr=0.01, like=adam(c=10.0, bias_correction=True))
        >>> slow = simulate(accumulated(problem, 4), adam(c=10.0, bias_correction=True), params0, t1=0.1)
    """
    count = positive_integer("count", count)
    if not isinstance(problem, AbstractProblem) or problem.noise is None:
        raise ValueError(f"problem={shown(problem)} must be a problem with a noise, such as noise=LabelNoise(1.0).")
    noise = problem.noise if count == 1 else _mean_of(problem.noise, count)
    found: Any = eqx.tree_at(lambda p: p.noise, problem, noise)
    return found


def _mean_of(noise: AbstractNoise, count: int) -> AbstractNoise:
    # In the words of the noise itself where it has them, so that runs with batches of Kb belong to the same problem.
    if isinstance(noise, MinibatchNoise):
        return MinibatchNoise(count * noise.batch_size)
    if isinstance(noise, LabelNoise) and noise.batch_size is not None:
        return LabelNoise(noise.std, count * noise.batch_size, noise.kind)
    if isinstance(noise, GaussianNoise) and not callable(noise.function):
        return GaussianNoise(noise.function / np.sqrt(count))
    return MeanNoise(noise, count)


class MeanNoise(AbstractNoise):
    """The noise of the mean of `count` gradients of another noise, drawn one by one."""

    noise: AbstractNoise
    count: int = eqx.field(static=True)

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        return self.noise.factor(problem, chart, x) / np.sqrt(self.count)

    def sum_over_columns(
        self, function: Callable[[PyTree], PyTree], problem: AbstractProblem, chart: Coordinates, x: Vector
    ) -> PyTree:
        def of_smaller(column: PyTree) -> PyTree:
            return function(jax.tree.map(lambda leaf: leaf / np.sqrt(self.count), column))

        return self.noise.sum_over_columns(of_smaller, problem, chart, x)

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        # One after the other, with the keys that the micro-steps of a discrete run have.
        def add(j: Array, sum_: Vector) -> Vector:
            return sum_ + self.noise.gradient(problem, chart, x, jr.fold_in(key, j))

        return jax.lax.fori_loop(0, self.count, add, jnp.zeros_like(x)) / self.count

    def hessian_scale(self, problem: AbstractProblem) -> Any:
        alpha = self.noise.hessian_scale(problem)
        return None if alpha is None else alpha / self.count

    def diffuses(self, problem: AbstractProblem) -> bool:
        return self.noise.diffuses(problem)

    def check(self, problem: AbstractProblem) -> None:
        self.noise.check(problem)

    def report(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> dict[str, float]:
        return self.noise.report(problem, chart, x)

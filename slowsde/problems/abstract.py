"""What a problem is, a loss with the noise of its stochastic gradients, and what a noise model is.

A noise model gives a factor B(x), and B Bᵀ is the covariance Σ of its `gradient` at points of Γ, where alone the slow
SDE asks for it. Off Γ the two may differ: residuals that do not vanish add what the sampling of a batch varies by.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import manifolds as mf
from manifolds.support.blocks import sum_in_blocks
from manifolds.support.coordinates import Coordinates
from manifolds.support.user_functions import check_precision, check_signature, known_form, shown

from ..support.arguments import is_integer
from .route import Route, as_route


class AbstractProblem(eqx.Module):
    """A loss and the noise of its stochastic gradients."""

    noise: eqx.AbstractVar["AbstractNoise | None"]  # a field of each problem, after its data

    def __check_init__(self) -> None:
        if not (self.noise is None or isinstance(self.noise, AbstractNoise)):
            raise ValueError(
                f"noise={shown(self.noise)} must be a noise model, such as LabelNoise(std), GaussianNoise(factor) or "
                "MinibatchNoise(batch_size), or None."
            )

    @abc.abstractmethod
    def check_form(self, chart: Coordinates) -> None:
        """ValueError unless the user's function returns what it must, in the precision of params: by tracing alone."""

    @abc.abstractmethod
    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        """The loss on flat coordinates by `route`, a `Route` or its name."""


class AbstractSampledProblem(AbstractProblem):
    """The mean over n samples of a loss of each: what minibatches are drawn from."""

    data: eqx.AbstractVar[PyTree]  # leaves with the samples along their leading axis

    @abc.abstractmethod
    def datum_loss(self, params: PyTree, datum: PyTree) -> Any:
        """The loss of one sample."""

    def form_of_output(
        self, model: Callable[[PyTree, PyTree], Any], call: str, chart: Coordinates, data: PyTree
    ) -> Any:
        """The form of what `model` returns at params and the first of `data`, see `user_functions.form_of`."""
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf)), data)
        x = jax.ShapeDtypeStruct((chart.size,), jnp.result_type(float))
        check_signature(model, call, 2)
        return known_form((model, chart), lambda x, datum: model(chart.unravel(x), datum), call, x, one, precise=True)

    @property
    def num_samples(self) -> int:
        """n."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def loss(self, params: PyTree) -> Float[Array, ""]:
        """L(params) = (1/n) Σ_i datum_loss(params, datum_i)."""
        data = jax.tree.map(jnp.asarray, self.data)  # NumPy arrays would keep a precision that JAX may not have
        return jnp.mean(jax.vmap(self.datum_loss, (None, 0))(params, data))

    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        return dense_loss(self.loss, chart, route)


class AbstractLabelledProblem(AbstractSampledProblem):
    """Inputs with labels that a model fits exactly on Γ, so that H there comes from Jacobians of residuals."""

    inputs: eqx.AbstractVar[PyTree]
    targets: eqx.AbstractVar[Float[Array, "n *k"]]

    @abc.abstractmethod
    def least_squares_loss(self, chart: Coordinates, **route: Any) -> mf.LeastSquaresLoss:
        """The loss on flat coordinates with residuals and Jacobian; ValueError if the targets do not fit the model.

        `route` are the keywords `stored`, `memory` and `block` of `manifolds.LeastSquaresLoss`.
        """

    @property
    @abc.abstractmethod
    def num_residuals(self) -> int:
        """m, the number of equations that define Γ."""

    @property
    def data(self) -> PyTree:
        """Inputs and targets, paired."""
        return self.inputs, self.targets

    @property
    def num_samples(self) -> int:
        return self.targets.shape[0]

    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        route = as_route(route)
        name = route.of_residuals(self.num_residuals, chart.size)
        loss = self.least_squares_loss(chart, stored=name == "kernel", memory=route.memory, block=route.block)
        # The least-squares form is built on every route, as it checks that targets fit the model: by the dense one
        # alone they would be broadcast, as they once were without a word.
        return mf.ScalarLoss(self.loss, like=chart) if name == "dense" else loss

    def _output_shape(self, model: Callable[[PyTree, PyTree], Any], call: str, chart: Coordinates) -> tuple[int, ...]:
        """The shape that `model` returns for one input; ValueError unless that is one array of real numbers in the
        precision of params."""
        # By shapes alone: calling a large model eagerly costs seconds.
        found, name = self.form_of_output(model, call, chart, self.inputs), call.partition("(")[0]
        if not (hasattr(found, "shape") and jnp.issubdtype(found.dtype, jnp.floating)):
            raise ValueError(f"{name} must return real numbers, one array of them; {call} returns {found}.")
        check_precision(found, name, jnp.result_type(float))
        return found.shape


def dense_loss(function: Callable[[PyTree], Any], chart: Coordinates, route: "str | Route") -> mf.ScalarLoss:
    name = as_route(route).name
    if name not in ("auto", "dense"):
        raise ValueError(
            f"route={name!r} is not available for this problem: it needs LeastSquares or Classification. Use 'auto'."
        )
    return mf.ScalarLoss(function, like=chart)


Vector = Float[Array, " p"]


class AbstractNoise(eqx.Module):
    """A noise model. x is the flat vector of parameters, `chart` ties it to the user's pytree."""

    @abc.abstractmethod
    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        """B(x), the factor of the covariance Σ = B Bᵀ of one stochastic gradient at x on Γ."""

    def sum_over_columns(
        self, function: Callable[[PyTree], PyTree], problem: AbstractProblem, chart: Coordinates, x: Vector
    ) -> PyTree:
        """Σ_j function(b_j) over the columns b_j of B(x) as params-like pytrees: V(Σ) for V, tr SΣ for |S^½·|²."""
        # V is applied column by column, V(Σ) = Σ_j V(b_j b_jᵀ): Σ itself, p×p, is never formed, nor a root of it.
        columns = self.factor(problem, chart, x).T
        return sum_in_blocks(lambda b: function(chart.unravel_arrays(b)), columns, columns.shape[0])

    @abc.abstractmethod
    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        """One stochastic gradient at x: unbiased, of covariance Σ on Γ."""

    def hessian_scale(self, problem: AbstractProblem) -> Any:
        """α if Σ = αH on Γ, where the drift is −(α/4) Π S T[S]; None otherwise."""
        return None

    def diffuses(self, problem: AbstractProblem) -> bool:
        """Whether the noise has a part along Γ. Without one, Π S B = 0 on Γ, the slow SDE is an ODE."""
        # What is a multiple of H has no part in its null space; of any other noise this is not known, and label noise
        # of several std overrides it.
        return self.hessian_scale(problem) is None

    @abc.abstractmethod
    def check(self, problem: AbstractProblem) -> None:
        """ValueError unless this noise makes sense for `problem`."""

    def report(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> dict[str, float]:
        """What a run should tell about the accuracy of this noise model at its start x on Γ; ValueError if unfit."""
        return {}


def check_batch_size(batch_size: int | None, optional: bool) -> None:
    """ValueError unless batch_size is a positive integer (or None, where that means the full batch)."""
    if batch_size is None and optional:
        return
    if not (is_integer(batch_size) and batch_size >= 1):
        raise ValueError(f"batch_size={batch_size!r} must be a positive integer{' or None' if optional else ''}.")


def labelled(problem: AbstractProblem) -> AbstractLabelledProblem:
    if not isinstance(problem, AbstractLabelledProblem):
        raise ValueError(
            f"LabelNoise needs labels: a LeastSquares problem or Classification, not {type(problem).__name__}. Rewrite "
            "the loss as LeastSquares(predict, inputs, targets), or use GaussianNoise."
        )
    return problem


def sampled(problem: AbstractProblem) -> AbstractSampledProblem:
    if not isinstance(problem, AbstractSampledProblem):
        raise ValueError(
            f"MinibatchNoise needs samples: an EmpiricalRisk, LeastSquares or Classification, not "
            f"{type(problem).__name__}."
        )
    return problem


def drawn_batch(data: PyTree, num_samples: int, batch_size: int | None, key: PRNGKeyArray) -> PyTree:
    if batch_size is None:
        return data
    # With replacement, which is what Σ/b assumes.
    rows = jr.randint(key, (batch_size,), 0, num_samples)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)


def mean_gradient(
    datum_loss: Callable[[PyTree, PyTree], Array], chart: Coordinates, x: Vector, batch: PyTree
) -> Vector:
    def mean_loss(y: Vector) -> Array:
        # The gradient of a mean: one backward pass for the batch, and no gradient per sample is kept.
        return jnp.mean(jax.vmap(datum_loss, (None, 0))(chart.unravel(y), batch))

    return jax.grad(mean_loss)(x)

"""What is minimized: a loss, its noise, and its form on flat coordinates for the geometry."""

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.coordinates import Coordinates
from manifolds.cross_entropy import kl_divergence
from manifolds.precision import is_traced

from .route import Route, as_route

if TYPE_CHECKING:
    from .noise import AbstractNoise


class AbstractProblem(eqx.Module):
    """A loss and the noise of its stochastic gradients."""

    noise: eqx.AbstractVar["AbstractNoise | None"]  # a field of each problem, after its data

    @abc.abstractmethod
    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        """The loss on flat coordinates by `route`, a `Route` or its name."""


class Problem(AbstractProblem):
    """Any twice differentiable loss: `loss(params) -> scalar`, params a pytree of floating arrays.

    Example:
        >>> valley = Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=GaussianNoise(0.3))
        >>> valley.loss(jnp.array([1.0, 0.0]))
        Array(0.5, dtype=float32, weak_type=True)
    """

    loss: Callable[[PyTree], Any]
    noise: "AbstractNoise | None"

    def __init__(self, loss: Callable[[PyTree], Any], noise: "AbstractNoise | None" = None):
        self.loss = loss
        self.noise = noise

    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        return _dense(self.loss, chart, route)


class AbstractSampledProblem(AbstractProblem):
    """The mean over n samples of a loss of each: what minibatches are drawn from."""

    data: eqx.AbstractVar[PyTree]  # leaves with the samples along their leading axis

    @abc.abstractmethod
    def datum_loss(self, params: PyTree, datum: PyTree) -> Any:
        """The loss of one sample."""

    @property
    def num_samples(self) -> int:
        """n."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def loss(self, params: PyTree) -> Float[Array, ""]:
        """L(params) = (1/n) Σ_i datum_loss(params, datum_i)."""
        data = jax.tree.map(jnp.asarray, self.data)  # NumPy arrays would keep a precision that JAX may not have
        return jnp.mean(jax.vmap(self.datum_loss, (None, 0))(params, data))

    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        return _dense(self.loss, chart, route)


class EmpiricalRisk(AbstractSampledProblem):
    """The mean of `sample_loss(params, datum) -> scalar` over the leading axis n of data's leaves.

    Example:
        >>> risk = EmpiricalRisk(lambda w, z: (z @ w - 1) ** 2, data=jnp.eye(3), noise=MinibatchNoise(1))
        >>> risk.loss(jnp.zeros(3))
        Array(1., dtype=float32)
    """

    sample_loss: Callable[[PyTree, PyTree], Any]
    data: PyTree
    noise: "AbstractNoise | None"

    def __init__(
        self, sample_loss: Callable[[PyTree, PyTree], Any], data: PyTree, noise: "AbstractNoise | None" = None
    ):
        check_leading_axis(data, "data")
        self.sample_loss = sample_loss
        self.data = data
        self.noise = noise

    def datum_loss(self, params: PyTree, datum: PyTree) -> Any:
        """sample_loss(params, datum)."""
        return self.sample_loss(params, datum)


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
        return mf.ScalarLoss(self.loss, like=chart) if name == "dense" else loss

    def _output_shape(self, model: Callable[[PyTree, PyTree], Any], chart: Coordinates) -> tuple[int, ...]:
        """The shape that `model` returns for one input."""
        one = jax.tree.map(lambda leaf: leaf[0], self.inputs)
        point = jax.ShapeDtypeStruct((chart.size,), jnp.result_type(float))
        return np.shape(jax.eval_shape(lambda x: model(chart.unravel(x), one), point))


class LeastSquares(AbstractLabelledProblem):
    """L(params) = 1/(2n) Σ_i |predict(params, x_i) − y_i|², predict scalar- or vector-valued.

    `inputs` is a pytree with leading axis n, `targets` an array (n,) or (n, k).

    Example:
        >>> net = lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2)
        >>> problem = LeastSquares(net, inputs, targets, noise=LabelNoise(0.5))
    """

    predict: Callable[[PyTree, PyTree], Any]
    inputs: PyTree
    targets: Float[Array, "n *k"]
    noise: "AbstractNoise | None"

    def __init__(
        self,
        predict: Callable[[PyTree, PyTree], Any],
        inputs: PyTree,
        targets: Any,
        noise: "AbstractNoise | None" = None,
    ):
        check_leading_axis((inputs, targets), "inputs and targets")
        self.predict = predict
        self.inputs = inputs
        self.targets = targets
        self.noise = noise

    def datum_loss(self, params: PyTree, datum: PyTree) -> Float[Array, ""]:
        """½|predict(params, x) − y|²."""
        x, y = datum
        return 0.5 * jnp.sum((jnp.ravel(self.predict(params, x)) - jnp.ravel(y)) ** 2)

    @property
    def num_residuals(self) -> int:
        return self.targets.size

    def least_squares_loss(self, chart: Coordinates, **route: Any) -> mf.LeastSquaresLoss:
        found = self._output_shape(self.predict, chart)
        if np.prod(found) * self.num_samples != self.targets.size:
            raise ValueError(
                f"targets has shape {self.targets.shape}, but predict returns shape {found} for each of the "
                f"{self.num_samples} inputs."
            )
        return mf.LeastSquaresLoss(self.predict, self.inputs, self.targets, like=chart, **route)


class Classification(AbstractLabelledProblem):
    """L(params) = (1/n) Σ_i KL(π_i ‖ softmax logits(params, x_i)): mean cross-entropy against target probabilities.

    That is −(1/n) Σ_i Σ_k π_ik log softmax(logits_i)_k less the mean entropy of the targets, which moves no gradient
    and makes L vanish on Γ, where softmax(logits(params, x_i)) = π_i for every i.

    Args:
        logits: (params, x) -> (K,), K ≥ 2.
        inputs: a pytree with leading axis n.
        targets: (n, K) probabilities, all positive; rows sum to 1 (to 1e-4, and are then scaled to do so exactly).
            Hard labels have no minimizer at finite parameters: smooth them, (1 − s)·onehot + s/K with 0 < s < 1.
        noise: such as `LabelNoise(batch_size=1)`, which draws each label from its target.

    Raises ValueError for other targets.

    Example:
        >>> smoothed = 0.9 * np.eye(10)[digits] + 0.1 / 10
        >>> problem = Classification(network, images, smoothed, noise=LabelNoise(batch_size=1))
    """

    logits: Callable[[PyTree, PyTree], Any]
    inputs: PyTree
    targets: Float[Array, "n K"]
    noise: "AbstractNoise | None"

    def __init__(
        self,
        logits: Callable[[PyTree, PyTree], Any],
        inputs: PyTree,
        targets: Any,
        noise: "AbstractNoise | None" = None,
    ):
        check_leading_axis((inputs, targets), "inputs and targets")
        self.logits = logits
        self.inputs = inputs
        self.targets = check_probabilities(targets)
        self.noise = noise

    def datum_loss(self, params: PyTree, datum: PyTree) -> Float[Array, ""]:
        """KL(π ‖ softmax logits(params, x)); for a one-hot π that is −log of the probability of its class."""
        x, probabilities = datum
        return kl_divergence(probabilities, self.logits(params, x))

    @property
    def num_residuals(self) -> int:
        return self.targets.size - self.num_samples  # K − 1 a sample

    def least_squares_loss(self, chart: Coordinates, **route: Any) -> mf.CrossEntropyLoss:
        found = self._output_shape(self.logits, chart)
        if found != self.targets.shape[1:]:
            raise ValueError(
                f"targets has shape {self.targets.shape}, but logits returns shape {found} for each of the "
                f"{self.num_samples} inputs: it must return one number for each of the {self.targets.shape[1]} classes."
            )
        return mf.CrossEntropyLoss(self.logits, self.inputs, self.targets, like=chart, **route)


def from_sympy(expr: Any, symbols: Sequence[sympy.Symbol], noise: "AbstractNoise | None" = None) -> Problem:
    """A `Problem` from a SymPy expression; params is the flat vector of values in the order of `symbols`.

    Raises ValueError if the expression has symbols that are not listed.

    Example:
        >>> x, y = sympy.symbols("x y")
        >>> from_sympy((1 + y**2) * x**2 / 2, [x, y]).loss(jnp.array([1.0, 0.0]))
        Array(0.5, dtype=float32)
    """
    return Problem(loss=mf.sympy_function(expr, symbols), noise=noise)


def check_leading_axis(tree: PyTree, name: str) -> None:
    """ValueError unless all array leaves of `tree` share a leading axis of length at least 1."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]
    if not shapes or any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"{name} must be arrays with one common leading axis (the samples); their shapes are {shapes}."
        )
    if shapes[0][0] == 0:
        raise ValueError(f"{name} is empty: its leading axis (the samples) has length 0.")


def check_probabilities(targets: Any) -> Any:
    """The rows of `targets` (n, K), scaled to sum to 1 exactly; ValueError unless they are positive probabilities."""
    if np.ndim(targets) != 2 or np.shape(targets)[1] < 2:
        raise ValueError(
            f"targets has shape {np.shape(targets)}; it must be (n, K), K ≥ 2 class probabilities for each sample. For "
            "class numbers y, smooth one-hot rows: (1 − s) * np.eye(K)[y] + s / K."
        )
    if is_traced(targets):
        return targets
    rows = np.asarray(targets, float)
    if not (np.all(rows > 0) and np.all(rows < 1)):  # NaN fails too
        bad = int(np.argmin(np.all((rows > 0) & (rows < 1), axis=1)))
        raise ValueError(
            f"targets[{bad}] = {rows[bad]} must lie strictly between 0 and 1: hard labels have no minimizer at finite "
            "parameters. Smooth them: (1 - s) * onehot + s / K with 0 < s < 1."
        )
    sums = np.sum(rows, axis=1)
    if np.max(np.abs(sums - 1)) > 1e-4:
        bad = int(np.argmax(np.abs(sums - 1)))
        raise ValueError(f"targets[{bad}] sums to {sums[bad]:.6g}, not to 1. Divide each row by its sum.")
    return rows / sums[:, None]


def _dense(function: Callable[[PyTree], Any], chart: Coordinates, route: "str | Route") -> mf.ScalarLoss:
    name = as_route(route).name
    if name not in ("auto", "dense"):
        raise ValueError(
            f"route={name!r} is not available for this problem: it needs LeastSquares or Classification. Use 'auto'."
        )
    return mf.ScalarLoss(function, like=chart)

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

if TYPE_CHECKING:
    from .noise import AbstractNoise

ROUTES = ("auto", "dense", "kernel")


class AbstractProblem(eqx.Module):
    """A loss and the noise of its stochastic gradients."""

    noise: eqx.AbstractVar["AbstractNoise | None"]  # a field of each problem, after its data

    @abc.abstractmethod
    def flat_loss(self, chart: Coordinates, route: str = "auto") -> mf.AbstractLoss:
        """The loss on flat coordinates by `route`: "dense" (any loss), "kernel" (least squares) or "auto"."""


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

    def flat_loss(self, chart: Coordinates, route: str = "auto") -> mf.AbstractLoss:
        return _dense(self.loss, chart, route)


class EmpiricalRisk(AbstractProblem):
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

    @property
    def num_samples(self) -> int:
        """n."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def loss(self, params: PyTree) -> Float[Array, ""]:
        """L(params) = (1/n) Σ_i sample_loss(params, datum_i)."""
        return jnp.mean(jax.vmap(self.sample_loss, (None, 0))(params, self.data))

    def datum_loss(self, params: PyTree, datum: PyTree) -> Float[Array, ""]:
        """The term of L that one datum contributes (times n)."""
        return self.sample_loss(params, datum)

    def flat_loss(self, chart: Coordinates, route: str = "auto") -> mf.AbstractLoss:
        return _dense(self.loss, chart, route)


class LeastSquares(AbstractProblem):
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

    @property
    def num_samples(self) -> int:
        """n."""
        return self.targets.shape[0]

    @property
    def data(self) -> PyTree:
        """Inputs and targets, paired."""
        return self.inputs, self.targets

    def loss(self, params: PyTree) -> Float[Array, ""]:
        """L(params)."""
        return jnp.mean(jax.vmap(self.datum_loss, (None, 0))(params, self.data))

    def datum_loss(self, params: PyTree, datum: PyTree) -> Float[Array, ""]:
        """½|predict(params, x) − y|²."""
        x, y = datum
        return 0.5 * jnp.sum((jnp.ravel(self.predict(params, x)) - jnp.ravel(y)) ** 2)

    def least_squares_loss(self, chart: Coordinates) -> mf.LeastSquaresLoss:
        """The loss on flat coordinates with its residuals and Jacobian; ValueError if targets do not fit predict."""
        one = jax.tree.map(lambda leaf: leaf[0], self.inputs)
        point = jax.ShapeDtypeStruct((chart.size,), jnp.result_type(float))
        found = jax.eval_shape(lambda x: self.predict(chart.unravel(x), one), point)
        if np.prod(np.shape(found)) * self.num_samples != self.targets.size:
            raise ValueError(
                f"targets has shape {self.targets.shape}, but predict returns shape {np.shape(found)} for each of the "
                f"{self.num_samples} inputs."
            )
        return mf.LeastSquaresLoss(self.predict, self.inputs, self.targets, like=chart)

    def flat_loss(self, chart: Coordinates, route: str = "auto") -> mf.AbstractLoss:
        if route not in ROUTES:
            raise ValueError(f"route={route!r} is not one of {ROUTES}.")
        loss = self.least_squares_loss(chart)
        if route == "auto":
            route = "kernel" if self.targets.size < chart.size else "dense"
        return loss if route == "kernel" else mf.ScalarLoss(self.loss, like=chart)


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


def _dense(function: Callable[[PyTree], Any], chart: Coordinates, route: str) -> mf.ScalarLoss:
    if route not in ROUTES or route == "kernel":
        raise ValueError(f"route={route!r} is not available for this problem: 'kernel' needs LeastSquares. Use 'auto'.")
    return mf.ScalarLoss(function, like=chart)

"""Least squares: a model that fits its targets exactly on Γ."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.support.coordinates import Coordinates

from ..support.arguments import as_targets, check_data, check_leading_axis, function
from .abstract import AbstractLabelledProblem, AbstractNoise


class LeastSquares(AbstractLabelledProblem):
    """L(params) = 1/(2n) Σ_i |predict(params, x_i) − y_i|², predict scalar- or vector-valued.

    `inputs` is a pytree with leading axis n, `targets` an array (n,) or (n, k).

    Example:
        >>> net = lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2)
        >>> inputs, targets = np.eye(3), np.array([1.0, 0.0, 0.0])
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
        check_data(inputs, "inputs")
        targets = as_targets(targets)
        check_leading_axis((inputs, targets), "inputs and targets")
        self.predict = function("predict", predict, "predict(params, x)")
        self.inputs = inputs
        self.targets = targets
        self.noise = noise

    def check_form(self, chart: Coordinates) -> None:
        self.least_squares_loss(chart)  # which has to know

    def datum_loss(self, params: PyTree, datum: PyTree) -> Float[Array, ""]:
        """½|predict(params, x) − y|²."""
        x, y = datum
        # The ½ makes H = JᵀJ/n, without it α would be twice as large.
        return 0.5 * jnp.sum((jnp.ravel(self.predict(params, x)) - jnp.ravel(y)) ** 2)

    @property
    def num_residuals(self) -> int:
        # One equation for each output of each sample.
        return self.targets.size

    def least_squares_loss(self, chart: Coordinates, **route: Any) -> mf.LeastSquaresLoss:
        # Predictions (n, 1) against targets (n,) would broadcast to (n, n) without a word.
        found = self._output_shape(self.predict, "predict(params, x)", chart)
        if np.prod(found) * self.num_samples != self.targets.size:
            raise ValueError(
                f"targets has shape {self.targets.shape}, but predict returns shape {found} for each of the "
                f"{self.num_samples} inputs."
            )
        return mf.LeastSquaresLoss(self.predict, self.inputs, self.targets, like=chart, **route)

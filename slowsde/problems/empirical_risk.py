"""The mean of a loss over samples."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from manifolds.support.coordinates import Coordinates
from manifolds.support.user_functions import as_scalar, check_precision

from ..support.arguments import check_data, check_leading_axis, function
from .abstract import AbstractNoise, AbstractSampledProblem


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
        check_data(data, "data")
        check_leading_axis(data, "data")
        self.sample_loss = function("sample_loss", sample_loss, "sample_loss(params, datum) -> scalar")
        self.data = data
        self.noise = noise

    def check_form(self, chart: Coordinates) -> None:
        # A mean would make a scalar of any array.
        call = "sample_loss(params, datum)"
        found = as_scalar(self.form_of_output(self.sample_loss, call, chart, self.data), call)
        check_precision(found, "sample_loss", jnp.result_type(float))

    def datum_loss(self, params: PyTree, datum: PyTree) -> Any:
        """sample_loss(params, datum)."""
        return self.sample_loss(params, datum)

"""The mean of a loss over samples."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from ..support.arguments import check_leading_axis
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
        check_leading_axis(data, "data")
        self.sample_loss = sample_loss
        self.data = data
        self.noise = noise

    def datum_loss(self, params: PyTree, datum: PyTree) -> Any:
        """sample_loss(params, datum)."""
        return self.sample_loss(params, datum)

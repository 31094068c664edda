"""Any twice differentiable loss: a JAX function of a pytree, or a SymPy expression."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

import manifolds as mf
from manifolds.support.coordinates import Coordinates
from manifolds.support.user_functions import check_precision, check_signature, scalar_of

from ..support.arguments import function
from .abstract import AbstractNoise, AbstractProblem, dense_loss
from .route import Route

if TYPE_CHECKING:
    import sympy


class Problem(AbstractProblem):
    """Any twice differentiable loss: `loss(params) -> scalar`, params a pytree of floating arrays.

    Example:
        >>> valley = Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=GaussianNoise(0.3))
        >>> float(valley.loss(jnp.array([1.0, 0.0])))
        0.5
    """

    loss: Callable[[PyTree], Any]
    noise: "AbstractNoise | None"

    def __init__(self, loss: Callable[[PyTree], Any], noise: "AbstractNoise | None" = None):
        self.loss = function("loss", loss, "loss(params) -> scalar")
        self.noise = noise

    def check_form(self, chart: Coordinates) -> None:
        check_signature(self.loss, "loss(params)", 1)
        x = jax.ShapeDtypeStruct((chart.size,), jnp.result_type(float))
        found = scalar_of(lambda x: self.loss(chart.unravel(x)), "loss(params)", x)
        check_precision(found, "loss", x.dtype)

    def flat_loss(self, chart: Coordinates, route: "str | Route" = "auto") -> mf.AbstractLoss:
        return dense_loss(self.loss, chart, route)


def from_sympy(expr: Any, symbols: "Sequence[sympy.Symbol]", noise: "AbstractNoise | None" = None) -> Problem:
    """A `Problem` from a SymPy expression; params is the flat vector of values in the order of `symbols`.

    Raises ValueError if the expression has symbols that are not listed.

    Example:
        >>> x, y = sympy.symbols("x y")
        >>> from_sympy((1 + y**2) * x**2 / 2, [x, y]).loss(jnp.array([1.0, 0.0]))
        Array(0.5, dtype=float32)
    """
    return Problem(loss=mf.sympy_function(expr, symbols), noise=noise)

"""What a metric is, a named scalar of position and optimizer state, and its evaluation along a run.

A `Metric` is called by runs with the slow SDE at hand, and by users with a problem, `trace_hessian(problem, params)`.
A plain function of params becomes one by its name. The library's own are in `sharpness` and `of_params`; what takes
dense Hessians or n×n kernels has a substitute in `estimated` for larger problems, by products at random vectors, with
error bars.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import in_working_precision
from manifolds.support.user_functions import check_signature, form_of

from ..dynamics.ensemble import map_points, points_in_block
from ..dynamics.slow_sde import SlowSDE
from ..problems.abstract import AbstractProblem

Vector = Float[Array, " p"]


@dataclass(frozen=True)
class Metric:
    """A named scalar `function(sde, x, v)` of position and optimizer state, on flat coordinates."""

    name: str
    function: Callable[[SlowSDE, Vector, PyTree], Array]

    @in_working_precision
    def __call__(self, problem: AbstractProblem, params: PyTree, optimizer: Any = None, v: PyTree = None) -> Array:
        """The metric at params; metrics of the preconditioned geometry also need `optimizer` and `v`."""
        chart = Coordinates.of(params)
        return self.function(SlowSDE(problem, optimizer, problem.flat_loss(chart)), ravel(params), v)


@dataclass(frozen=True)
class OfParams:
    """A user's function of params as a metric; equal for equal functions, so that compiled code is reused."""

    function: Callable[[PyTree], Any]

    def __call__(self, sde: SlowSDE, x: Vector, v: PyTree) -> Any:
        value = self.function(sde.chart.unravel(x))
        # A cast would drop an imaginary part without a word; None and strings are for `check_metrics` to name.
        known = isinstance(value, (jax.Array, np.ndarray, np.generic, int, float))
        return jnp.asarray(value, x.dtype) if known and not jnp.iscomplexobj(value) else value


def check_metrics(metrics: dict[str, Metric], sde: SlowSDE, x: Vector, v: PyTree) -> None:
    """ValueError unless each metric is a real scalar at (x, v)."""
    for name, metric in metrics.items():
        # By shapes, before the run: a metric that returns a vector would fail after all paths are computed.
        call = f"metrics[{name!r}](params)"
        if isinstance(metric.function, OfParams):
            check_signature(metric.function.function, call, 1)
        found = form_of(lambda y, s, metric=metric: metric.function(sde, y, s), call, x, v)
        if getattr(found, "shape", None) != ():
            raise ValueError(f"metrics[{name!r}] returns shape {getattr(found, 'shape', found)}; it must be a scalar.")
        if not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(f"metrics[{name!r}] returns {found.dtype}; it must return a real scalar.")


def evaluate(metrics: dict[str, Metric], sde: SlowSDE, xs: Any, vs: PyTree) -> dict[str, Any]:
    """Each metric at every saved point: xs (paths, T, p), vs leaves (paths, T, ...) -> name -> (paths, T)."""
    if not metrics:
        return {}
    # All metrics of a point in one program, as they share H.
    return map_points(_at_point, (tuple(metrics.items()), sde), (xs, vs), points_in_block(sde, xs[0, 0]))


def _at_point(shared: Any, point: tuple[Vector, PyTree]) -> dict[str, Array]:
    metrics, sde = shared
    x, v = point
    return {name: metric.function(sde, x, v) for name, metric in metrics}

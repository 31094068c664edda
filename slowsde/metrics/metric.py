"""Named scalars along a run: `metrics=("trace_hessian", "loss")` or {name: fn(params) -> scalar}.

A library metric is a `Metric`: a function of the whole state that `simulate`, `run_discrete` and the user can call,
`trace_hessian(problem, params)`. Hessians are those on Γ (Gauss–Newton for least squares, where that is exact).
Eigenvalues take dense Hessians or n×n kernels; for larger problems `metrics.estimated` has traces and eigenvalues with
error bars.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import in_working_precision

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

    def __call__(self, sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        return jnp.asarray(self.function(sde.chart.unravel(x)), x.dtype)


def check_metrics(metrics: dict[str, Metric], sde: SlowSDE, x: Vector, v: PyTree) -> None:
    """ValueError unless each metric is a real scalar at (x, v)."""
    for name, metric in metrics.items():
        shape = jax.eval_shape(lambda y, s, metric=metric: metric.function(sde, y, s), x, v)
        if shape.shape != ():
            raise ValueError(f"metrics[{name!r}] returns shape {shape.shape}; it must return a scalar.")


def evaluate(metrics: dict[str, Metric], sde: SlowSDE, xs: Any, vs: PyTree) -> dict[str, Any]:
    """Each metric at every saved point: xs (paths, T, p), vs leaves (paths, T, ...) -> name -> (paths, T)."""
    if not metrics:
        return {}
    return map_points(_at_point, (tuple(metrics.items()), sde), (xs, vs), points_in_block(sde, xs[0, 0]))


def _at_point(shared: Any, point: tuple[Vector, PyTree], shown: Any) -> dict[str, Array]:
    metrics, sde = shared
    x, v = point
    return {name: metric.function(sde, x, v) for name, metric in metrics}

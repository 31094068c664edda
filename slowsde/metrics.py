"""Named scalars along a run: `metrics=("trace_hessian", "loss")` or {name: fn(params) -> scalar}.

A library metric is a `Metric`: a function of the whole state that `simulate`, `run_discrete` and the user can call,
`trace_hessian(problem, params)`. Hessians are those on Γ (Gauss–Newton for least squares, where that is exact).
Eigenvalues take dense Hessians or n×n kernels; for larger problems `metrics.estimated` has traces and eigenvalues with
error bars.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.coordinates import Coordinates, ravel
from manifolds.precision import in_working_precision

from . import estimated as estimated
from .ensemble import map_points, points_in_block
from .problems import AbstractProblem, check_leading_axis
from .slow_sde import SlowSDE

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


def _diagonal(sde: SlowSDE, x: Vector) -> Vector:
    return jnp.maximum(sde.loss.hessian_diagonal(x), 0)  # rounding must not make a root of it imaginary


@dataclass(frozen=True)
class _OfParams:
    """A user's function of params as a metric; equal for equal functions, so that compiled code is reused."""

    function: Callable[[PyTree], Any]

    def __call__(self, sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        return jnp.asarray(self.function(sde.chart.unravel(x)), x.dtype)


def trace_power_diag_hessian(exponent: float) -> Metric:
    """tr Diag(H)^exponent: what AdamE-λ minimizes under label noise, at exponent 1 − λ."""
    return Metric(
        f"trace_power_diag_hessian({exponent})", lambda sde, x, v: jnp.sum(_diagonal(sde, x) ** float(exponent))
    )


def distance(params: PyTree) -> Metric:
    """|θ − params|, the Euclidean distance from a given point."""
    origin = np.asarray(ravel(params))
    return Metric("distance", lambda sde, x, v: jnp.linalg.norm(x - origin))


def accuracy(logits: Callable[[PyTree, PyTree], Any], inputs: PyTree, labels: Any) -> Metric:
    """The share of samples whose largest logit is that of their class, on data kept from training.

    (That of the training data does not change along Γ.) `logits(params, x) -> (K,)`, `inputs` a pytree with leading
    axis n, `labels` (n,) class numbers; ValueError for others.

    Example:
        >>> simulate(problem, adam(c=1.0), params0, 1.0, metrics=(accuracy(network, test_images, test_digits),))
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"labels has shape {classes.shape} and dtype {classes.dtype}; it must be (n,) class numbers. For targets "
            "(n, K) take their argmax along axis 1."
        )
    check_leading_axis((inputs, classes), "inputs and labels")

    def share(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        found = jax.vmap(logits, (None, 0))(sde.chart.unravel(x), inputs)
        return jnp.mean((jnp.argmax(found, axis=-1) == classes).astype(x.dtype))

    return Metric("accuracy", share)


def gradient_norm(eps: float = 0.0) -> Metric:
    """‖∇L‖_{1,ε} = Σ_i √((∂_iL)² + ε), ε ≥ 0: the norm in the correction of `backward_error`; the 1-norm for ε = 0."""
    if not eps >= 0:
        raise ValueError(f"eps={eps} must not be negative.")
    return Metric(f"gradient_norm({eps})", lambda sde, x, v: jnp.sum(jnp.sqrt(sde.loss.gradient(x) ** 2 + float(eps))))


def participation_ratio(function: Callable[[PyTree], Any] | None = None) -> Metric:
    """(Σ a_i²)²/Σ a_i⁴ of a = function(params), any array or pytree of them (None: all parameters): how many entries
    carry its size, from 1 (one entry) to their number (all alike).

    Example:
        >>> participation_ratio(lambda w: w["u"] ** 2 - w["v"] ** 2)  # of the predictor of a diagonal network
    """

    def ratio(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        squares = _entries(function, sde, x) ** 2
        return jnp.sum(squares) ** 2 / jnp.sum(squares**2)

    return Metric("participation_ratio", ratio)


def sparsity(function: Callable[[PyTree], Any] | None = None, threshold: float = 1e-3) -> Metric:
    """The share of entries of a = function(params) (None: all parameters) with |a_i| ≤ threshold · max_j |a_j|."""
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} must lie in [0, 1), relative to the largest entry.")

    def share(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        sizes = jnp.abs(_entries(function, sde, x))
        return jnp.mean((sizes <= threshold * jnp.max(sizes)).astype(x.dtype))

    return Metric("sparsity", share)


def effective_rank(function: Callable[[PyTree], Any]) -> Metric:
    """exp(−Σ_i p_i ln p_i), p_i = σ_i/Σ_j σ_j, σ_i the singular values of the matrix function(params).

    From 1 to its rank (Roy and Vetterli 2007). ValueError unless `function` returns a matrix.

    Example:
        >>> effective_rank(lambda w: w["left"] @ w["right"])
    """

    def rank(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        matrix = jnp.asarray(function(sde.chart.unravel(x)), x.dtype)
        if matrix.ndim != 2:
            raise ValueError(f"effective_rank: function returns shape {matrix.shape}; it must return a matrix.")
        values = jnp.linalg.svd(matrix, compute_uv=False)
        share = values / jnp.sum(values)
        return jnp.exp(jnp.sum(jax.scipy.special.entr(share)))

    return Metric("effective_rank", rank)


def _entries(function: Callable[[PyTree], Any] | None, sde: SlowSDE, x: Vector) -> Vector:
    if function is None:
        return x
    leaves = jax.tree.leaves(function(sde.chart.unravel(x)))
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, x.dtype)) for leaf in leaves])


def _r_med(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
    diagonal = jnp.abs(sde.loss.hessian_diagonal(x))
    return jnp.max(diagonal) / jnp.median(diagonal)


loss = Metric("loss", lambda sde, x, v: sde.loss.value(x))
"""L(θ)."""
trace_hessian = Metric("trace_hessian", lambda sde, x, v: jnp.sum(sde.loss.hessian_diagonal(x)))
"""tr H: what SGD minimizes under label noise."""
trace_sqrt_diag_hessian = Metric("trace_sqrt_diag_hessian", lambda sde, x, v: jnp.sum(jnp.sqrt(_diagonal(sde, x))))
"""tr Diag(H)^½: what Adam minimizes under label noise."""
adaptive_sharpness = Metric("adaptive_sharpness", lambda sde, x, v: sde.loss.trace(x, sde.metric(v)))
"""tr(S(v) H) = tr H', the sharpness in the optimizer's own metric."""
r_med = Metric("r_med", _r_med)
"""max_i |H_ii| / median_i |H_ii| (Jiang, Malik and Li)."""

largest_eigenvalue = Metric("largest_eigenvalue", lambda sde, x, v: sde.loss.largest_eigenvalue(x, mf.Identity()))
"""λ_max(H)."""
adaptive_largest_eigenvalue = Metric(
    "adaptive_largest_eigenvalue", lambda sde, x, v: sde.loss.largest_eigenvalue(x, sde.metric(v))
)
"""λ_max(H') = λ_max(S^½ H S^½): η times it bounds the step at which an adaptive method is stable."""

NAMED = {
    m.name: m
    for m in (
        loss,
        trace_hessian,
        trace_sqrt_diag_hessian,
        adaptive_sharpness,
        r_med,
        largest_eigenvalue,
        adaptive_largest_eigenvalue,
    )
}


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """{name: Metric} from names, `Metric` objects, {name: fn(params) -> scalar}, or a sequence of the first two."""
    if isinstance(metrics, (str, Metric)):
        metrics = (metrics,)
    if isinstance(metrics, Mapping):
        return {str(name): _as_metric(name, entry) for name, entry in metrics.items()}
    if not isinstance(metrics, Sequence):
        raise ValueError(f"metrics={metrics!r} must be names from slowsde.metrics or {{name: fn(params) -> scalar}}.")
    found = [_as_metric(entry, entry) for entry in metrics]
    return {metric.name: metric for metric in found}


def _as_metric(name: Any, entry: Any) -> Metric:
    if isinstance(entry, Metric):
        return entry
    if isinstance(entry, str):
        if entry not in NAMED:
            raise ValueError(
                f"metrics: {entry!r} is not one of {sorted(NAMED)}; with parameters there are "
                "metrics.trace_power_diag_hessian(exponent), metrics.gradient_norm(eps), metrics.distance(params), "
                "metrics.participation_ratio(function), metrics.sparsity(function), metrics.effective_rank(function) "
                "and metrics.accuracy(logits, inputs, labels), or pass {name: fn}."
            )
        return NAMED[entry]
    if callable(entry) and isinstance(name, str):
        return Metric(name, _OfParams(entry))
    raise ValueError(f"metrics: {entry!r} is neither a name, a Metric nor a function of params under a name.")


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

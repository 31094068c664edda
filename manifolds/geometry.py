"""The public functions of the geometry: pytrees in, pytrees out, errors on bad input, double precision by default.

Each takes `loss`, a function of params or an `AbstractLoss`; `x`, the params; and `metric`, anything that `as_metric`
understands (None is the Euclidean metric).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from . import second_order
from .losses.abstract import AbstractLoss
from .losses.scalar import ScalarLoss
from .maps.limit_map import LimitPoint, ManifoldError, as_rank, check_limit, compiled_limit_point
from .maps.on_manifold import check_on_manifold, off_manifold
from .maps.return_map import Returned, ranked_return
from .metrics.abstract import AbstractMetric
from .metrics.conversion import as_metric
from .normal.normal_space import AbstractNormalSpace
from .support.compilation import compiled, compiled_once
from .support.coordinates import Coordinates, check_finite, ravel
from .support.precision import in_working_precision, is_traced
from .support.user_functions import check_precision, check_signature, scalar_of, shown

Loss = AbstractLoss | Callable[[PyTree], Any]


@in_working_precision
def limit(loss: Loss, x: PyTree, metric: Any = None, *, rank: int | None = None, **options: Any) -> LimitPoint:
    """Φ_S(x) with its report: distance travelled, residual, rank and spectrum found (a `LimitPoint`).

    Raises `ManifoldError` (a ValueError) if the flow does not converge, ends at a saddle, or the rank is unclear.
    (Least squares and classification do not need the rank, which is then a finding alone, as at singular points of Γ.)

    Example:
        >>> found = limit(lambda x: 0.25 * (x @ x - 1) ** 2, jnp.array([2.0, 0.0]))
        >>> found.rank, found.distance
        (array(1), array(1.))
    """
    return checked_limit(*_on_coordinates(loss, x, metric, rank)[:3], rank, **options)


@in_working_precision
def limit_map(loss: Loss, x: PyTree, metric: Any = None, *, rank: int | None = None, **options: Any) -> PyTree:
    """Φ_S(x) = lim_{t→∞} of the preconditioned gradient flow ẋ = −S ∇L(x): the point of Γ where it ends.

    Args:
        loss: params -> scalar, or an `AbstractLoss`.
        x: params; any start in the basin of Γ.
        metric: S (see `as_metric`); None for the Euclidean flow.
        rank: the rank of ∇²L on Γ; found from the spectrum if None.
        options: `rtol=1e-8` (relative error of a step of the flow), `max_steps=10_000`, `shown` (a Diffrax progress
            meter, told of every step).

    Returns: a pytree like x, on Γ to rounding. Differentiable in forward mode (jax.jvp, jax.jacfwd).
    Raises: `ManifoldError` (a ValueError), see `limit`.

    Example:
        >>> limit_map(lambda x: 0.25 * (x @ x - 1) ** 2, jnp.array([2.0, 0.0]))
        array([1., 0.])
    """
    loss, x, metric, chart = _on_coordinates(loss, x, metric, rank)
    return chart.unravel(checked_limit(loss, x, metric, rank, **options).point)


def checked_limit(
    loss: AbstractLoss, x: Array, metric: AbstractMetric, rank: Any = None, *, what: str = "x", **options: Any
) -> LimitPoint:
    """`limit` on flat coordinates, in the precision that is set; `what` is the name of x in errors."""
    found = compiled_limit_point(loss, x, metric, as_rank(rank, x.size), **options)
    if not is_traced(found):
        check_limit(found, loss, metric, what)
    return found


@in_working_precision
def return_to_manifold(loss: Loss, x: PyTree, metric: Any = None, *, rank: int | None = None) -> PyTree:
    """The Gauss–Newton return to Γ in the metric S: x ← x − S^½(H')⁺S^½∇L(x) until it converges.

    Agrees with Φ_S in the first derivative on Γ, and in the second on tangent vectors, at a fraction of its cost.
    Raises `ManifoldError` where it does not converge.

    Example:
        >>> return_to_manifold(lambda x: 0.25 * (x @ x - 1) ** 2, jnp.array([1.1, 0.0]))
        array([1., 0.])
    """
    loss, x, metric, chart = _on_coordinates(loss, x, metric, rank)
    # The rank must be that on Γ: at x, off Γ, tangential eigenvalues are as large as the distance. Counted there they
    # once made the return move along Γ, with a wrong second derivative.
    returned = _return(loss, x, metric, as_rank(rank, chart.size))
    if not is_traced(returned) and not bool(returned.converged):
        raise ManifoldError("The Gauss–Newton return from x did not converge: x is too far from Γ. Use limit_map.")
    return chart.unravel(returned.point)


@in_working_precision
def project(loss: Loss, x: PyTree, metric: Any, w: PyTree) -> PyTree:
    """Π w, Π = ∂Φ_S(x) at x on Γ: the oblique projection on the tangent space along S·(normal space).

    Raises ValueError if x is not on Γ, or w is not like x or not finite.

    Example:
        >>> project(lambda x: 0.25 * (x @ x - 1) ** 2, jnp.array([1.0, 0.0]), None, jnp.array([1.0, 1.0]))
        array([0., 1.])
    """
    loss, x, metric, chart = _on_coordinates(loss, x, metric)
    w = _entries("w", ravel(w), x.size)
    # Tangent vectors have no leaves that are no arrays: None in their place, as in gradients.
    return chart.unravel_arrays(_normal_space(loss, x, metric).project(w))


@in_working_precision
def projector(loss: Loss, x: PyTree, metric: Any = None) -> Float[Array, "p p"]:
    """Π = S^½ Q0 S^-½ as a (p, p) matrix in flat coordinates, at x on Γ; ValueError if it is not.

    Example:
        >>> projector(lambda x: 0.25 * (x @ x - 1) ** 2, jnp.array([1.0, 0.0])).round(12)
        array([[0., 0.],
               [0., 1.]])
    """
    loss, x, metric, chart = _on_coordinates(loss, x, metric)
    return _normal_space(loss, x, metric).project(jnp.eye(chart.size, dtype=x.dtype))


@in_working_precision
def contract_third(loss: Callable[[PyTree], Any], x: PyTree, matrix: Any) -> PyTree:
    """T[M] = ∇⟨∇²L(x), M⟩, M held fixed: the contraction of the third derivative with a symmetric M, params-like.

    `matrix` is a (p, p) array, a metric, or a pair of factors (U, W), each (p, k), for M = ½(UWᵀ + WUᵀ). No p×p×p
    array is formed. Always the full vector: takes a loss function, not a least-squares object. Raises ValueError for a
    matrix of another size, or one that is not finite.

    Example:
        >>> contract_third(lambda x: x[0] ** 2 * x[1], jnp.ones(2), jnp.eye(2))
        array([0., 2.])
    """
    # A least-squares object would leave out what Π S kills; the full vector needs the dense route.
    dense, x, _, chart = _on_coordinates(loss, x, None)
    scalar = ScalarLoss(dense.value, like=Coordinates.of(x))
    if isinstance(matrix, tuple):
        left, right = matrix
    else:
        # M = Σ_k e_k (M e_k)ᵀ, column by column in blocks, so that no p×p×p array is met.
        columns = jnp.eye(chart.size, dtype=x.dtype)
        left, right = columns, matrix(columns) if isinstance(matrix, AbstractMetric) else matrix
    left, right = _entries("matrix", left, x.size), _entries("matrix", right, x.size)
    return chart.unravel_arrays(scalar.contract_factors(x, left, right))


@in_working_precision
def second_derivative(loss: Loss, x: PyTree, metric: Any, factor: Float[Array, "p r"]) -> PyTree:
    """∂²Φ_S(x)[S B Bᵀ S] at x on Γ, params-like: twice the Itô drift that gradient noise of covariance B Bᵀ causes.

    Computed as −Π S T[C] − S^½(H')⁺S^½ T[Σ_∥] (Lyapunov weights, no derivative through the flow). Raises ValueError if
    x is not on Γ, or factor has not p rows or is not finite.

    Example:
        >>> circle = lambda x: 0.25 * (x @ x - 1) ** 2
        >>> second_derivative(circle, jnp.array([1.0, 0.0]), None, jnp.array([[0.0], [1.0]]))[:1]
        array([-1.])
    """
    loss, x, metric, chart = _on_coordinates(loss, x, metric)
    # By the formula, not through the flow: on Γ the flow stops at once, so that automatic differentiation of
    # `limit_map` would give the second derivative of the return alone, which is another one off the tangent space.
    factor = _entries("factor", factor, x.size)
    normal = _normal_space(loss, x, metric)
    drift = second_order.tangential_drift(loss, x, normal, factor) + second_order.normal_drift(loss, x, normal, factor)
    return chart.unravel_arrays(2 * drift)


def _normal_space(loss: AbstractLoss, x: Array, metric: AbstractMetric) -> AbstractNormalSpace:
    """The normal space at x; ValueError unless x is on Γ, ManifoldError at a saddle.

    Off Γ eigenvectors of the Hessian are those of nothing: on the circle, where it has full rank, Π was zero there.
    """
    normal = loss.normal_space(x, metric)
    if not is_traced(loss, x, metric):
        check_on_manifold(off_manifold(loss, x, normal))
        if isinstance(loss, ScalarLoss) and (lowest := float(loss.negative_curvature(x))) < 0:
            raise ManifoldError(
                f"params is a saddle or a maximum: the Hessian there has the eigenvalue {lowest:.3g}. Move it to the "
                "minimizers with manifolds.limit_map(loss, params, metric)."
            )
    return normal


def _entries(name: str, value: Any, rows: int) -> Array:
    """`value` as an array; ValueError unless it is finite and has so many rows."""
    value = jnp.asarray(value)
    if value.shape[:1] != (rows,):
        raise ValueError(
            f"{name} has shape {value.shape}, and params {rows} entries: its first axis must be {rows} long."
        )
    if not is_traced(value) and not np.all(np.isfinite(np.asarray(value))):
        raise ValueError(f"{name} has entries that are NaN or infinite.")
    return value


@compiled
def _return(loss: AbstractLoss, x: Array, metric: AbstractMetric, rank: Array | None) -> Returned:
    return ranked_return(loss, x, metric, rank).returned


def _on_coordinates(
    loss: Loss, x: PyTree, metric: Any, rank: Any = None
) -> tuple[AbstractLoss, Array, AbstractMetric, Coordinates]:
    chart = Coordinates.of(x)
    check_finite(x)
    flat = ravel(x)
    if not isinstance(loss, AbstractLoss) and not callable(loss):
        raise ValueError(f"loss={shown(loss)} must be a function, loss(params) -> scalar, or a loss of manifolds.")
    loss = loss if isinstance(loss, AbstractLoss) else ScalarLoss(loss, like=chart)
    # All that is known by forms first: the numbers of a loss take a program.
    check_loss_form(loss, flat)
    metric = as_metric(metric, chart.size)
    as_rank(rank, chart.size)
    check_loss(loss, flat)
    return loss, flat, metric, chart


def check_loss(loss: AbstractLoss, x: Float[Array, " p"]) -> None:
    """ValueError unless L is scalar, keeps the precision of x, and is finite with finite first two derivatives at x."""
    check_loss_form(loss, x)
    if is_traced(loss, x):
        return
    for name, finite in zip(("value", "gradient", "second derivative"), _finite_derivatives(loss, x), strict=True):
        if not bool(finite):
            raise ValueError(
                f"The {name} of loss is not finite at params. Start where the loss is finite and twice "
                "differentiable (beware of jnp.where around a singularity, and of sqrt and abs at 0)."
            )


def check_loss_form(loss: AbstractLoss, x: Float[Array, " p"]) -> None:
    """ValueError unless L is scalar and keeps the precision of x: by its form alone, nothing is computed."""
    if isinstance(loss, ScalarLoss):
        check_signature(loss.function, "loss(params)", 1)
    check_precision(scalar_of(loss.value, "loss(params)", x), "loss", x.dtype)


@compiled_once
def _finite_derivatives(loss: AbstractLoss, x: Array) -> list[Array]:
    # One direction with no zero in it meets a singularity of any entry; a whole Hessian would cost p times as much.
    slope, curvature = jax.jvp(loss.gradient, (x,), (jnp.ones_like(x),))
    return [jnp.all(jnp.isfinite(found)) for found in (loss.value(x), slope, curvature)]

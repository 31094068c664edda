"""Where the parameters are and what they predict: distances, sparsity, rank, accuracy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from manifolds.support.coordinates import ravel

from ..dynamics.slow_sde import SlowSDE
from ..support.arguments import check_leading_axis, number
from .metric import Metric, Vector


def distance(params: PyTree) -> Metric:
    """|θ − params|, the Euclidean distance from a given point.

    Example:
        >>> slow = simulate(problem, adam(c=10.0), params0, 1.0, metrics=("loss", metrics.distance(params0)))
        >>> slow["distance"].shape
        (1, 101)
    """
    # NumPy, as it is made before a run chooses its precision.
    origin = np.asarray(ravel(params))

    def length(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        if origin.shape != x.shape:
            raise ValueError(f"distance is to a point of {origin.size} parameters, but params has {x.size}.")
        return jnp.linalg.norm(x - origin)

    return Metric("distance", length)


def accuracy(logits: Callable[[PyTree, PyTree], Any], inputs: PyTree, labels: Any) -> Metric:
    """The share of samples whose largest logit is that of their class, on data kept from training.

    (That of the training data does not change along Γ.) `logits(params, x) -> (K,)`, `inputs` a pytree with leading
    axis n, `labels` (n,) class numbers; ValueError for others.

    Example:
        >>> held = metrics.accuracy(lambda w, x: w @ x, inputs=np.eye(3), labels=np.array([0, 1, 1]))
        >>> held  # for metrics=(held,) in any run
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"labels has shape {classes.shape} and dtype {classes.dtype}; it must be (n,) class numbers. For targets "
            "(n, K) take their argmax along axis 1."
        )
    if classes.size and classes.min() < 0:
        raise ValueError(f"labels has the class {classes.min()}: class numbers are 0, 1, 2, ...")
    check_leading_axis((inputs, classes), "inputs and labels")

    def share(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        found = jax.vmap(logits, (None, 0))(sde.chart.unravel(x), inputs)
        if classes.max() >= found.shape[-1]:
            raise ValueError(f"labels has the class {classes.max()}, but logits returns {found.shape[-1]} of them.")
        return jnp.mean((jnp.argmax(found, axis=-1) == classes).astype(x.dtype))

    return Metric("accuracy", share)


def participation_ratio(function: Callable[[PyTree], Any] | None = None) -> Metric:
    """(Σ a_i²)²/Σ a_i⁴ of a = function(params), any array or pytree of them (None: all parameters): how many entries
    carry its size, from 1 (one entry) to their number (all alike).

    Example:
        >>> metrics.participation_ratio(lambda w: w["u"] ** 2 - w["v"] ** 2)  # of the predictor of a diagonal network
    """

    def ratio(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        squares = _entries(function, sde, x) ** 2
        return jnp.sum(squares) ** 2 / jnp.sum(squares**2)

    return Metric("participation_ratio", ratio)


def sparsity(function: Callable[[PyTree], Any] | None = None, threshold: float = 1e-3) -> Metric:
    """The share of entries of a = function(params) (None: all parameters) with |a_i| ≤ threshold · max_j |a_j|.

    Example:
        >>> metrics.sparsity(lambda w: w["u"] ** 2 - w["v"] ** 2, threshold=0.01)
    """
    threshold = number("threshold", threshold, "relative to the largest entry.", least=0, below=1)

    def share(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        sizes = jnp.abs(_entries(function, sde, x))
        return jnp.mean((sizes <= threshold * jnp.max(sizes)).astype(x.dtype))

    return Metric("sparsity", share)


def effective_rank(function: Callable[[PyTree], Any]) -> Metric:
    """exp(−Σ_i p_i ln p_i), p_i = σ_i/Σ_j σ_j, σ_i the singular values of the matrix function(params).

    From 1 to its rank (Roy and Vetterli 2007). ValueError unless `function` returns a matrix.

    Example:
        >>> metrics.effective_rank(lambda w: w["left"] @ w["right"])
    """

    def rank(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
        matrix = jnp.asarray(function(sde.chart.unravel(x)), x.dtype)
        if matrix.ndim != 2:
            raise ValueError(f"effective_rank: function returns shape {matrix.shape}; it must return a matrix.")
        values = jnp.linalg.svd(matrix, compute_uv=False)
        share = values / jnp.sum(values)
        # entr(0) = 0, where p log p of a lost rank would be NaN.
        return jnp.exp(jnp.sum(jax.scipy.special.entr(share)))

    return Metric("effective_rank", rank)


def _entries(function: Callable[[PyTree], Any] | None, sde: SlowSDE, x: Vector) -> Vector:
    if function is None:
        return x
    leaves = jax.tree.leaves(function(sde.chart.unravel(x)))
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, x.dtype)) for leaf in leaves])

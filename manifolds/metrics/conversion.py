"""A metric from what a user is likely to pass for one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .abstract import AbstractMetric
from .dense import Dense
from .diagonal import Diagonal, Identity, check_positive


def as_metric(metric: Any, size: int) -> AbstractMetric:
    """A metric from what a user is likely to pass: a metric, None or "identity", a diagonal (flat or params-like), a
    (p, p) matrix. ValueError names anything else, and a metric whose size is not p = `size`.

    Example:
        >>> as_metric(np.array([1.0, 2.0]), size=2)
    """
    if metric is None or (isinstance(metric, str) and metric == "identity"):
        return Identity()
    if isinstance(metric, (Dense, Diagonal)):
        found = metric.vectors.shape[0] if isinstance(metric, Dense) else metric.diagonal.shape[0]
    elif isinstance(metric, AbstractMetric):
        try:
            # A subclass need not tell its size: what it does to a vector of p tells, by shapes alone.
            found = jax.eval_shape(metric, jax.ShapeDtypeStruct((size,), jnp.result_type(float))).shape[0]
        except (TypeError, ValueError) as error:
            name = type(metric).__name__
            raise ValueError(
                f"metric is a {name} that does not act on vectors of {size} parameters: {error}"
            ) from error
    elif isinstance(metric, (str, bytes)) or callable(metric):
        raise _unknown(metric)
    elif isinstance(metric, (np.ndarray, jnp.ndarray)) and np.ndim(metric) == 2:
        return as_metric(Dense(metric), size)
    else:
        leaves = jtu.tree_leaves(metric)
        if not leaves or not all(eqx.is_array(leaf) or isinstance(leaf, np.ndarray) for leaf in leaves):
            raise _unknown(metric)
        return as_metric(Diagonal(metric), size)
    if found != size:
        raise ValueError(f"metric acts on {found} parameters, but params has {size}.")
    if isinstance(metric, Diagonal):
        check_positive(metric.diagonal)
    return metric


def _unknown(metric: Any) -> ValueError:
    return ValueError(
        f"metric={metric!r} is not a metric. Use None, manifolds.Identity(), manifolds.Diagonal(d), "
        "manifolds.Dense(M), a subclass of manifolds.AbstractMetric, or an array (p,) or (p, p)."
    )

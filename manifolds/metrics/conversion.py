"""A metric from what a user is likely to pass for one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ..support.precision import is_traced
from .abstract import AbstractMetric
from .dense import Dense
from .diagonal import Diagonal, Identity


def as_metric(metric: Any, size: int) -> AbstractMetric:
    """A metric from what a user is likely to pass: a metric, None or "identity", a diagonal (flat or params-like), a
    (p, p) matrix. ValueError names anything else, and a metric whose size is not p = `size`."""
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
    if isinstance(metric, Diagonal) and not is_traced(metric):
        _check_positive(np.asarray(metric.diagonal))
    return metric


def _check_positive(diagonal: np.ndarray) -> None:
    good = (diagonal > 0) & np.isfinite(diagonal)
    if not good.all():
        worst = int(np.argmin(good))
        raise ValueError(
            f"metric is not positive and finite: entry {worst} is {diagonal[worst]:.3g}. An adaptive metric 1/(√v+ε) "
            "needs ε > 0 wherever v can vanish."
        )


def _unknown(metric: Any) -> ValueError:
    return ValueError(
        f"metric={metric!r} is not a metric. Use None, manifolds.Identity(), manifolds.Diagonal(d), "
        "manifolds.Dense(M), a subclass of manifolds.AbstractMetric, or an array (p,) or (p, p)."
    )

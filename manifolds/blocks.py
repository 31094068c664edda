"""Map over many points in blocks: vectorized within a block, one block after the other to bound the memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# On a CPU, XLA (seen with jaxlib 0.10.2 on two cores) can wait for ever for two batched eigenpairs or Cholesky factors
# that it computes side by side, if the matrices have some 64 rows or more. Larger ones than this are never batched.
BATCHED_ROWS = 32


def batches_well(rows: int) -> bool:
    """Whether eigenpairs of matrices of so many rows may be vectorized over."""
    return rows <= BATCHED_ROWS or jax.default_backend() != "cpu"


def map_in_blocks(function: Callable[[Any], PyTree], points: PyTree, size: int) -> PyTree:
    """function(point) for every point along the leading axis of the leaves, `size` at a time.

    The last block is filled up with the last point: `jax.lax.map` compiles a shorter one a second time.

    Example:
        >>> map_in_blocks(jnp.sin, jnp.arange(5.0), 2).shape
        (5,)
    """
    count = jax.tree.leaves(points)[0].shape[0]
    size = max(1, min(size, count))
    if size == 1:
        return jax.lax.map(function, points)
    index = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1)
    filled = jax.tree.map(lambda leaf: leaf[index], points) if count % size else points
    found = jax.lax.map(function, filled, batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:count], found)

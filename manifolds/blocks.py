"""Map over many points in blocks: vectorized within a block, one block after the other to bound the memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def map_in_blocks(function: Callable[[Any], PyTree], points: PyTree, size: int) -> PyTree:
    """function(point) for every point along the leading axis of the leaves, `size` at a time.

    The last block is filled up with the last point: `jax.lax.map` compiles a shorter one a second time.

    Example:
        >>> map_in_blocks(jnp.sin, jnp.arange(5.0), 2).shape
        (5,)
    """
    count = jax.tree.leaves(points)[0].shape[0]
    size = max(1, min(size, count))
    index = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1)
    filled = jax.tree.map(lambda leaf: leaf[index], points) if count % size else points
    found = jax.lax.map(function, filled, batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:count], found)

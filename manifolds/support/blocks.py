"""Map and sum over many points in blocks: vectorized within a block, one block after the other to bound the memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

# On a CPU, XLA (seen with jaxlib 0.10.2 on two cores) can wait for ever for two batched eigenpairs or Cholesky factors
# that it computes side by side, if they are much work: 64 of 24 rows, or 32 of 32. Larger ones are never batched.
BATCHED_ROWS = 16


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
    # Not a batch of one: nothing is vectorized, as large matrices ask for.
    if size == 1:
        return jax.lax.map(function, points)
    # The return of discrete runs compiled in 6.0 s with a shorter last block, in 1.2 s without.
    index = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1)
    filled = jax.tree.map(lambda leaf: leaf[index], points) if count % size else points
    found = jax.lax.map(function, filled, batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:count], found)


def sum_in_blocks(function: Callable[[Any], PyTree], points: PyTree, size: int) -> PyTree:
    """Σ function(point) over the points along the leading axis of the leaves, `size` at a time; nothing else is kept.

    One at a time is the fastest on a CPU where a point's result fills its cache: all that is done with it is fused.

    Example:
        >>> sum_in_blocks(jnp.sin, jnp.arange(3.0), 2)
        Array(1.7507684, dtype=float32)
    """
    points = jax.tree.map(jnp.asarray, points)
    count = jax.tree.leaves(points)[0].shape[0]
    size = max(1, min(size, count))
    index = jnp.arange(-(-count // size) * size).reshape(-1, size)
    blocks = index, index < count  # the last block is filled up with the last point, of weight 0

    def of_block(block: tuple[Array, Array]) -> PyTree:
        rows, weight = block
        some = jax.tree.map(lambda leaf: leaf[jnp.minimum(rows, count - 1)], points)
        if size == 1:
            return function(jax.tree.map(lambda leaf: leaf[0], some))
        found = jax.vmap(function)(some)
        return jax.tree.map(lambda leaf: jnp.tensordot(weight.astype(leaf.dtype), leaf, 1), found)

    if index.shape[0] == 1:
        return of_block((index[0], blocks[1][0]))
    shapes = jax.eval_shape(of_block, (index[0], blocks[1][0]))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(lambda sums, block: (jax.tree.map(jnp.add, sums, of_block(block)), None), zero, blocks)[0]

"""One metric for each leaf of a pytree, or for each stretch of coordinates."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .abstract import AbstractMetric
from .conversion import as_metric


class BlockDiagonal(AbstractMetric):
    """S = diag(S_1, ..., S_k): one metric for each leaf of a pytree, or for each stretch of coordinates.

    Args:
        blocks: a pytree of metrics (or of what `as_metric` understands), in the order of the leaves of params.
        sizes: the numbers of parameters that they act on, in the same order.

    Raises ValueError if their numbers differ or a block does not act on as many parameters as its size says.

    Example:
        >>> S = BlockDiagonal({"b": Diagonal(jnp.array([2.0])), "w": Kronecker([jnp.eye(2), 3 * jnp.eye(2)])}, [1, 4])
        >>> S(jnp.ones(5))
        Array([2., 3., 3., 3., 3.], dtype=float32)
    """

    blocks: tuple[AbstractMetric, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, blocks: PyTree, sizes: Sequence[int]):
        # A metric is a pytree itself, which must not be taken apart.
        leaves = jtu.tree_leaves(blocks, is_leaf=lambda node: isinstance(node, AbstractMetric))
        if len(leaves) != len(sizes) or not leaves:
            raise ValueError(f"BlockDiagonal got {len(leaves)} blocks and {len(sizes)} sizes; give one size a block.")
        self.sizes = tuple(int(size) for size in sizes)
        self.blocks = tuple(as_metric(block, size) for block, size in zip(leaves, self.sizes, strict=True))

    def _each(self, w: Float[Array, "p *r"], method: str) -> Float[Array, "p *r"]:
        if w.shape[0] != sum(self.sizes):
            raise ValueError(f"blocks of sizes {self.sizes} do not act on an array of shape {w.shape}.")
        parts = jnp.split(w, list(accumulate(self.sizes))[:-1])
        return jnp.concatenate([getattr(block, method)(part) for block, part in zip(self.blocks, parts, strict=True)])

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._each(w, "__call__")

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._each(w, "sqrt")

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._each(w, "inv_sqrt")

    def largest(self) -> Float[Array, ""]:
        return jnp.max(jnp.stack([block.largest() for block in self.blocks]))

    def entries(self) -> Any:
        entries = [block.entries() for block in self.blocks]
        if any(found is None for found in entries):
            return None
        return jnp.concatenate([jnp.broadcast_to(e, size) for e, size in zip(entries, self.sizes, strict=True)])

    def damped(self, damping: Float[Array, " p"]) -> "BlockDiagonal | None":
        parts = jnp.split(damping, list(accumulate(self.sizes))[:-1])
        # One block that cannot be damped, a matrix of Shampoo, makes the whole metric one that cannot.
        blocks = [block.damped(part) for block, part in zip(self.blocks, parts, strict=True)]
        return None if any(block is None for block in blocks) else BlockDiagonal(blocks, self.sizes)

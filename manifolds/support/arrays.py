"""Small things about arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree


def nonzero(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """value where it is positive and 1 elsewhere: a denominator, also where what is divided does not count."""
    return jnp.where(value > 0, value, 1)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every leaf is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def filled(values: np.ndarray, size: int | None = None) -> np.ndarray:
    """`values` with its last repeated up to a size, or to the next power of two of them: shapes of which there are few.

    Example:
        >>> filled(np.arange(3))
        array([0, 1, 2, 2])
    """
    more = (power_of_two(values.size) if size is None else size) - values.size
    return np.concatenate([values, np.repeat(values[-1:], more)])


def power_of_two(count: int) -> int:
    """The least power of two that is no less than `count`."""
    return 1 << (count - 1).bit_length()


def generic(count: int, dtype: Any, seed: int = 0) -> Float[Array, " count"]:
    """Numbers in (−1, 1) of no pattern, for probes: by the finalizer of MurmurHash on their positions.

    The generators of `jax.random` are a hundred lines of every program that they are in.

    Example:
        >>> generic(3, jnp.float32).shape
        (3,)
    """
    bits = jnp.arange(1 + seed * count, 1 + (seed + 1) * count, dtype=jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return (bits.astype(dtype) + 0.5) / 2.0**31 - 1


def signs(count: int, dtype: Any) -> Float[Array, " count"]:
    """±1 of no pattern, see `generic`.

    Example:
        >>> signs(3, jnp.float32).shape
        (3,)
    """
    return jnp.where(generic(count, dtype) < 0, -1, 1).astype(dtype)


# How near the origin a point that is asked about alone is at it: what Newton's steps leave of 0 is below 1e-17, its
# square.
ORIGIN = 1e-9


def extent(x: Any, ord: Any = None, origin: float = 0.0) -> Array:
    """|x|, the size that lengths are to be compared with; 1 at the origin (|x| ≤ `origin`), which has none.

    Tolerances relative to it do not depend on the units of parameters, as those of the form 1 + |x| do: in units in
    which parameters were 1e-8 a point half-way to Γ was taken for one on it.
    """
    size = jnp.linalg.norm(x, ord=ord)
    return jnp.where(size > origin, size, 1)

"""Optimizers that keep one second moment for a whole block of parameters: Adam-mini and Adalayer.

V(g gᵀ)_B = mean of g² over block B,        S(v) = Diag(1/(√v_B + ε)) on every parameter of B
"""

from typing import Any, Unpack

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from manifolds.support.coordinates import ravel
from manifolds.support.user_functions import shown

from .adam import checked_eps
from .agm import AGM, Settings
from .elementary import root, total, totals


def adam_mini(c: Any, blocks: PyTree = None, b1: float = 0.9, eps: float = 1e-8, **settings: Unpack[Settings]) -> AGM:
    """Adam-mini: V = mean of g² over each block of a partition, S = Diag(1/(√v + ε)), one value a block.

    Under label noise it minimizes Σ_B √(|B| tr_B H) over blocks B of |B| parameters (as ε → 0).

    Args:
        blocks: the partition, a pytree like params whose arrays hold integer labels 0, 1, ..., one for each parameter
            (None where a leaf of params is no array). Labels are global: equal labels on different leaves are one
            block. v is then an array (num_blocks,). None for a block a row: one for every index of the leading axis
            of a leaf with two axes or more, and one for a whole vector or scalar. v is then params-like, with leaves
            (rows,) and ().
        c, b1, eps, settings: as for `adam`.

    Raises ValueError for labels that are not integers, are negative or leave a gap, and, when the optimizer meets
    params, for a partition that misses or doubles some of them. (Zhang et al. 2024, Adam-mini.)

    Example:
        >>> adam_mini(c=1.0).V({"w": jnp.array([[1.0, 3.0], [2.0, 2.0]]), "b": jnp.array([1.0, 2.0])})
        {'b': Array(2.5, dtype=float32), 'w': Array([5., 4.], dtype=float32)}
    """
    eps = checked_eps(eps)
    if blocks is None:
        V, S = row_means, BlockScale(eps)
    else:
        partition = Partition(blocks)
        V, S = partition.means, PartitionScale(partition, eps)
    return AGM(V, S, c, b1, **settings)


def adalayer(c: Any, b1: float = 0.9, eps: float = 1e-8, **settings: Unpack[Settings]) -> AGM:
    """Adalayer: V = mean of g² over each leaf of params, S = Diag(1/(√v + ε)), one value a leaf.

    v is params-like with scalar leaves; the arguments are those of `adam_mini`. Under label noise it minimizes
    Σ √(|B| tr_B H) over the leaves B (as ε → 0). (Zhao et al. 2024, Deconstructing what makes a
    good optimizer for language models.)

    Example:
        >>> adalayer(c=1.0).V({"w": jnp.array([[1.0, 3.0], [2.0, 2.0]]), "b": jnp.array([1.0, 2.0])})
        {'b': Array(2.5, dtype=float32), 'w': Array(4.5, dtype=float32)}
    """
    return AGM(leaf_means, BlockScale(checked_eps(eps)), c, b1, **settings)


def row_means(gradient: PyTree) -> PyTree:
    """Mean of g² for every index of the leading axis of a matrix or tensor, over the whole of a vector or scalar."""
    return jax.tree.map(lambda g: _mean_square(g, 1 if g.ndim > 1 else 0), gradient)


def leaf_means(gradient: PyTree) -> PyTree:
    """Mean of g² over each leaf."""
    return jax.tree.map(lambda g: _mean_square(g, 0), gradient)


def _mean_square(g: Array, first_axis: int) -> Array:
    axes = tuple(range(first_axis, g.ndim))
    count = int(np.prod(g.shape[first_axis:]))
    return total(g * g, axes) / max(count, 1)  # an empty leaf has no mean, and needs none


class BlockScale(eqx.Module):
    """v ↦ 1/(√v + ε), leaf by leaf: a params-like diagonal that lacks trailing axes."""

    eps: Any

    def __call__(self, v: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: 1 / (root(leaf) + self.eps), v)


class Partition(eqx.Module):
    """A partition of the parameters into blocks, from a params-like pytree of integer labels (see `adam_mini`)."""

    labels: PyTree  # integer arrays
    counts: np.ndarray  # (num_blocks,) parameters in each block

    def __init__(self, blocks: PyTree):
        for path, leaf in jtu.tree_flatten_with_path(blocks)[0]:
            found = np.asarray(leaf)
            if found.dtype.kind not in "iu":
                raise ValueError(
                    f"blocks{jtu.keystr(path)} holds {found.dtype}, not integers: give every parameter the number of "
                    "its block, in a pytree like params."
                )
            if found.size and found.min() < 0:
                raise ValueError(f"blocks{jtu.keystr(path)} has the label {found.min()}; labels are 0, 1, 2, ...")
        # Integers, which no cast to a working precision touches.
        self.labels = jax.tree.map(lambda leaf: np.asarray(leaf, np.int32), blocks)
        flat = np.asarray(ravel(self.labels), int)
        if flat.size == 0:
            raise ValueError(
                f"blocks={shown(blocks)} has no labels: pass a pytree like params, or None for a block a row."
            )
        # Before they are counted: one label of 2³¹ − 1 took 17 GB.
        present = np.unique(flat)
        if present[-1] >= present.size:
            missing = np.setdiff1d(np.arange(present.size), present)
            raise ValueError(
                f"blocks has labels up to {present[-1]}, but no parameter is labelled {missing[:5].tolist()}: "
                "number the blocks 0, 1, 2, ... without a gap."
            )
        self.counts = np.bincount(flat).astype(float)

    def means(self, gradient: PyTree) -> Float[Array, " num_blocks"]:
        """Mean of g² over each block; ValueError if the labels do not fit the gradient."""
        _check_fit(self.labels, gradient)
        g = ravel(gradient)
        # One scatter, as blocks may lie across leaves.
        return totals(g * g, ravel(self.labels), self.counts.size) / self.counts


class PartitionScale(eqx.Module):
    """v ↦ 1/(√v + ε) on every parameter, by its label."""

    partition: Partition
    eps: Any

    def __call__(self, v: Float[Array, " num_blocks"]) -> PyTree:
        values = 1 / (root(v) + self.eps)
        return jax.tree.map(lambda labels: values[labels], self.partition.labels)


def _check_fit(labels: PyTree, params: PyTree) -> None:
    labelled, wanted = _shapes(labels), _shapes(params)
    missing, besides = ([name for name in a if name not in b] for a, b in ((wanted, labelled), (labelled, wanted)))
    if missing or besides or jax.tree.structure(labels) != jax.tree.structure(params):
        raise ValueError(
            "blocks must be a pytree like params, in the same containers (None where a leaf of params is no array): it "
            f"misses {missing} and has {besides} besides."
        )
    for name, shape in wanted.items():
        if labelled[name] != shape:
            raise ValueError(
                f"blocks{name} has shape {labelled[name]}, but that leaf of params has shape {shape}: every parameter "
                "needs one label."
            )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {jtu.keystr(path): leaf.shape for path, leaf in jtu.tree_flatten_with_path(tree)[0]}

"""Shampoo: a Kronecker-factored metric on every matrix- or tensor-shaped leaf."""

from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

import manifolds as mf
from manifolds.support.user_functions import shown

from ..support.arguments import is_finite
from .adam import checked_eps
from .agm import AGM, Settings
from .elementary import with_axis_first


def shampoo(c: Any, b1: float = 0.9, eps: float = 1e-8, exponent: float = 0.25, **settings: Unpack[Settings]) -> AGM:
    """Shampoo: V = (G Gᵀ, Gᵀ G) and S = (R + εI)^{−q} ⊗ (L + εI)^{−q}, G ↦ (L + εI)^{−q} G (R + εI)^{−q}.

    q = `exponent` is that of a matrix-shaped leaf: 1/4 in the original, 1/2 in later analyses. Other leaves get the
    exponents that make S scale with the gradient in the same way, S ∝ |g|^{−4q} where ε is negligible:

    - a tensor with k ≥ 3 axes has a factor F_i = mat_i(G) mat_i(G)ᵀ an axis, where mat_i(G) has axis i for its rows
      and all others for its columns, each to the power −2q/k (the published −1/(2k) for q = 1/4);
    - a vector or scalar is diagonal, V = g² and S = Diag((v + ε)^{−2q}), which agrees with a 1×1 matrix.

    v is params-like with a tuple (L, R), or (F_1, ..., F_k), in the place of a matrix or tensor. Under label noise the
    drift has in general no potential. (Gupta, Koren and Singer 2018, Shampoo.)

    Args:
        c, b1, settings: as for `adam`.
        eps: ε, added to the eigenvalues of L and R.
        exponent: q, 0 < q ≤ 1.

    Raises ValueError for an exponent outside (0, 1] and, when the optimizer meets params, for a leaf with no entries.

    Example:
        >>> left, right = shampoo(c=1.0).V(jnp.ones((2, 3)))
        >>> left.shape, right.shape
        ((2, 2), (3, 3))
    """
    if not (is_finite(exponent) and 0 < exponent <= 1):
        raise ValueError(
            f"exponent={shown(exponent)} must lie in (0, 1]: 0.25 is the original Shampoo, 0.5 a later choice."
        )
    return AGM(outer_products, ShampooMetric(np.asarray(exponent, float), checked_eps(eps)), c, b1, **settings)


def outer_products(gradient: PyTree) -> PyTree:
    """V: (G Gᵀ, Gᵀ G) for a matrix, mat_i(G) mat_i(G)ᵀ for every axis i of a tensor, g² for a vector or scalar."""
    return jtu.tree_map_with_path(_leaf_products, gradient)


def _leaf_products(path: Any, g: Array) -> Array | tuple[Array, ...]:
    if g.size == 0:
        raise ValueError(
            f"Shampoo cannot precondition params{jtu.keystr(path)} of shape {g.shape}: it has no entries. Leave empty "
            "arrays out of params."
        )
    if g.ndim < 2:
        return g * g
    # mat_i(G), of which only the product with its transpose matters: the order of its columns does not.
    unfolded = [with_axis_first(g, axis).reshape(g.shape[axis], -1) for axis in range(g.ndim)]
    return tuple(matrix @ matrix.T for matrix in unfolded)


class ShampooMetric(eqx.Module):
    """v ↦ S(v), see `shampoo`."""

    exponent: Any
    eps: Any

    def __call__(self, v: PyTree) -> mf.BlockDiagonal:
        states = jax.tree.leaves(v, is_leaf=_is_factors)
        sizes = [int(np.prod([f.shape[0] for f in s])) if _is_factors(s) else s.size for s in states]
        return mf.BlockDiagonal([self._leaf_metric(state) for state in states], sizes)

    def _leaf_metric(self, state: Any) -> mf.AbstractMetric:
        if _is_factors(state):
            # −q for a matrix (two factors), −2q/k for k axes, and −2q for a vector below: S ∝ |g|^{−4q} in all.
            return mf.Kronecker(state, power=-2 * self.exponent / len(state), shift=self.eps)
        return mf.Diagonal((state + self.eps) ** (-2 * self.exponent))


def _is_factors(node: Any) -> bool:
    # No other tuple in a state holds matrices: the states of vectors and scalars have at most one axis.
    return type(node) is tuple and len(node) > 1 and all(jnp.ndim(item) == 2 for item in node)

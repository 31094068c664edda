"""The flat chart x in R^p of a parameter pytree: everything geometric works on flat vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .precision import is_traced, on_device


@dataclass(frozen=True)
class Coordinates:
    """The chart between a pytree of floating arrays and R^p.

    `ravel` concatenates the array leaves in the order of `jax.flatten_util.ravel_pytree`; `unravel` inverts it
    and keeps any leading axes, so that a stack of points (paths, T, p) becomes leaves (paths, T, ...). Leaves that
    are not arrays (the activation function inside an Equinox module) are carried along unchanged.

    Hashable, so that compiled functions are reused between calls.

    Example:
        >>> chart = Coordinates.of({"w": jnp.ones((2, 3)), "b": jnp.zeros(2)})
        >>> chart.size, chart.unravel(jnp.arange(8.0))["w"].shape
        (8, (2, 3))
    """

    treedef: Any
    static: tuple[Any, ...]  # the leaf itself where it is no array, None where it is one
    shapes: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, params: PyTree) -> "Coordinates":
        """The chart of `params`; ValueError on integer, complex, mixed-precision or missing arrays."""
        leaves, treedef = jtu.tree_flatten(params)
        check_parameters(params)
        arrays = [eqx.is_array(leaf) or isinstance(leaf, np.ndarray) for leaf in leaves]
        # Structure alone is kept: two charts of params alike are equal and hash alike, and compiled code serves both.
        return cls(
            treedef,
            tuple(None if a else leaf for a, leaf in zip(arrays, leaves, strict=True)),
            tuple(tuple(leaf.shape) if a else None for a, leaf in zip(arrays, leaves, strict=True)),
        )

    @property
    def size(self) -> int:
        """p, the number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes if shape is not None)

    def unravel(self, x: Any) -> PyTree:
        """The pytree whose array leaves are slices of x, with x's leading axes in front."""
        return jtu.tree_unflatten(self.treedef, self._leaves(x, self.static))

    def unravel_arrays(self, x: Float[Array, "*batch p"]) -> PyTree:
        """Like `unravel`, with None where a leaf is no array: the form of gradients and of optimizer states."""
        return jtu.tree_unflatten(self.treedef, self._leaves(x, (None,) * len(self.static)))

    def completed(self, arrays: PyTree) -> PyTree:
        """The params with the arrays of `unravel_arrays`, and with the leaves that are no arrays put back."""
        found = self.treedef.flatten_up_to(arrays)
        leaves = [
            leaf if shape is not None else other
            for leaf, other, shape in zip(found, self.static, self.shapes, strict=True)
        ]
        return jtu.tree_unflatten(self.treedef, leaves)

    def part(self, chosen: Sequence[bool]) -> "Coordinates":
        """The chart of the chosen leaves, in the order of all leaves; the others become None."""
        shapes = tuple(shape if keep else None for shape, keep in zip(self.shapes, chosen, strict=True))
        return Coordinates(self.treedef, (None,) * len(shapes), shapes)

    def spread(self, tree: PyTree, name: str) -> Float[Array, " p"]:
        """(p,) from a pytree that fits params, see `fit`, with leaves that are numbers or arrays.

        ValueError, calling the tree `name`, if it does not fit.
        """
        leaves = self.fit(tree, name)
        shapes = [shape for shape in self.shapes if shape is not None]
        return jnp.concatenate(
            [jnp.ravel(jnp.broadcast_to(leaf, shape)) for leaf, shape in zip(leaves, shapes, strict=True)]
        )

    def fit(self, tree: PyTree, name: str) -> list[Any]:
        """The leaf of `tree` for every array of params, each of which broadcasts against it: `tree` is like params, or
        a prefix of it (one leaf for all that is below), or has leaves of the same names in other containers.

        ValueError, calling the tree `name`, if it does not fit.
        """
        like = jtu.tree_unflatten(self.treedef, self._marked())
        named = [(jtu.keystr(path), leaf.shape) for path, leaf in jtu.tree_flatten_with_path(like)[0]]
        try:
            leaves = jtu.tree_leaves(jax.tree.broadcast(tree, like))
        except ValueError:
            # A dict for a FrozenDict: other containers, the same names.
            given = {jtu.keystr(path): leaf for path, leaf in jtu.tree_flatten_with_path(tree)[0]}
            if set(given) != {path for path, _ in named}:
                raise ValueError(
                    f"{name} does not fit params: it has leaves at {_listed(given)}, params at "
                    f"{_listed(path for path, _ in named)}. Give a pytree like params, or a prefix of it."
                ) from None
            leaves = [given[path] for path, _ in named]
        for (path, shape), leaf in zip(named, leaves, strict=True):
            try:
                fits = np.broadcast_shapes(jnp.shape(leaf), shape) == shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"{name} does not fit params: at {path or 'its root'} it has shape {jnp.shape(leaf)}, params "
                    f"{shape}. Give one number, or an array that broadcasts."
                )
        return leaves

    def _marked(self) -> list[Any]:
        return [None if shape is None else _Shape(shape) for shape in self.shapes]

    def expand(self, tree: PyTree) -> Any:
        """The flat (p,) vector of a params-like `tree` whose leaves may lack trailing axes, over which they repeat: one
        value a row, or one a leaf. Any other `tree` is returned as it is.

        Example:
            >>> Coordinates.of({"w": jnp.ones((2, 3))}).expand({"w": jnp.array([1.0, 2.0])})
            Array([1., 1., 1., 2., 2., 2.], dtype=float32)
        """
        leaves, treedef = jtu.tree_flatten(tree)
        shapes = [shape for shape in self.shapes if shape is not None]
        like = jtu.tree_unflatten(self.treedef, [None if shape is None else 0 for shape in self.shapes])
        arrays = all(eqx.is_array(leaf) or isinstance(leaf, np.ndarray) for leaf in leaves)
        if not arrays or treedef != jtu.tree_structure(like):
            return tree
        if any(shape[: leaf.ndim] != leaf.shape for leaf, shape in zip(leaves, shapes, strict=True)):
            return tree
        sizes = [int(np.prod(shape[leaf.ndim :])) for leaf, shape in zip(leaves, shapes, strict=True)]
        return ravel([leaf.ravel().repeat(size) for leaf, size in zip(leaves, sizes, strict=True)])

    def _leaves(self, x: Float[Array, "*batch p"], static: tuple[Any, ...]) -> list[Any]:
        # What is known is cut on the host: every slice on the device would be a program. Not where JAX's 64-bit flag is
        # off and x has more.
        known = isinstance(x, jax.Array) and not is_traced(x) and jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype
        rows, placed = (np.asarray(x), on_device) if known else (x, lambda leaf: leaf)
        leaves, start = [], 0
        for other, shape in zip(static, self.shapes, strict=True):
            if shape is None:
                leaves.append(other)
                continue
            stop = start + int(np.prod(shape))
            leaves.append(placed(rows[..., start:stop].reshape(x.shape[:-1] + shape)))
            start = stop
        return leaves


@dataclass(frozen=True)
class _Shape:
    """A leaf that stands for an array."""

    shape: tuple[int, ...]


def _listed(paths: Iterable[str]) -> str:
    paths = list(paths)
    return (", ".join(paths[:6]) or "none") + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


def ravel(tree: PyTree) -> Any:
    """The array leaves of `tree`, flattened and concatenated."""
    leaves = [leaf for leaf in jtu.tree_leaves(tree) if eqx.is_array(leaf) or isinstance(leaf, np.ndarray)]
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):  # NumPy in, NumPy out: keeps float64
        return np.concatenate([leaf.ravel() for leaf in leaves]) if leaves else on_device(np.zeros(0))
    # Where JAX's 64-bit flag is off, arrays of float64 keep it by JAX's own operations alone.
    if is_traced(leaves) or any(jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype for leaf in leaves):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    # What is known is put together on the host: a program for each shape would be compiled, before any check.
    return on_device(np.concatenate([np.ravel(leaf) for leaf in leaves]))


def check_parameters(params: PyTree) -> None:
    """ValueError unless the array leaves of `params` are floating, of one dtype, and at least one exists."""
    dtypes: dict[str, str] = {}
    for path, leaf in jtu.tree_flatten_with_path(params)[0]:
        name = "params" + jtu.keystr(path)
        if isinstance(leaf, (int, float, complex)) and not isinstance(leaf, bool):
            raise ValueError(
                f"{name} is the Python number {leaf!r}. Make it an array (jnp.asarray({float(abs(leaf))})) if it is a "
                "parameter. If it is a constant, as the rate of a Dropout, keep it out of params: params, rest = "
                "eqx.partition(model, eqx.is_inexact_array), and eqx.combine(params, rest) in the loss; or make it a "
                "static field of its module."
            )
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            continue
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {leaf.dtype}. Parameters must be floating arrays: convert it, or keep it out of "
                "params (close over it in the loss)."
            )
        dtypes[name] = str(leaf.dtype)
    if not dtypes:
        raise ValueError(f"params has no array leaves: {jax.tree.structure(params)}.")
    if not any(np.size(leaf) for leaf in jtu.tree_leaves(params) if isinstance(leaf, (jax.Array, np.ndarray))):
        raise ValueError(f"params has no entries: its arrays have the shapes {_shapes(params)}.")
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"params mixes precisions ({listing}). Cast every leaf to one floating dtype.")


def check_finite(params: PyTree) -> None:
    """ValueError if an entry of params is NaN or infinite; what is traced is not looked at."""
    for path, leaf in jtu.tree_flatten_with_path(params)[0]:
        if not isinstance(leaf, (jax.Array, np.ndarray)) or is_traced(leaf):
            continue
        # On the host: a look at the device would be a program.
        lost = np.count_nonzero(~np.isfinite(np.asarray(leaf, np.float64)))
        if lost:
            raise ValueError(f"params{jtu.keystr(path)} has {lost} entries that are NaN or infinite.")


def _shapes(tree: PyTree) -> str:
    return ", ".join(str(np.shape(leaf)) for leaf in jtu.tree_leaves(tree)[:6])

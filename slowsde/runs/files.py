"""The form of pytrees in a file: containers as JSON in the order of their leaves, so that nothing is pickled."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree


def named_leaves(tree: PyTree) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves if is_array(leaf)]


def is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def describe(tree: PyTree) -> Any:
    """The container structure of `tree` as JSON; leaves are "*", foreign containers their named leaves."""
    # In the order in which JAX flattens a dict. The leaves of a loaded module once came back in another (bias before
    # weight).
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": {key: describe(tree[key]) for key in sorted(tree)}}
    # Not `isinstance`: a named tuple is a container that only its own code can rebuild.
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [describe(item) for item in tree]}
    if tree is None or is_array(tree):
        return None if tree is None else "*"
    return {"dict": {name: "*" for name, _ in named_leaves(tree)}}


def rebuild(structure: Any, leaves: Any) -> PyTree:
    if structure is None:
        return None
    if structure == "*":
        return next(leaves)
    ((kind, items),) = structure.items()
    if kind == "dict":
        return {key: rebuild(item, leaves) for key, item in items.items()}
    return {"list": list, "tuple": tuple}[kind](rebuild(item, leaves) for item in items)


def plain(stats: dict[str, Any]) -> dict[str, Any]:
    """stats with NumPy arrays and numbers as plain lists and numbers, for headers."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in stats.items()}

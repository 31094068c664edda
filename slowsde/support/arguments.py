"""Checks of single arguments, before anything is computed. Each error names the argument, the value, the remedy."""

from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from manifolds.support.precision import is_traced, within_jit


def save_times(save_at: Any, t0: float, t1: float) -> np.ndarray:
    """The saved times: `save_at` equally spaced ones from t0 to t1, or those given. ValueError if either is bad."""
    if not (is_finite(t0) and is_finite(t1) and t1 > t0):
        raise ValueError(f"t1={t1!r} must be finite and larger than t0={t0!r}: slow time runs forward, t = kη².")
    if is_integer(save_at):
        if save_at < 2:
            raise ValueError(f"save_at={save_at} must be at least 2 times (start and end), or an array of times.")
        return np.linspace(t0, t1, int(save_at))
    try:
        times = np.asarray(save_at, dtype=float)
    except (TypeError, ValueError):
        times = np.zeros(0)
    # Comparisons with NaN are false: asked for as "not (all good)", a NaN among the times is refused; it once passed.
    if times.ndim != 1 or times.size == 0 or not (np.all(np.diff(times) > 0) and t0 <= times[0] <= times[-1] <= t1):
        raise ValueError(f"save_at={save_at} must be a number of times or increasing times within [{t0}, {t1}].")
    return times


def is_finite(value: Any) -> bool:
    """Whether `value` is one finite real number (and no string, None or array)."""
    # A string of digits or None would pass `float`, or fail in it with a message that names no argument.
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "iuf" and bool(np.isfinite(array))


def check_key(key: Any) -> PRNGKeyArray:
    """The key, `jax.random.key(0)` for None; ValueError for anything else."""
    try:
        key = jr.key(0) if key is None else key
        # The one thing that runs do with a key: a batch of keys, or an integer, fails here and not in a compiled loop.
        jr.fold_in(key, 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"key={key!r} must be one random key, such as jax.random.key(0).") from error
    return key


def check_concrete(name: str, *trees: PyTree) -> None:
    """ValueError inside jit, vmap or grad: a run chooses its solver and its steps by the values it meets."""
    # Both are asked: under vmap an argument is traced, within jit one may be known and still no value can be looked at.
    if is_traced(*trees) or within_jit():
        raise ValueError(
            f"{name} was called inside jit, vmap or grad, where the values of its arguments are not known. Call "
            "it outside (it compiles itself); coefficients and manifolds.limit_map do work inside."
        )


def check_max_steps(max_steps: Any) -> None:
    """ValueError unless max_steps is a positive integer."""
    if not is_integer(max_steps) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r} must be a positive integer.")


def check_paths(paths: Any, name: str = "paths") -> int:
    """ValueError unless paths is a positive integer."""
    if not is_integer(paths) or paths < 1:
        raise ValueError(f"{name}={paths!r} must be a positive integer.")
    return int(paths)


def check_lr(lr: Any) -> float:
    """lr as a float; ValueError unless positive."""
    if not (is_finite(lr) and lr > 0):
        raise ValueError(f"lr={lr!r} must be a positive number: the learning rate η.")
    return float(lr)


def is_integer(value: Any) -> TypeGuard[int]:
    # bool is a subclass of int: paths=True would be one path.
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_leading_axis(tree: PyTree, name: str) -> None:
    """ValueError unless all array leaves of `tree` share a leading axis of length at least 1."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]
    if not shapes or any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"{name} must be arrays with one common leading axis (the samples); their shapes are {shapes}."
        )
    if shapes[0][0] == 0:
        raise ValueError(f"{name} is empty: its leading axis (the samples) has length 0.")


def check_step(dt: float | None, t0: float, t1: float) -> float:
    """The step of "euler"; ValueError unless positive."""
    step = (t1 - t0) / 1000 if dt is None else dt
    if not (is_finite(step) and step > 0):
        raise ValueError(f"dt={dt!r} must be a positive number.")
    return step

"""Checks of single arguments, before anything is computed. Each error names the argument, the value, the remedy."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from manifolds.support.precision import is_traced, on_device, within_jit
from manifolds.support.same_functions import first_alike
from manifolds.support.user_functions import shown

from .effort import check_memory


def number(
    name: str,
    value: Any,
    what: str = "",
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> Any:
    """`value` as a float; ValueError unless it is one real number within the bounds. `what` it is, and the remedy.

    A SymPy expression with symbols passes as it is: `derive` keeps it, and what computes numbers refuses it.
    """
    if is_symbolic(value):
        return value
    value = float(value) if hasattr(value, "free_symbols") and value.is_extended_real else value
    # Not `float(value)`: a string of digits, an array of one and True would pass, None fail with no name.
    good = is_number(value)
    found = float(value) if good else np.nan
    # Comparisons with NaN are false: asked for as "all good", it is refused.
    good = good and (np.isfinite(found) or (infinite and found == np.inf))
    good = good and (above is None or found > above) and (least is None or found >= least)
    if not (good and (below is None or found < below)):
        raise ValueError(f"{name}={shown(value)} must {_bounds(above, least, below)}{f': {what}' if what else '.'}")
    return found


def _bounds(above: float | None, least: float | None, below: float | None) -> str:
    if least is not None and below is not None:
        return f"lie in [{least:g}, {below:g})"
    if above == 0 and below is None:
        return "be a positive number"
    if least == 0:
        return "not be negative, and one finite number"
    return "be one finite number" + (f" above {above:g}" if above is not None else "")


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; ValueError unless it is True or False."""
    # bool("no") is True.
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={shown(value)} must be True or False.")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value`; ValueError unless it is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name}={shown(value)} is not one of {tuple(choices)}.")
    return value


def function(name: str, value: Any, form: str) -> Any:
    """`value`, or a function met before that does the same; ValueError unless it can be called, as `form` says."""
    if not callable(value):
        raise ValueError(f"{name}={shown(value)} must be a function, {form}.")
    return first_alike(value)


def mapping(name: str, value: Any, form: str) -> Any:
    """`value`; ValueError unless it is a dict or the like."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={shown(value)} must be a dict, {form}.")
    return value


def save_times(save_at: Any, t0: Any, t1: Any) -> np.ndarray:
    """The saved times: `save_at` equally spaced ones from t0 to t1, or those given. ValueError if either is bad."""
    if not (is_finite(t0) and is_finite(t1) and t1 > t0):
        raise ValueError(f"t1={shown(t1)} must be finite and larger than t0={shown(t0)}: slow time runs forward.")
    if not (t1 - t0) / 1000 > max(np.finfo(float).eps * abs(t0), np.finfo(float).tiny):
        raise ValueError(f"t1={t1!r} is within rounding of t0={t0!r}: no step fits between them. Raise t1.")
    if is_integer(save_at):
        if save_at < 2:
            raise ValueError(f"save_at={save_at} must be at least 2 times (start and end), or an array of times.")
        check_memory({f"save_at={save_at}": (8.0 * save_at, "save fewer times")}, None)
        return np.linspace(t0, t1, int(save_at))
    try:
        times = np.asarray(save_at)
        times = times.astype(float) if times.dtype.kind in "iuf" else np.zeros(0)
    except (TypeError, ValueError):
        times = np.zeros(0)
    # Comparisons with NaN are false: asked for as "not (all good)", a NaN among the times is refused; it once passed.
    if times.ndim != 1 or times.size == 0 or not (np.all(np.diff(times) > 0) and t0 <= times[0] <= times[-1] <= t1):
        raise ValueError(f"save_at={shown(save_at)} must be a number of times or increasing times within [{t0}, {t1}].")
    return times


def is_symbolic(*trees: PyTree) -> bool:
    """Whether any leaf is a SymPy expression with symbols in it: a setting that only `derive` can use."""
    # By an attribute, so that SymPy need not be imported to be told apart.
    return any(bool(getattr(leaf, "free_symbols", None)) for leaf in jax.tree.leaves(trees))


def is_number(value: Any) -> bool:
    """Whether `value` is one real number, NaN and infinity among them (and no string, None or array)."""
    array = np.asarray(value) if not is_traced(value) else np.zeros(0)
    return array.ndim == 0 and array.dtype.kind in "iuf"


def is_finite(value: Any) -> bool:
    """Whether `value` is one finite real number."""
    return is_number(value) and bool(np.isfinite(value))


def check_key(key: Any) -> Any:
    """The key, `jax.random.key(0)` for None, `jax.random.key(seed)` for an integer; ValueError for anything else."""
    if key is None and jax.config.jax_default_prng_impl == "threefry2x32":  # pyright: ignore[reportAttributeAccessIssue]
        return jr.wrap_key_data(on_device(np.zeros(2, np.uint32)))  # jr.key(0), without the program that makes it
    if key is None or is_integer(key):
        return jr.key(0 if key is None else int(key))
    # By its form, without a call that would be compiled: a typed key, or the numbers of one.
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, (jax.Array, np.ndarray)) and key.dtype == np.uint32 and key.ndim == 1 and key.size in (2, 4)
    if not ((typed and key.ndim == 0) or raw):
        raise ValueError(f"key={shown(key)} must be one random key, such as jax.random.key(0), or an integer seed.")
    return key


def check_concrete(name: str, *trees: PyTree) -> None:
    """ValueError inside jit, vmap or grad: a run chooses its solver and its steps by the values it meets."""
    # Both are asked: under vmap an argument is traced, within jit one may be known and still no value can be looked at.
    if is_traced(*trees) or within_jit():
        raise ValueError(
            f"{name} was called inside jit, vmap or grad, where the values of its arguments are not known. Call "
            "it outside (it compiles itself); coefficients and manifolds.limit_map do work inside."
        )


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int; ValueError unless it is a positive integer."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name}={shown(value)} must be a positive integer.")
    return int(value)


def check_lr(lr: Any) -> float:
    """lr as a float; ValueError unless positive."""
    found = number("lr", lr, "the learning rate η.", above=0)
    if not found**2 > np.finfo(float).tiny:
        raise ValueError(f"lr={lr!r} must be positive, and so must be lr², which it is not to rounding.")
    return found


def is_integer(value: Any) -> TypeGuard[int]:
    # bool is a subclass of int: paths=True would be one path.
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_leading_axis(tree: PyTree, name: str) -> None:
    """ValueError unless all array leaves of `tree` share a leading axis of length at least 1."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]
    if not shapes or any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        found = f"{shapes[:4]} and {len(shapes) - 4} more" if len(shapes) > 4 else f"{shapes}"
        lists = " A list is a tree of numbers: make it an array." if () in shapes else ""
        raise ValueError(
            f"{name} must be arrays with one common leading axis (the samples); their shapes are {found}.{lists}"
        )
    if shapes[0][0] == 0:
        raise ValueError(f"{name} is empty: its leading axis (the samples) has length 0.")


def check_data(tree: PyTree, name: str) -> None:
    """ValueError unless the leaves of `tree` are arrays of finite real numbers."""
    if tree is None:
        raise ValueError(f"{name}=None must be an array, or a pytree of arrays.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        label = name + jax.tree_util.keystr(path)
        if is_traced(leaf):
            continue
        kind = np.asarray(leaf).dtype if not isinstance(leaf, jax.Array) else leaf.dtype
        if jnp.issubdtype(kind, jax.dtypes.prng_key):
            continue
        if kind.kind not in "biuf" and not jnp.issubdtype(kind, jnp.floating):
            raise ValueError(f"{label} has dtype {kind}: it must be real numbers. Convert it first.")
        # On the host: a look at the device would be a program.
        if jnp.issubdtype(kind, jnp.floating) and not (finite := np.isfinite(np.asarray(leaf, np.float64))).all():
            where = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise ValueError(
                f"{label} has {np.count_nonzero(~finite)} entries that are NaN or infinite, the first at {where}: drop "
                "those samples, or fill them in."
            )


def as_targets(targets: Any) -> Any:
    """`targets` as an array, of NumPy unless it is one of JAX; ValueError unless it is one of finite real numbers."""
    found = None if targets is None else _as_array(targets)
    check_data(found, "targets")
    return found


def _as_array(value: Any) -> Any:
    try:
        return value if hasattr(value, "dtype") else np.asarray(value)
    except ValueError:  # rows of several lengths
        return np.asarray(value, object)


def check_step(dt: float | None, t0: float, t1: float) -> float:
    """The step of "euler"; ValueError unless positive."""
    return number("dt", (t1 - t0) / 1000 if dt is None else dt, "the step in slow time.", above=0)


def as_given_rank(rank: Any) -> int | None:
    """A rank as it was given, None to find it; ValueError unless it is a positive integer."""
    # True is 1, and 1.0 is in range(1, p): both once passed.
    if rank is not None and not (is_integer(rank) and rank >= 1):
        raise ValueError(f"rank={shown(rank)} must be a positive integer: the rank of the Hessian on Γ, or None.")
    return None if rank is None else int(rank)


def check_tolerance(name: str, value: Any) -> float:
    """A tolerance as a float; ValueError unless in (0, 1)."""
    found = number(name, value, "a relative tolerance below 1, such as 1e-6.", above=0)
    if found >= 1:
        raise ValueError(f"{name}={value!r} must be positive and below 1: a relative tolerance, such as 1e-6.")
    return found

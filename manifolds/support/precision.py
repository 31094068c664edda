"""Double precision by default, whatever JAX's global flag says and without touching it."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .mappings import spare_mappings
from .threads import single_threaded_lapack

_warned: set[str] = set()


def is_traced(*trees: PyTree) -> bool:
    """Whether any leaf is being traced by jit, vmap or grad: then values cannot be inspected."""
    return any(isinstance(leaf, Tracer) for leaf in jtu.tree_leaves(trees))


def within_jit() -> bool:
    """Whether a function is being traced by jit, so that what is computed is not known even from known numbers."""
    # Within jit even a constant is staged; under grad and vmap alone it is not.
    return isinstance(on_device(np.zeros(())), Tracer)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Every floating array of `tree` as a JAX array of `dtype`; everything else as it is.

    Arrays that are spread over several devices are gathered: flat coordinates would lose their layout.
    """

    def one(leaf: Any) -> Any:
        # Through NumPy, the one form that has no devices.
        if _is_spread(leaf):
            leaf = jnp.asarray(np.asarray(leaf))
        is_array = eqx.is_array(leaf) or isinstance(leaf, (np.ndarray, np.generic))
        if not (is_array and jnp.issubdtype(leaf.dtype, jnp.floating)):
            return leaf
        if is_traced(leaf) or (isinstance(leaf, jax.Array) and leaf.dtype == dtype):
            return jnp.asarray(leaf, dtype)
        return on_device(_copied(np.asarray(leaf), dtype))

    return jtu.tree_map(one, tree)


ALIGNED = 64  # bytes: an array at a multiple of them JAX takes on a CPU as it is


def _copied(array: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy of `array` in `dtype`, which JAX need not copy again: 40 MB of inputs took 37 ms, and take 19."""
    dtype = np.dtype(dtype)
    memory = np.empty(array.size * dtype.itemsize + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    found = memory[start : start + array.size * dtype.itemsize].view(dtype).reshape(array.shape)
    found[...] = array
    return found


def on_device(arrays: PyTree) -> PyTree:
    """NumPy arrays as those of JAX."""
    # `jnp.asarray` compiles a program for every shape.
    return jax.device_put(arrays)


def _staged(leaf: Any) -> Any:
    """A known floating array as a traced one, within jit: what is computed from it will be."""
    known = isinstance(leaf, (np.ndarray, jax.Array)) and not isinstance(leaf, Tracer)
    # An operation is what makes it a tracer; `asarray` alone returns the known array.
    return jnp.asarray(leaf) + 0 if known and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _is_spread(leaf: Any) -> bool:
    # Tracers have no devices to ask for, and keys no NumPy form.
    if not isinstance(leaf, jax.Array) or is_traced(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return False
    return len(leaf.sharding.device_set) > 1


def to_numpy(tree: PyTree) -> PyTree:
    """Every array of `tree` as a NumPy array, which keeps float64 when JAX's 64-bit flag is off."""
    return jtu.tree_map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


@contextlib.contextmanager
def working_precision(dtype: Any) -> Iterator[np.dtype]:
    """A context in which JAX computes in `dtype`, "float64" or "float32", with LAPACK on one thread.

    Warns once in float32, whose rounding (1e-7) leaves about three digits in the third derivatives.
    """
    try:
        dtype = np.dtype("O" if dtype is None else dtype)  # NumPy takes None for float64
    except TypeError:
        raise ValueError(f"dtype={dtype!r} is not a dtype. Use 'float64' (the default) or 'float32'.") from None
    if dtype not in (np.dtype("float64"), np.dtype("float32")):
        raise ValueError(f"dtype={dtype} is not supported. Use 'float64' (the default) or 'float32'.")
    if dtype == np.dtype("float32") and "float32" not in _warned:
        _warned.add("float32")
        warnings.warn(
            "Computing in float32: expect points to about 1e-5 and drift coefficients to 1e-6 relative (least squares, "
            "whose small Gram matrices are float64 still) or 1e-3 (dense Hessians). Use the "
            "default dtype='float64' where that matters.",
            stacklevel=4,
        )
    # Here, as every computation begins so, and none is under way.
    spare_mappings()
    # As contexts: a library that sets flags on import changes the results of everything else in the program. Promotions
    # are this code's own here, whatever a user asks of theirs.
    promotions = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(dtype == np.dtype("float64")), promotions[0], promotions[1], single_threaded_lapack():
        yield dtype


def in_double(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays computed in float64, for small Gram matrices: their condition is the square of that of the
    rows. Results are float64 whatever JAX's flag says, so that what uses them computes in double too, or casts down.

    JAX transforms what was traced with its flag on as if it were off: float64 constants turn into float32 ones under
    `vmap`. Where the flag is off outside, `vmap` is therefore applied inside.
    """

    def doubled(*arrays: Any) -> Any:
        return function(*(jnp.asarray(array, jnp.float64) for array in arrays))

    # Runs in float32 crashed under vmap before this: the batching rule met float64 arrays and float32 constants.
    @jax.custom_batching.custom_vmap
    def wrapped(*arrays: Any) -> Any:
        with jax.enable_x64(True):
            return doubled(*arrays)

    @wrapped.def_vmap
    def batched(size: int, mapped: Any, *arrays: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
        with jax.enable_x64(True):
            found = jax.vmap(doubled, [0 if along else None for along in mapped], axis_size=size)(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    @functools.wraps(function)
    def in_precision(*arrays: Any) -> Any:
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            return doubled(*arrays)
        # The rule for vmap has to see arrays: Python numbers have no axis to be mapped over.
        return wrapped(*(array if isinstance(array, jax.Array) else jnp.asarray(array) for array in arrays))

    return in_precision


def in_working_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run `function(..., dtype="float64")` in that precision, its floating inputs cast and its arrays back in NumPy.

    While traced (inside the caller's jit or vmap) precision is the caller's, that of JAX's flag for NumPy arrays, and
    the function runs as it stands.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, dtype: Any = "float64", **kwargs: Any) -> Any:
        # What is known within jit is staged where a call enters: otherwise some of its checks would look at values and
        # others could not.
        if within_jit():
            args, kwargs = jtu.tree_map(_staged, (args, kwargs))
        # The caller's trace has a precision already; changing the flag inside it would mix two.
        if is_traced(args, kwargs):
            return function(*args, **kwargs)
        with working_precision(dtype) as working_dtype:
            args, kwargs = cast((args, kwargs), working_dtype)
            return to_numpy(function(*args, **kwargs))

    return wrapped

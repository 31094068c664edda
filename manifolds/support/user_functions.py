"""Functions that users hand over, looked at before they are used: by tracing alone, which compiles nothing."""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .precision import is_traced


def shown(value: Any) -> str:
    """`value` as an error names it: short, and without the insides of what is traced."""
    text = "a traced value" if is_traced(value) else " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]} ... ({type(value).__name__})"


KNOWN = 64  # forms that are kept, with the functions that they are of
_known: OrderedDict[Any, Any] = OrderedDict()


def known_form(key: tuple[Any, ...], function: Callable[..., Any], call: str, *like: Any, **options: Any) -> Any:
    """`form_of`, kept for later calls by a `key` that determines `function`: to trace a small model takes 1 ms, and a
    call of the library asks four times. Not kept where the key, a user's function in it, cannot be hashed."""
    leaves, treedef = jtu.tree_flatten(like)
    forms = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    # Precision and promotion, too, change what a trace finds.
    settings = jnp.result_type(float), jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]
    key = (*key, call, treedef, forms, settings)
    try:
        hash(key)
    except TypeError:
        return form_of(function, call, *like, **options)
    if key not in _known:
        _known[key] = form_of(function, call, *like, **options)
        if len(_known) > KNOWN:
            _known.popitem(last=False)
    return _known[key]


def form_of(function: Callable[..., Any], call: str, *like: Any, optional: bool = False, precise: bool = False) -> Any:
    """The form of what `function` returns, a pytree of `jax.ShapeDtypeStruct`; `call` is how it is called, as
    "loss(params)", and `like` are arguments, or their forms. `optional` allows None, and what is `precise` must keep
    the precision of its first argument, an array, all the way.

    Raises ValueError with what to do where JAX cannot trace it, or where it casts. What the function itself raises
    comes through as it is, with a note of what was being called.
    """
    name = call.partition("(")[0]
    check_signature(function, call, len(like))

    def called(*arguments: Any) -> Any:
        value = function(*arguments)
        leaves = jtu.tree_leaves(value)
        if not all(_is_numeric(leaf) for leaf in leaves) or not (leaves or optional):
            raise ValueError(f"{name} returns {shown(value)}: {call} must return numbers of JAX.")
        return value

    try:
        made, found = jax.make_jaxpr(called, return_shape=True)(*like)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"{name} calls NumPy on what it is given: use jax.numpy in {call}, or derivatives fail."
        ) from error
    except jax.errors.TracerBoolConversionError as error:
        raise ValueError(
            f"{name} branches in Python (if, while, and, max) on what it is given: use jnp.where, jnp.maximum or "
            f"jax.lax.cond in {call}."
        ) from error
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            f"{name} turns what it is given into a Python number (float, int, .item()): leave it an array in {call}."
        ) from error
    except Exception as error:
        _add_note(error, f"This was raised while {call} was called with {_forms(like)}.")
        raise
    if precise:
        _check_way(made.jaxpr, found, name, jnp.result_type(like[0]))
    return found


def _check_way(jaxpr: Any, found: Any, name: str, dtype: Any) -> None:
    """ValueError where a function casts what depends on its first argument to less than the precision of that, and
    back: the value has all its digits, and derivatives have those of the cast. `check_precision` looks at the end."""
    if any(leaf.dtype != dtype for leaf in jtu.tree_leaves(found)):
        return
    narrow = _narrowed(jaxpr, [k == 0 for k in range(len(jaxpr.invars))])
    if narrow is not None:
        raise ValueError(_casts(f"{name} computes in {narrow} on the way from", dtype))


def _narrowed(jaxpr: Any, depends: list[bool]) -> Any:
    """The floating type to which something is cast that depends on such arguments and is of a wider one; or None."""
    marked = {id(variable) for variable, does in zip(jaxpr.invars, depends, strict=True) if does}
    for equation in jaxpr.eqns:
        does = [id(variable) in marked for variable in equation.invars]
        if not any(does):
            continue
        widest = max(_bits(variable) for variable, one in zip(equation.invars, does, strict=True) if one)
        for variable in equation.outvars:
            if 0 < _bits(variable) < widest:
                return variable.aval.dtype
        for inner in _within(equation.params):
            # The arguments of a loop are those of its parts: which is which does not matter here.
            narrow = _narrowed(inner, does if len(does) == len(inner.invars) else [True] * len(inner.invars))
            if narrow is not None:
                return narrow
        marked |= {id(variable) for variable in equation.outvars}
    return None


def _bits(variable: Any) -> int:
    """The bits of a floating variable, 0 for others."""
    dtype = getattr(variable.aval, "dtype", None)
    return jnp.finfo(dtype).bits if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else 0


def _within(settings: dict[str, Any]) -> list[Any]:
    """The jaxprs among the settings of an equation: bodies of loops, branches, functions with rules of their own."""
    values = [each for value in settings.values() for each in (value if isinstance(value, (tuple, list)) else [value])]
    inner = [getattr(value, "jaxpr", value) for value in values]
    return [each for each in inner if hasattr(each, "eqns")]


def scalar_of(function: Callable[..., Any], call: str, *like: Any) -> jax.ShapeDtypeStruct:
    """`form_of` for a function that must return one real number and keep its precision: ValueError for others."""
    return as_scalar(form_of(function, call, *like, precise=True), call)


def as_scalar(found: Any, call: str) -> jax.ShapeDtypeStruct:
    """The form that `call` returns; ValueError unless it is that of one real number."""
    # Shape first: of a pytree it is None.
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{call.partition('(')[0]} must return a real scalar; {call} returns {_forms(found)}.")
    return found


def check_precision(found: Any, name: str, dtype: Any) -> None:
    """ValueError unless a function of parameters keeps their precision."""
    # A cast to float32 inside would show in no value, but leave three digits in the third derivatives.
    if found.dtype != dtype:
        raise ValueError(_casts(f"{name} returns {found.dtype} for", dtype))


def _casts(what: str, dtype: Any) -> str:
    least = ", or pass dtype='float32' to the run if that is its precision" if dtype == jnp.float64 else ""
    return f"{what} {dtype} parameters: it casts inside. Remove the cast (in Flax dtype= and param_dtype=){least}."


def _is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)) and not (
        isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind not in "biufc"
    )


def check_signature(function: Callable[..., Any], call: str, count: int) -> None:
    """ValueError unless `function` takes `count` arguments, as `call` says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built in functions do not tell
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        name, _, arguments = call.partition("(")
        raise ValueError(f"{name} takes other arguments than ({arguments}: its signature is {signature}.") from error


def _add_note(error: Exception, note: str) -> None:
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _forms(tree: Any) -> str:
    leaves = jtu.tree_leaves(tree)
    text = ", ".join(f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves[:6])
    return text + (f" and {len(leaves) - 6} more" if len(leaves) > 6 else "")

"""How functions are compiled: `equinox.filter_jit`, with options under which XLA takes half the time or less on a CPU.

Measured with jaxlib 0.10.2 on the limit map and the slow flow of a small least-squares problem: 3.0 and 3.7 s of
compilation as XLA does it by itself; 1.4 and 1.9 s with its older code for fused operations, which runs as fast; and
0.5 and 0.6 s without LLVM's optimizations besides, with which large problems run at half the speed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax

from .precision import is_traced, within_jit

Function = TypeVar("Function", bound=Callable[..., Any])
FAST = {"xla_cpu_use_fusion_emitters": False}
ONCE = FAST | {"xla_backend_optimization_level": 0}


def compiled(function: Function, *, once: bool | Callable[..., bool] = False) -> Function:
    """`function` compiled, its arrays traced and all else static; `once` for what is called once in a run, or a
    function of the arguments that tells whether what there is to compute takes less time than its optimization.

    Under transformations of JAX it is inlined, as options are for whole programs. A default is the same program whether
    it is named or not.

    Example:
        >>> compiled(lambda x: 2 * x)(jnp.ones(2))
        Array([2., 2.], dtype=float32)
    """
    signature, plain = inspect.signature(function), eqx.filter_jit(function)
    alone = functools.cache(lambda backend, once: eqx.filter_jit(function, **_options(backend, once)))

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        args, kwargs = given.args, given.kwargs
        if is_traced(args, kwargs) or within_jit():
            return plain(*args, **kwargs)
        briefly = once(*args, **kwargs) if callable(once) else once
        return alone(jax.default_backend(), briefly)(*args, **kwargs)

    return wrapped  # pyright: ignore[reportReturnType]


def compiled_once(function: Function) -> Function:
    """`compiled` for what is called once in a run."""
    return compiled(function, once=True)


def form_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_eval_shape` of a function, traced once for arguments of the same forms and static parts.

    Example:
        >>> form_of(lambda x: 2 * x)(jnp.ones(2))
        ShapeDtypeStruct(shape=(2,), dtype=float32)
    """

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def traced(arrays: Any, rest: tuple[Any, ...], form: Any) -> Any:
        return function(*eqx.combine(arrays, jax.tree.unflatten(form, rest)))

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        arrays, rest = eqx.partition(args, eqx.is_array)
        leaves, form = jax.tree.flatten(rest)
        return traced.eval_shape(arrays, tuple(leaves), form)

    return wrapped


@functools.cache
def _options(backend: str, once: bool) -> dict[str, Any]:
    """Keywords of `jax.jit`; none where this version of XLA does not know the options."""
    options = ONCE if once else FAST
    if backend != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return {"compiler_options": options}

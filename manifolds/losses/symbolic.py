"""SymPy expressions as JAX functions of a flat vector."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sympy
from jaxtyping import Array, Float

# The special functions that SymPy's JAX printer does not map by itself.
_SPECIAL = {
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "gamma": jax.scipy.special.gamma,
    "loggamma": jax.scipy.special.gammaln,
    "digamma": jax.scipy.special.digamma,
}


def sympy_function(expr: Any, symbols: Sequence[sympy.Symbol]) -> Callable[[Float[Array, " p"]], Array]:
    """x ↦ expr at symbols = x, differentiable by JAX; common subexpressions are evaluated once.

    Raises ValueError on an unlisted symbol, a repeated symbol or no symbol.

    Example:
        >>> a, b = sympy.symbols("a b")
        >>> sympy_function(a * b**2, [a, b])(jnp.array([2.0, 3.0]))
        Array(18., dtype=float32)
    """
    symbols = list(symbols)
    expr = sympy.sympify(expr) if not isinstance(expr, str) else _refuse_string(expr)
    unlisted = expr.free_symbols - set(symbols)
    if unlisted:
        raise ValueError(f"expr contains {sorted(map(str, unlisted))}, which symbols={symbols} does not list.")
    if not symbols or len(set(symbols)) != len(symbols):
        raise ValueError(f"symbols={symbols} must list at least one symbol, each once.")
    # With `cse` a subexpression that a Hessian repeats is traced once.
    function = sympy.lambdify(symbols, expr, modules=[_SPECIAL, "jax"], cse=True)

    def loss(x: Float[Array, " p"]) -> Array:
        if jnp.shape(x) != (len(symbols),):
            raise ValueError(
                f"params has shape {jnp.shape(x)}; this loss takes the {len(symbols)} values of {symbols}."
            )
        # A constant expression comes back as a Python number, which has no dtype to check.
        return jnp.asarray(function(*x))

    return loss


def _refuse_string(expr: str) -> Any:
    # sympify would evaluate the string as Python code.
    raise ValueError(f"expr={expr!r} is a string. Build the SymPy expression from sympy.symbols instead.")

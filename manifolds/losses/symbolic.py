"""SymPy expressions as JAX functions of a flat vector."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..support.user_functions import shown

if TYPE_CHECKING:
    import sympy

# SymPy is imported by the first formula: it takes a fifth of the time of `import slowsde`, and most runs have none.

# The special functions that SymPy's JAX printer does not map by itself.
_SPECIAL = {
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "gamma": jax.scipy.special.gamma,
    "loggamma": jax.scipy.special.gammaln,
    "digamma": jax.scipy.special.digamma,
}


def sympy_function(expr: Any, symbols: "Sequence[sympy.Symbol]") -> Callable[[Float[Array, " p"]], Array]:
    """x ↦ expr at symbols = x, differentiable by JAX; common subexpressions are evaluated once.

    `symbols` may also be entries of a matrix or indexed symbols, and functions of time: each stands for a number.

    Raises ValueError on an unlisted symbol, a repeated symbol or none, on what is no real scalar expression (an
    equation, a matrix), and on functions that JAX does not have.

    Example:
        >>> a, b = sympy.symbols("a b")
        >>> sympy_function(a * b**2, [a, b])(jnp.array([2.0, 3.0]))
        Array(18., dtype=float32)
    """
    import sympy

    expr, symbols = _checked(expr), _listed(symbols)
    # Entries of matrices, functions of time: a symbol of its own in the place of each.
    stand_ins = [sympy.Dummy(str(symbol), real=True) for symbol in symbols]
    expr = expr.xreplace(dict(zip(symbols, stand_ins, strict=True)))
    _check_listed(expr, symbols, stand_ins)
    # With `cse` a subexpression that a Hessian repeats is traced once.
    function = sympy.lambdify(stand_ins, expr, modules=[_SPECIAL, "jax"], cse=True)
    _check_known(function, expr, len(symbols))

    def loss(x: Float[Array, " p"]) -> Array:
        if jnp.shape(x) != (len(symbols),):
            raise ValueError(
                f"params has shape {jnp.shape(x)}; this loss takes the {len(symbols)} values of {symbols}."
            )
        # A constant expression comes back as a Python number, which has no dtype to check.
        return jnp.asarray(function(*x))

    return loss


def _checked(expr: Any) -> Any:
    import sympy

    if isinstance(expr, str):
        # sympify would evaluate the string as Python code.
        raise ValueError(f"expr={expr!r} is a string. Build the SymPy expression from sympy.symbols instead.")
    if expr is None:
        raise ValueError("expr=None must be a SymPy expression.")
    expr = sympy.sympify(expr)
    if isinstance(expr, sympy.Equality):
        raise ValueError(f"expr={shown(expr)} is an equation: give the loss, such as (lhs - rhs)**2.")
    if not isinstance(expr, sympy.Expr) or not getattr(expr, "is_scalar", True) or expr.is_Matrix:
        raise ValueError(f"expr={shown(expr)} is no scalar expression of SymPy.")
    return expr


def _listed(symbols: Any) -> list[Any]:
    """The symbols, one for a single one; ValueError unless they can stand for numbers, each once."""
    import sympy

    given = [symbols] if isinstance(symbols, sympy.Basic) and _is_variable(symbols) else symbols
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"symbols={shown(symbols)} must be a list of SymPy symbols.")
    found = list(given)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"symbols={shown(found)} must list at least one symbol, each once.")
    for symbol in found:
        if not _is_variable(symbol):
            raise ValueError(f"symbols has {shown(symbol)}, which is no symbol, entry or function of time.")
    return found


def _is_variable(symbol: Any) -> bool:
    import sympy
    from sympy.core.function import AppliedUndef
    from sympy.matrices.expressions.matexpr import MatrixElement

    return isinstance(symbol, (sympy.Symbol, sympy.Indexed, MatrixElement, AppliedUndef))


def _check_listed(expr: Any, symbols: list[Any], stand_ins: list[Any]) -> None:
    unlisted = expr.free_symbols - set(stand_ins)
    names = {str(symbol) for symbol in symbols}
    twins = sorted(str(symbol) for symbol in unlisted if str(symbol) in names)
    if twins:
        raise ValueError(
            f"expr contains another symbol named {twins[0]!r} than symbols has: SymPy tells symbols of one name apart "
            "by their other assumptions (positive=True, say). Use the same object in both."
        )
    if unlisted:
        raise ValueError(f"expr contains {sorted(map(str, unlisted))}, which symbols={symbols} does not list.")


def _check_known(function: Callable[..., Any], expr: Any, count: int) -> None:
    """ValueError if JAX lacks a function of the expression, or its value is not real."""
    from sympy.core.function import AppliedUndef

    unknown = sorted({str(call.func) for call in expr.atoms(AppliedUndef)})
    if unknown:
        raise ValueError(f"expr contains the unknown function {unknown[0]}: give its formula, or list it in symbols.")
    try:
        found = jax.eval_shape(function, *[jax.ShapeDtypeStruct((), jnp.result_type(float))] * count)
    except (NameError, AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"expr={shown(expr)} has a function that JAX does not have ({error}): write it by others, or the loss "
            "in JAX, for Problem."
        ) from error
    if jnp.issubdtype(jnp.result_type(found), jnp.complexfloating):
        raise ValueError(f"expr={shown(expr)} is not real.")

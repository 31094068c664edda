"""Symbols that are known to be real, exact numbers, and derivatives of undefined functions that can be read.

Users write x, δ, h(y) without assumptions. Within a derivation x is real and δ positive, so that √δ² is δ; 0.1 is 1/10;
and h, of one argument, is a function whose derivative is h', where SymPy has an unevaluated Subs(Derivative(...)).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import sympy
from sympy.core.function import AppliedUndef, UndefinedFunction

SIGNS = ("positive", "negative", "nonnegative", "nonpositive", "nonzero")


@cache
def primed(function: UndefinedFunction, order: int) -> Any:
    """The `order`-th derivative of an undefined function of one argument, as a function."""
    known = function(sympy.Dummy(real=True))
    namespace: dict[str, Any] = {
        "nargs": 1,
        "origin": function,
        "order": order,
        "fdiff": lambda self, argindex=1: primed(function, order + 1)(self.args[0]),
        "_eval_is_extended_real": lambda self: True,
        "_eval_is_finite": lambda self: True,
        "_eval_is_commutative": lambda self: True,
    }
    for sign in SIGNS if order == 0 else ():
        value = getattr(known, f"is_{sign}")
        if value is not None:
            namespace[f"_eval_is_extended_{sign}"] = lambda self, value=value: value
    return type(f"{function.__name__}{chr(39) * order}", (sympy.Function,), namespace)


def is_primed(expr: Any) -> bool:
    """Whether `expr` is an undefined function, or a derivative of one, at a point."""
    return isinstance(expr, sympy.Function) and hasattr(type(expr), "origin")


def _differentiates_undefined(expr: Any) -> bool:
    if not (isinstance(expr, sympy.Derivative) and isinstance(expr.expr, AppliedUndef) and len(expr.expr.args) == 1):
        return False
    return set(expr.variables) == set(expr.expr.args)


def with_primes(expr: Any) -> Any:
    """`expr` with undefined functions of one argument as `primed` ones."""
    expr = expr.replace(
        _differentiates_undefined,
        lambda e: primed(e.expr.func, len(e.variables))(e.expr.args[0]),
    )
    expr = expr.replace(
        lambda e: isinstance(e, AppliedUndef) and len(e.args) == 1, lambda e: primed(e.func, 0)(*e.args)
    )
    return expr.replace(lambda e: isinstance(e, sympy.Subs), lambda e: e.doit())


def without_primes(expr: Any) -> Any:
    """`expr` with SymPy's own derivatives in the place of `primed` functions."""

    def own(e: Any) -> Any:
        function, order, (at,) = type(e).origin, type(e).order, e.args
        if order == 0:
            return function(at)
        if at.is_Symbol:
            return sympy.Derivative(function(at), (at, order))
        xi = sympy.Dummy("xi")
        return sympy.Subs(sympy.Derivative(function(xi), (xi, order)), xi, at)

    return expr.replace(is_primed, own)


def with_functions(expr: Any, functions: Mapping[UndefinedFunction, Callable[[Any], Any]]) -> Any:
    """`expr` with undefined functions replaced: {h: z ↦ formula}, of several arguments {h: (y, z) ↦ formula}."""
    several = {e.func for e in expr.atoms(AppliedUndef)} & set(functions)
    for function in several:
        put_in: Any = functions[function]
        expr = exact(expr.replace(function, lambda *args, put_in=put_in: sympy.sympify(put_in(*args))).doit())

    def put(e: Any) -> Any:
        z = sympy.Dummy("z", real=True)
        value = sympy.sympify(functions[type(e).origin](z))
        return exact(sympy.diff(value, z, type(e).order)).subs(z, e.args[0])

    return expr.replace(lambda e: is_primed(e) and type(e).origin in functions, put)


def functions_of(exprs: Iterable[Any]) -> set[Any]:
    """The undefined functions in some expressions."""
    found: set[Any] = set()
    for e in exprs:
        found |= {type(f).origin for f in e.atoms(sympy.Function) if is_primed(f)}
        found |= {f.func for f in e.atoms(AppliedUndef)}
    return found


def exact(value: Any) -> Any:
    """A number or expression with its floats as rational numbers: 0.1 is 1/10, 1e-8 is 1/10⁸."""
    if isinstance(value, sympy.MatrixBase):
        return value.applyfunc(exact)
    if isinstance(value, (np.ndarray, np.generic)) and np.ndim(value) == 0:
        value = value.item()
    expr = sympy.sympify(value)
    return expr.xreplace({number: _rational(float(number)) for number in expr.atoms(sympy.Float)})


def _rational(value: float) -> Any:
    if not np.isfinite(value):
        return sympy.sympify(value)
    short = Fraction(value).limit_denominator(1000)
    # 1/3 rather than 3333333333333333/10¹⁶; 1e-8 as it is written.
    return sympy.Rational(short) if float(short) == value else sympy.Rational(repr(value))


@dataclass(frozen=True)
class Names:
    """The symbols of a user and those that stand for them within a derivation, which are known to be real."""

    twins: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, listed: Iterable[Any], others: Iterable[Any], positive: Iterable[Any]) -> "Names":
        """Real twins for all, positive ones for `positive` (numbers that make sense only so); none where a symbol says
        itself what it is."""
        positive = set(positive) - set(listed)
        found = sorted(set(listed) | set(others) | positive, key=lambda s: s.name)
        plain = [s for s in found if s.is_real is None]
        return cls(tuple((s, _twin(s, s in positive)) for s in plain))

    def inner(self, expr: Any) -> Any:
        """A user's expression, within."""
        return _each(expr, lambda e: with_primes(exact(e)).xreplace(dict(self.twins)))

    def outer(self, expr: Any) -> Any:
        """An expression from within, in the user's symbols."""
        back = {twin: symbol for symbol, twin in self.twins}
        return _each(expr, lambda e: without_primes(e).xreplace(back))


def _twin(symbol: Any, positive: bool) -> Any:
    return sympy.Symbol(symbol.name, positive=True) if positive else sympy.Symbol(symbol.name, real=True)


def _each(expr: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(expr, sympy.MatrixBase):
        return sympy.ImmutableMatrix(expr.applyfunc(lambda e: function(e)))
    return function(sympy.sympify(expr))

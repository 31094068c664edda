"""Simplification that knows when to stop: one fraction, common factors cancelled, both parts factored."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy

LONG = 1500  # operations in one expression from which on it is left as it is: factoring it takes many seconds
ROOTS = 150  # and with roots of sums in it, which are algebraic numbers to it
SLOW = 1500  # operations in all from which on a line says that it will take long
SHORTER = 0.7  # of its operations a form must have to be preferred to one that keeps its factors
REDUCED = 250  # operations in a numerator up to which it is reduced modulo the equations of Γ


@dataclass(frozen=True)
class Tidy:
    """How to simplify expressions on Γ = {equations = 0}: not at all, or lightly and modulo the equations."""

    equations: tuple[Any, ...]
    symbols: tuple[Any, ...]
    wanted: bool = True
    lightly: bool = False  # where parts have names: one fraction of these would be longer than their sum

    def __call__(self, matrix: Any) -> Any:
        """Every entry of a matrix, or one expression."""
        if not isinstance(matrix, sympy.MatrixBase):
            return self.entry(matrix)
        entries = [self.entry(e) for e in matrix]
        return sympy.ImmutableMatrix(*matrix.shape, entries)

    def entry(self, expr: Any) -> Any:
        if not self.wanted or expr.is_Atom:
            return expr
        if self.lightly or sympy.count_ops(expr) > (ROOTS if has_roots(expr) else LONG):
            together: Any = sympy.together(expr)
            return shortest(sympy.factor_terms(together), sympy.factor_terms(expr))
        found = fraction(expr)
        # Products in which factors can be seen, unless powers of sums have been multiplied out.
        if sympy.count_ops(found) > 2 * sympy.count_ops(expr) and not is_nested(expr):
            return sympy.factor_terms(expr)
        reduced = shortest(found, *self._modulo(found))
        # x² + y² for 1 is worth it; u³ − v for u(u² − v²) is not.
        return reduced if sympy.count_ops(reduced) < SHORTER * sympy.count_ops(found) else found

    def _modulo(self, expr: Any) -> Sequence[Any]:
        """`expr` with numerator and denominator reduced modulo the equations, where these are polynomials."""
        if not self.equations or not expr.free_symbols & set(self.symbols) or sympy.count_ops(expr) > REDUCED:
            return ()
        gens = [s for s in self.symbols if any(f.has(s) for f in self.equations)]
        if not all(f.is_polynomial(*gens) for f in self.equations):
            return ()
        numerator, denominator = sympy.fraction(expr)
        if not (numerator.is_polynomial(*gens) and denominator.is_polynomial(*gens)):
            return ()
        parts = [_remainder(part, self.equations, gens) for part in (numerator, denominator)]
        forms = [fraction(a / b) for a in {parts[0], numerator} for b in {parts[1], denominator} if b != 0]
        return forms


def _remainder(expr: Any, equations: tuple[Any, ...], gens: list[Any]) -> Any:
    basis = sympy.groebner(equations, *gens, order="grevlex")
    return sympy.reduced(sympy.expand(expr), list(basis), *gens, order="grevlex", polys=False)[1]


def fraction(expr: Any) -> Any:
    """One fraction with factored numerator and denominator, and as few minus signs as may be."""
    found: Any = sympy.factor(sympy.together(expr))
    parts = sympy.Mul.make_args(found)
    flipped = [-part if part.is_Add and part.could_extract_minus_sign() else part for part in parts]
    sign = (-1) ** sum(a is not b for a, b in zip(parts, flipped, strict=True))
    return sympy.Mul(sign, *flipped) if len(parts) > 1 else found


def has_roots(expr: Any) -> bool:
    """Whether there are roots of sums."""
    return any(e.base.is_Add and not e.exp.is_Integer for e in expr.atoms(sympy.Pow))


def is_nested(expr: Any) -> bool:
    """Whether there are fractions within denominators."""
    return any(_divides(e) and any(_divides(inner) for inner in e.base.atoms(sympy.Pow)) for e in expr.atoms(sympy.Pow))


def _divides(power: Any) -> bool:
    return power.exp.is_Number and power.exp.is_negative


def shortest(*exprs: Any) -> Any:
    """The one with the fewest operations, the first of equals."""
    return min(exprs, key=sympy.count_ops)


def tell_if_long(matrices: Sequence[Any], shown: bool | None) -> None:
    """A line on stderr before a simplification that will take long."""
    count = sum(int(sympy.count_ops(m)) for m in matrices)
    if count > SLOW and (sys.stderr.isatty() if shown is None else shown):
        print(
            f"simplifying {count} operations; simplify=False leaves formulas as they are", file=sys.stderr, flush=True
        )

"""Formulas to be read: LaTeX, and lines of text."""

import abc
import re
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from .symbols import is_primed, with_primes

NAMES = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
GREEK: dict[str, str] = dict(zip(NAMES.split(), "αβγδεζηθικλμνξπρστφχψω", strict=True))
SHORT = 100  # characters of a formula in a repr
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class System:
    """A system of SDEs: ds = drift dt + diffusion dW for each symbol s, dv = v_drift dt for the state."""

    symbols: tuple[Any, ...]
    drift: Any
    diffusion: Any
    state: tuple[Any, ...]
    v_drift: Any
    definitions: tuple[tuple[Any, Any], ...]
    equations: tuple[Any, ...] = ()


def _power_of_ten(number: Any) -> int | None:
    """k of 10⁻ᵏ, k ≥ 3, else None."""
    digits = str(number.q)
    return len(digits) - 1 if number.p == 1 and digits.strip("0") == "1" and len(digits) > 3 else None


class _Latex(LatexPrinter):
    def _print_Rational(self, expr: Any) -> str:
        k = _power_of_ten(expr)
        return super()._print_Rational(expr) if k is None else f"10^{{-{k}}}"

    def _print_Function(self, expr: Any, exp: Any = None) -> str:
        if not is_primed(expr):
            return super()._print_Function(expr, exp)
        kind = type(expr)
        name = self._print(sympy.Symbol(kind.origin.__name__)) + "'" * kind.order
        power = "" if exp is None else f"^{{{exp}}}"
        name = f"{{{name}}}{power}" if power and kind.order else name + power
        return rf"{name}\left({self._print(expr.args[0])}\right)"


class _Text(StrPrinter):
    def _print_Rational(self, expr: Any) -> str:
        k = _power_of_ten(expr)
        return super()._print_Rational(expr) if k is None else f"1e-{k}"

    def _print_Symbol(self, expr: Any) -> str:
        return "_".join(_greek(part) for part in expr.name.split("_"))

    def _print_Function(self, expr: Any) -> str:
        if not is_primed(expr):
            return super()._print_Function(expr)
        kind = type(expr)
        return f"{_greek(kind.origin.__name__)}{chr(39) * kind.order}({self._print(expr.args[0])})"

    def _print_Abs(self, expr: Any) -> str:
        return f"|{self._print(expr.args[0])}|"

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        if expr.exp == sympy.S.Half:
            shown = self._print(expr.base)
            return f"√{shown}" if expr.base.is_Atom else f"√({shown})"
        return super()._print_Pow(expr, rational)


def _greek(name: str) -> str:
    letters = re.fullmatch(r"([A-Za-z]+)(\d*)", name)
    return GREEK.get(letters[1], letters[1]) + letters[2] if letters else name


def with_logarithms(expr: Any) -> Any:
    """`expr` with symbols named (ln h)'(y) for h'(y)/h(y), where h is an undefined function; for printing only."""

    def quotient(product: Any) -> Any:
        for part in product.args:
            if is_primed(part) and type(part).order == 1:
                base = next((q for q in product.args if q.is_Pow and q.exp == -1 and _is_base(q.base, part)), None)
                if base is not None:
                    rest = [a for a in product.args if a is not part and a is not base]
                    return sympy.Mul(*rest, _Logarithmic(type(part).origin.__name__, part.args[0]))
        return product

    return expr.replace(lambda e: e.is_Mul, quotient)


def _is_base(candidate: Any, primed: Any) -> bool:
    kind = type(primed)
    return (
        is_primed(candidate)
        and type(candidate).origin == kind.origin
        and type(candidate).order == 0
        and (candidate.args == primed.args)
    )


class _Logarithmic(sympy.Expr):
    """(ln h)'(y)."""

    is_commutative = True

    def __new__(cls, name: str, at: Any) -> "_Logarithmic":
        return sympy.Expr.__new__(cls, sympy.Symbol(name), at)

    def _latex(self, printer: Any) -> str:
        return rf"(\ln {printer._print(self.args[0])})'({printer._print(self.args[1])})"

    def _sympystr(self, printer: Any) -> str:
        return f"(ln {printer._print(self.args[0])})'({printer._print(self.args[1])})"


def formula_latex(expr: Any) -> str:
    """LaTeX of an expression; a rational factor stands in front where there is no other denominator."""
    expr = with_logarithms(with_primes(sympy.sympify(expr)))
    printer = _Latex({"mul_symbol": None, "ln_notation": True})
    coefficient, rest = expr.as_coeff_Mul()
    if coefficient.is_Rational and not coefficient.is_Integer and sympy.fraction(rest)[1] == 1 and rest != 1:
        sign = "-" if coefficient < 0 else ""
        body = printer.doprint(rest)
        body = rf"\left({body}\right)" if rest.is_Add else body
        return rf"{sign}\frac{{{abs(coefficient.p)}}}{{{coefficient.q}}}\, {body}"
    return printer.doprint(expr)


def formula_text(expr: Any) -> str:
    """One line of text: Greek letters, raised exponents, no signs of multiplication."""
    expr = with_logarithms(with_primes(sympy.sympify(expr)))
    parts: Any = expr.as_coeff_Mul()
    coefficient, rest = parts
    front = ""
    is_minus = bool(coefficient == -1)
    shown_apart = coefficient.is_Rational and (is_minus or not coefficient.is_Integer)
    if shown_apart and sympy.fraction(rest)[0] != 1 and not rest.is_Add:
        front = "-" if is_minus else f"{coefficient} "
        expr = rest
    shown: Any = _Text().doprint(expr)
    shown = re.sub(r"\*\*(\d+)(?![\d.])", lambda m: m[1].translate(RAISED), shown)
    return front + re.sub(r"(?<=[^\s*])\*(?=[^\s*])", " ", shown).replace("**", "^")


def _term(body: str, is_sum: bool, differential: str, brackets: tuple[str, str]) -> str:
    if body in ("1", "-1"):
        return body[:-1] + differential
    return f"{brackets[0]}{body}{brackets[1]} {differential}" if is_sum else f"{body} {differential}"


def _right_hand_side(
    drift: Any, row: list[Any], names: list[str], write: Any, brackets: tuple[str, str], dt: str = "dt"
) -> str:
    terms = [(e, name) for e, name in [(drift, dt), *zip(row, names, strict=True)] if e != 0]
    found = ""
    for e, name in terms:
        shown = _term(write(e), e.is_Add, name, brackets)
        found += shown if not found else f" - {shown[1:].lstrip()}" if shown.startswith("-") else f" + {shown}"
    return found or "0"


def _noises(diffusion: Any, write: Any) -> list[str]:
    """dW where one column of noise acts, else dW_1, dW_2, ..."""
    used = [j for j in range(diffusion.shape[1]) if any(diffusion[:, j])]
    return ["dW" if len(used) == 1 else write(j + 1) for j in range(diffusion.shape[1])]


def latex(system: System) -> str:
    """The system as an `aligned` environment."""
    lines = []
    noises = _noises(system.diffusion, lambda j: f"dW_{{{j}}}")
    for i, s in enumerate(system.symbols):
        right = _right_hand_side(
            system.drift[i], list(system.diffusion[i, :]), noises, formula_latex, (r"\left(", r"\right)"), r"dt"
        )
        lines.append(rf"d{formula_latex(s)} &= {right}")
    for v, rate in zip(system.state, system.v_drift, strict=True):
        lines.append(rf"d{formula_latex(v)} &= {formula_latex(rate)}\, dt")
    lines += [rf"{formula_latex(s)} &= {formula_latex(value)}" for s, value in system.definitions]
    lines += [rf"0 &= {formula_latex(f)} \quad\text{{on }} \Gamma" for f in system.equations]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def text(system: System) -> str:
    """The system as lines of text."""
    noises = _noises(system.diffusion, lambda j: f"dW{j}")
    lines = [
        f"d{formula_text(s)} = "
        + _right_hand_side(system.drift[i], list(system.diffusion[i, :]), noises, formula_text, ("(", ")"))
        for i, s in enumerate(system.symbols)
    ]
    lines += [
        f"d{formula_text(v)} = {_term(formula_text(rate), rate.is_Add, 'dt', ('(', ')'))}"
        for v, rate in zip(system.state, system.v_drift, strict=True)
    ]
    lines += [f"{formula_text(s)} = {formula_text(value)}" for s, value in system.definitions]
    return "\n".join([*lines, *(f"0 = {formula_text(f)} on Γ" for f in system.equations)])


class Printed(abc.ABC):
    """What shows itself as a system of equations."""

    @abc.abstractmethod
    def _system(self) -> System:
        """The equations."""

    def latex(self) -> str:
        """The equations, with Γ and what names stand for, as an `aligned` environment."""
        return latex(self._system())

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def __str__(self) -> str:
        return text(self._system())

    def __repr__(self) -> str:
        first, *more = str(self).split("\n")
        first = first if len(first) <= SHORT else f"{first[:SHORT]} ..."
        return f"<{type(self).__name__} {first}{f' and {len(more)} more lines' if more else ''}>"

"""Γ: the equations that define it, from residuals, a sum of squares, the gradient, or as given; each checked at points.

On Γ the Hessian is H = Nᵀ A N, with N (m, p) the gradients of m independent functions that define Γ.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from .formula import Formula, Square
from .points import Numbers, random_points, start

RANK = 1e-8  # of the largest singular value or eigenvalue at a random point, below which one counts as zero


@dataclass(frozen=True)
class Manifold:
    """A manifold of minimizers.

    Attributes:
        equations: m independent functions that vanish on Γ.
        solution: {parameter: its value on Γ}, which is put into every formula: as given or solved, constants besides.
        normals: N, their gradients on Γ (m, p).
        curvature: A, (m, m).
        hessian: H, up to what has no part in Π S T: the sum of w ∇f ∇fᵀ for a sum of squares.
    """

    equations: tuple[Any, ...]
    solution: tuple[tuple[Any, Any], ...]
    normals: Any
    curvature: Any
    hessian: Any

    def map(self, function: Callable[[Any], Any]) -> "Manifold":
        """With `function` of everything but the parameters."""
        solution = tuple((x, function(value)) for x, value in self.solution)
        equations = tuple(map(function, self.equations))
        return Manifold(equations, solution, *map(function, (self.normals, self.curvature, self.hessian)))

    def put(self, expr: Any) -> Any:
        """`expr` on Γ, as far as Γ is solved."""
        return expr.subs(dict(self.solution), simultaneous=True) if self.solution else expr


def manifold_of(formula: Formula, given: Any, names: Any) -> Manifold:
    """Γ of a loss; `given` is {parameter: formula} or a list of functions that vanish on it, None to find it.

    Raises ValueError if there is none, none is found or the given one does not fit.
    """
    if given is not None:
        return _given(formula, given, names)
    squares = _residual_squares(formula) if formula.residuals else squares_of(formula.loss, formula.symbols)
    return _of_squares(formula, squares) if squares else _solved(formula)


def _residual_squares(formula: Formula) -> tuple[Square, ...]:
    n = len(formula.residuals)
    return tuple(Square(sympy.Rational(1, n), r) for r in formula.residuals if r.free_symbols & set(formula.symbols))


def squares_of(loss: Any, symbols: tuple[Any, ...]) -> tuple[Square, ...]:
    """L = const + ½ Σ w f², term by term, or as one product; () if it does not look like that."""
    forms: tuple[Any, ...] = (lambda e: e, sympy.factor, sympy.expand)
    for form in forms:
        found = [_square(term, symbols) for term in sympy.Add.make_args(form(loss))]
        if all(square is not None for square in found):
            return tuple(s for s in found if s is not None and s.base != 1)
    return ()


def _square(term: Any, symbols: tuple[Any, ...]) -> Square | None:
    """½ w f² with f the product of all squared factors that have parameters in them; f = 1 for a constant."""
    weight, base = 2 * term, sympy.S.One
    for factor in sympy.Mul.make_args(term):
        root, exponent = factor.as_base_exp()
        if root.free_symbols & set(symbols) and exponent.is_integer and exponent.is_even and exponent.is_positive:
            base, weight = base * root ** (exponent / 2), weight / factor
    return Square(weight, base) if base != 1 or not term.free_symbols & set(symbols) else None


def _of_squares(formula: Formula, squares: tuple[Square, ...]) -> Manifold:
    """Γ = {f = 0}, of which m are independent."""
    symbols, rng = formula.symbols, np.random.default_rng(0)
    bases = sympy.Matrix([s.base for s in squares])
    jacobian = bases.jacobian(symbols)
    points: list[np.ndarray] = []
    for _ in range(3):
        # Numbers with which the equations have no solution say nothing about others.
        numbers = Numbers.drawn([formula.loss], symbols, rng)
        points = random_points(bases, jacobian, symbols, numbers, rng)
        if points:
            break
    else:
        raise ValueError(
            f"expr vanishes nowhere, or no such point was found: {_listing(bases)} from random starts, with random "
            "numbers for all other symbols. If there are some pass manifold={x: ...}, a formula for each parameter "
            "that is determined."
        )
    rows = _independent(numbers.function(jacobian), points)
    solution = _constants([bases[i] for i in rows], symbols)
    weights = sympy.diag(*(s.weight for s in squares))
    hessian = jacobian.T * weights * jacobian
    found = _assembled([bases[i] for i in rows], solution, jacobian, weights, hessian, rows, symbols)
    _check(formula, found, numbers, points, "expr")
    return found


def _listing(bases: Any) -> str:
    return ", ".join(f"{b} = 0" for b in list(bases)[:4]) + (", ..." if len(bases) > 4 else "")


def _assembled(
    equations: list[Any],
    solution: dict[Any, Any],
    jacobian: Any,
    weights: Any,
    hessian: Any,
    rows: list[int],
    symbols: Any,
) -> Manifold:
    on = (lambda e: e.subs(solution, simultaneous=True)) if solution else (lambda e: e)
    normals = on(jacobian.extract(rows, list(range(len(symbols)))))
    if len(rows) == jacobian.shape[0]:
        curvature = on(weights)
    else:
        # The other rows are combinations R N of these, so that H = JᵀWJ = Nᵀ (RᵀWR) N.
        R = on(jacobian) * normals.T * (normals * normals.T).inv()
        curvature = (R.T * on(weights) * R).applyfunc(sympy.cancel)
    return Manifold(tuple(equations), tuple(solution.items()), normals, curvature, hessian)


def _independent(jacobian: Any, points: list[np.ndarray]) -> list[int]:
    """Rows of a Jacobian that are independent at the points, the first that are."""
    rows: list[int] = []
    values = [jacobian(x) for x in points]
    for i in range(values[0].shape[0]):
        if all(_rank(J[[*rows, i]]) == len(rows) + 1 for J in values):
            rows.append(i)
    return rows


def _rank(matrix: np.ndarray) -> int:
    singular = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(singular > RANK * max(singular[0], 1e-3)))


def _constants(equations: list[Any], symbols: tuple[Any, ...]) -> dict[Any, Any]:
    """{x: a} for equations that say x = a."""
    found = {}
    for f in equations:
        inside = f.free_symbols & set(symbols)
        if len(inside) == 1 and f.diff(x := next(iter(inside))).free_symbols.isdisjoint(symbols):
            found[x] = sympy.solve(f, x)[0]
    return found


def _given(formula: Formula, given: Any, names: Any) -> Manifold:
    if not isinstance(given, Mapping):
        return _given_equations(formula, given, names)
    solution = {names.inner(key): names.inner(value) for key, value in given.items()}
    for x, value in solution.items():
        if x not in formula.symbols:
            raise ValueError(f"manifold has {x}, which is none of the symbols {list(map(str, formula.symbols))}.")
        if value.free_symbols & set(solution):
            raise ValueError(f"manifold={given}: {x} = {value} must not depend on what else is given.")
    found = _of_solution(formula, solution)
    numbers, points = _points_of_solution(formula, found)
    _check(formula, found, numbers, points, f"manifold={given}")
    return found


def _given_equations(formula: Formula, given: Any, names: Any) -> Manifold:
    """Γ as the zeros of given functions, H = NᵀAN with A from the Hessian itself."""
    items: list[Any] = [*given] if isinstance(given, (Sequence, sympy.MatrixBase)) else [given]  # pyright: ignore
    differences: list[Any] = [e.lhs - e.rhs if isinstance(e, sympy.Equality) else e for e in items]  # pyright: ignore
    equations = [names.inner(e) for e in differences]
    symbols, rng = formula.symbols, np.random.default_rng(0)
    N = sympy.Matrix(equations).jacobian(symbols)
    numbers = Numbers.drawn([formula.loss, *equations], symbols, rng)
    points = random_points(equations, N, symbols, numbers, rng)
    if not points:
        raise ValueError(f"manifold={given}: no point was found where it vanishes.")
    hessian = sympy.hessian(formula.loss, symbols)
    inverse = (N * N.T).inv()
    curvature = (inverse * N * hessian * N.T * inverse).applyfunc(sympy.cancel)
    found = Manifold(tuple(equations), (), N, curvature, hessian)
    _check(formula, found, numbers, points, f"manifold={given}")
    return found


def _of_solution(formula: Formula, solution: dict[Any, Any]) -> Manifold:
    """Γ = {x = g(y)}: the gradients of x − g(y) are the unit matrix in the columns of x, so that A is H there."""
    symbols = formula.symbols
    equations: Any = sympy.Matrix([x - value for x, value in solution.items()])
    hessian = sympy.hessian(formula.loss, symbols)
    on = {**solution}
    columns = [symbols.index(x) for x in solution]
    curvature = hessian.extract(columns, columns).subs(on, simultaneous=True).applyfunc(sympy.cancel)
    return Manifold(tuple(equations), tuple(solution.items()), equations.jacobian(symbols), curvature, hessian)


def _points_of_solution(formula: Formula, found: Manifold) -> tuple[Numbers, list[np.ndarray]]:
    symbols, rng = formula.symbols, np.random.default_rng(0)
    numbers = Numbers.drawn([formula.loss, *(value for _, value in found.solution)], symbols, rng)
    chart = numbers.function(sympy.Matrix(symbols).subs(dict(found.solution), simultaneous=True))
    points = []
    for _ in range(STARTS_OF_SOLUTION):
        with np.errstate(all="ignore"):
            x = chart(start(symbols, rng) * rng.choice([0.3, 1.0]))[:, 0]
        if np.all(np.isfinite(x)):
            points.append(x)
    return numbers, points[:3]


STARTS_OF_SOLUTION = 12


def _check(formula: Formula, found: Manifold, numbers: Numbers, points: list[np.ndarray], what: str) -> None:
    """ValueError unless the gradient vanishes at the points and H is non-negative there, of the rank of N, below p."""
    m, p = found.normals.shape
    if m == p:
        raise ValueError(
            f"{what}: minimizers are isolated, as all {p} parameters are determined (rank {p} of the Hessian). A "
            "manifold needs more parameters than equations."
        )
    if not points:
        raise ValueError(f"{what}: no real point was found on it, with random numbers for all other symbols.")
    gradient = sympy.Matrix([formula.loss]).jacobian(formula.symbols)
    slope, hessian = numbers.function(gradient), numbers.function(sympy.hessian(formula.loss, formula.symbols))
    for x in points:
        H = hessian(x)
        values = np.linalg.eigvalsh(H)
        scale = max(np.max(np.abs(values)), 1e-12)
        at = ", ".join(f"{s}={v:.4g}" for s, v in zip(formula.symbols, x, strict=True))
        if np.max(np.abs(slope(x))) > 1e-6 * (1 + scale):
            raise ValueError(f"{what}: the gradient does not vanish at {at}, it is {slope(x)[0].round(4).tolist()}.")
        if values[0] < -1e-6 * scale:
            raise ValueError(f"{what}: no minimum at {at}, as the Hessian has the eigenvalue {values[0]:.3g}.")
        rank = int(np.sum(values > RANK * scale)) if scale > 1e-10 else 0
        if rank != m or m == 0:
            raise ValueError(
                f"{what}: the Hessian has rank {rank} at {at}, but {m} equations define the manifold: it is degenerate "
                "there (such as x⁴), or the minimizers are another manifold, to be passed as manifold={x: ...}."
            )


def _solved(formula: Formula) -> Manifold:
    """Γ where ∇L = 0 as SymPy solves it: the first solution that is a manifold of minimizers."""
    symbols = formula.symbols
    gradient = [sympy.factor(formula.loss.diff(s)) for s in symbols]
    try:
        solutions = sympy.solve([g for g in gradient if g != 0], list(symbols), dict=True)
    except NotImplementedError:
        solutions = []
    whys = []
    for solution in solutions:
        try:
            found = _of_solution(formula, solution)
            _check(formula, found, *_points_of_solution(formula, found), f"{solution}")
            return found
        except (ValueError, TypeError, ZeroDivisionError) as error:
            whys.append(str(error))
    reason = " ".join(whys[:3]) if whys else "SymPy finds no solution of ∇L = 0."
    raise ValueError(
        f"expr has no manifold of minimizers that could be found. {reason} Pass it as manifold={{x: ...}}, a list of "
        "equations, or the loss as a list of residuals."
    )


def solved_for(manifold: Manifold, symbols: tuple[Any, ...], others: tuple[Any, ...] | None = None) -> dict[Any, Any]:
    """{parameter: formula in the others} from the equations of Γ; ValueError if SymPy does not find one.

    `others` are those to be solved for, None for any as many as there are equations. Of several solutions the first
    that may have the signs that the symbols are declared to have.
    """
    solution = dict(manifold.solution)
    left = [f for f in (manifold.put(f) for f in manifold.equations) if f != 0]
    if not left:
        return solution
    wanted = [tuple(s for s in others if s not in solution)] if others is not None else _choices(left, symbols)
    for unknown in wanted:
        try:
            found = [s for s in sympy.solve(left, list(unknown), dict=True) if set(s) == set(unknown)]
        except NotImplementedError:
            continue
        found = [s for s in found if all(_may_be(x, value) for x, value in s.items())]
        if found:
            return {**{x: value.subs(found[0]) for x, value in solution.items()}, **found[0]}
    raise ValueError(
        f"SymPy does not solve {_listing(left)} for {others if others is not None else 'any parameters'}: give other "
        "coordinates, or all parameters as formulas."
    )


def _choices(left: list[Any], symbols: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    inside = [s for s in reversed(symbols) if any(f.has(s) for f in left)]
    return list(itertools.combinations(inside, len(left)))


def _may_be(symbol: Any, value: Any) -> bool:
    """Whether a value may be that of a symbol, by the signs that are known."""
    if value.is_real is False or value.has(sympy.I):
        return False
    return not (symbol.is_positive and value.is_nonpositive) and not (symbol.is_negative and value.is_nonnegative)

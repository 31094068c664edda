"""The slow SDE in coordinates of Γ, by Itô's formula.

For coordinates q that give all parameters, θ = g(q): with any left inverse L of Dg,
dq = L (drift − ½ Σ_j D²g[s_j, s_j]) dt + s dW, s = L · diffusion. For observables w = f(θ):
dw = (∇f · drift + ½ Σ_j ∇²f[b_j, b_j]) dt + ∇f · b dW, b = diffusion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from .compact import expanded
from .manifold import solved_for
from .printing import Printed, System
from .tidy import shortest
from .within import Within

HEURISTIC = 120  # operations up to which SymPy's `simplify` takes no more than a second


@dataclass(frozen=True, repr=False)
class Reduced(Printed):
    """dq = drift dt + diffusion dW in coordinates of Γ, and dv = v_drift dt; made by `Derivation.reduced`.

    Attributes:
        coordinates: q.
        drift, diffusion: (d, 1) and (d, r), with the names of `definitions` in them, S_x for an entry of S(v).
        state, v_drift: the symbols of v, and their drift (k, 1).
        definitions: {name: what it stands for}.
    """

    coordinates: tuple[Any, ...]
    drift: Any
    diffusion: Any
    state: tuple[Any, ...]
    v_drift: Any
    definitions: dict[Any, Any]

    def expanded(self) -> "Reduced":
        """With what names stand for put in."""
        named = tuple(self.definitions.items())
        drift, diffusion = (expanded(m, named) for m in (self.drift, self.diffusion))
        return Reduced(self.coordinates, drift, diffusion, self.state, self.v_drift, {})

    def renamed(self, symbols: Mapping[Any, Any]) -> "Reduced":
        """With other symbols for some."""
        return Reduced(
            tuple(symbols.get(q, q) for q in self.coordinates),
            self.drift.xreplace(symbols),
            self.diffusion.xreplace(symbols),
            self.state,
            self.v_drift.xreplace(symbols),
            {name: value.xreplace(symbols) for name, value in self.definitions.items()},
        )

    def _system(self) -> System:
        named = tuple(self.definitions.items())
        return System(self.coordinates, self.drift, self.diffusion, self.state, self.v_drift, named)


def reduced_to(within: Within, coordinates: Any) -> Reduced:
    """See `Derivation.reduced`."""
    names, symbols = within.formula.names, within.formula.symbols
    if isinstance(coordinates, Mapping):
        given = {names.inner(key): names.inner(value) for key, value in coordinates.items()}
        if set(given) >= set(symbols):
            new = _new_symbols(within, given)
            # Within, coordinates are real, as all symbols are: (e^s)^λ is e^{λs}.
            real = {q: sympy.Symbol(q.name, real=True) for q in new if q.is_real is None}
            found = _in_parameters(
                within, {s: e.subs(real) for s, e in given.items()}, tuple(real.get(q, q) for q in new)
            )
            return found.renamed({twin: q for q, twin in real.items()})
        if not given or set(given) & set(symbols):
            raise ValueError(
                f"coordinates={coordinates} must have new symbols for keys, {{w: u**2 - v**2}}, or all of {symbols}."
            )
        return _observed(within, given)
    kept = tuple(names.inner(s) for s in ([coordinates] if isinstance(coordinates, sympy.Basic) else coordinates))
    unknown = [s for s in kept if s not in symbols]
    wanted = len(symbols) - len(within.manifold.equations)
    if unknown or len(set(kept)) != wanted:
        raise ValueError(
            f"coordinates={coordinates} must be {wanted} of the parameters {symbols}, as many as Γ has dimensions; or "
            "{new symbol: formula}."
        )
    others = tuple(s for s in symbols if s not in kept)
    solution = solved_for(within.manifold, symbols, others)
    return _in_parameters(within, {**{s: s for s in kept}, **solution}, kept)


def _new_symbols(within: Within, given: Mapping[Any, Any]) -> tuple[Any, ...]:
    found = set().union(*(value.free_symbols for value in given.values())) - within.free_symbols
    wanted = len(given) - len(within.manifold.equations)
    if len(found) != wanted:
        raise ValueError(f"coordinates has {sorted(map(str, found))} as new symbols, but Γ has {wanted} dimensions.")
    for f in within.manifold.equations:
        if sympy.simplify(f.subs(given, simultaneous=True)) != 0:
            raise ValueError(
                f"coordinates is not on Γ: {f} becomes {sympy.simplify(f.subs(given, simultaneous=True))}."
            )
    return tuple(sorted(found, key=lambda s: s.name))


def _in_parameters(within: Within, chart: Mapping[Any, Any], q: tuple[Any, ...]) -> Reduced:
    """θ = chart(q), all parameters as formulas."""
    symbols, tidy = within.formula.symbols, within.tidy
    g = sympy.Matrix([chart[s] for s in symbols])
    drift, along = (_put(m, chart) for m in (within.drift, within.coefficients.diffusion))
    inverse = _left_inverse(g, q, symbols)
    diffusion = (inverse * along).applyfunc(tidy.entry)
    bend = sympy.zeros(len(symbols), 1)
    for j in range(diffusion.shape[1]):
        column = diffusion[:, j]
        bend += sympy.Matrix([(column.T * sympy.hessian(e, q) * column)[0] for e in g])
    return _made(within, q, inverse * (drift - bend / 2), diffusion, lambda e: e.subs(chart, simultaneous=True))


def _left_inverse(g: Any, q: tuple[Any, ...], symbols: tuple[Any, ...]) -> Any:
    """L with L Dg = 1: the rows of q itself where these are parameters, else the pseudo-inverse."""
    if all(s in symbols and g[symbols.index(s)] == s for s in q):
        return sympy.Matrix(len(q), len(symbols), lambda i, j: int(symbols[j] == q[i]))
    D = g.jacobian(q)
    return (D.T * D).applyfunc(sympy.trigsimp).inv() * D.T


def _observed(within: Within, given: Mapping[Any, Any]) -> Reduced:
    """w = f(θ), and what comes out in terms of w where that can be seen."""
    symbols, along = within.formula.symbols, within.coefficients.diffusion
    f = sympy.Matrix(list(given.values()))
    slope = _put(f.jacobian(symbols), dict(within.manifold.solution))
    bends = []
    for e in f:
        hessian = _put(sympy.hessian(e, symbols), dict(within.manifold.solution))
        bends.append((along.T * hessian * along).trace() / 2)
    w = tuple(given)
    drift, diffusion = slope * within.drift + sympy.Matrix(bends), slope * along
    return _made(within, w, drift, diffusion, lambda e: in_terms_of(within, e, given))


def _put(matrix: Any, values: Mapping[Any, Any]) -> Any:
    return matrix.subs(values, simultaneous=True)


def _made(within: Within, q: tuple[Any, ...], drift: Any, diffusion: Any, express: Any) -> Reduced:
    names, tidy = within.formula.names, within.tidy

    def finished(matrix: Any) -> Any:
        return names.outer(matrix.applyfunc(lambda e: tidy.entry(_simplified(express(tidy.entry(e))))))

    drift, diffusion = finished(drift), finished(diffusion)
    used = drift.free_symbols | diffusion.free_symbols
    definitions: list[tuple[Any, Any]] = []
    for symbol, value in reversed(within.named):
        if symbol in used:
            value = names.outer(_simplified(express(value)))
            used |= value.free_symbols
            definitions.insert(0, (symbol, value))
    # Only those entries of the state that something depends on.
    state = [v for v in within.state if v in used]
    rates = dict(zip(within.state, within.v_drift(), strict=True))
    rows = [names.outer(tidy.entry(_simplified(express(rates[v])))) for v in state]
    v_drift = sympy.ImmutableMatrix(len(state), 1, rows)
    return Reduced(tuple(names.outer(s) for s in q), drift, diffusion, tuple(state), v_drift, dict(definitions))


def _simplified(expr: Any) -> Any:
    """By SymPy's own heuristics where these are quick: sines, and exponentials as tanh."""
    if expr.has(sympy.sin, sympy.cos, sympy.exp) and sympy.count_ops(expr) < HEURISTIC:
        found = sympy.simplify(sympy.powsimp(expr))
        return shortest(found, expr)
    return expr


def in_terms_of(within: Within, expr: Any, given: Mapping[Any, Any]) -> Any:
    """`expr` on Γ by w = f(θ), as far as that is found: by division for polynomials, else by solving for θ."""
    symbols = within.formula.symbols
    if not expr.free_symbols & set(symbols):
        return expr
    equations = [f for f in (within.manifold.put(f) for f in within.manifold.equations) if f != 0]
    equations += [within.manifold.put(value) - w for w, value in given.items()]
    divided = _divided(expr, equations, symbols)
    if divided is not None:
        return divided
    multiple = _multiple(within, expr, given)
    if multiple is not None:
        return multiple
    inside = [s for s in symbols if any(e.has(s) for e in (*equations, expr))]
    if len(inside) == len(equations):
        try:
            solutions = sympy.solve(equations, inside, dict=True)
        except NotImplementedError:
            solutions = []
        good = [s for s in solutions if len(s) == len(inside) and _fits(s)]
        if good:
            return expr.subs(good[0])
    return expr


def _multiple(within: Within, expr: Any, given: Mapping[Any, Any]) -> Any:
    """k w if `expr` is that, which powers with symbols for exponents hide from division."""
    symbols = within.formula.symbols
    try:
        solution = solved_for(within.manifold, symbols)
    except ValueError:
        return None
    for w, value in given.items():
        quotient = (expr / value).subs(solution, simultaneous=True)
        if sympy.count_ops(quotient) < HEURISTIC:
            quotient = sympy.simplify(sympy.powsimp(sympy.expand(quotient)))
            if not quotient.free_symbols & set(symbols):
                return quotient * w
    return None


def _fits(solution: Mapping[Any, Any]) -> bool:
    return all(
        not (s.is_positive and value.is_nonpositive) and value.is_real is not False for s, value in solution.items()
    )


def _divided(expr: Any, equations: list[Any], symbols: tuple[Any, ...]) -> Any:
    """The remainder of numerator and denominator by the equations, if no parameter is left in it."""
    gens = [s for s in symbols if any(e.has(s) for e in equations)]
    numerator, denominator = sympy.fraction(sympy.together(expr))
    if not all(e.is_polynomial(*gens) for e in (*equations, numerator, denominator)):
        return None
    basis = list(sympy.groebner(equations, *gens, order="lex"))
    quotient = sympy.cancel(numerator / denominator)
    for top, bottom in (sympy.fraction(quotient), (numerator, denominator)):
        parts = [sympy.reduced(sympy.expand(e), basis, *gens, order="lex")[1] for e in (top, bottom)]
        found = sympy.factor(parts[0] / parts[1]) if parts[1] != 0 else expr
        if not found.free_symbols & set(symbols):
            return found
    return None

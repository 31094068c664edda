"""The potential that the slow flow descends along Γ, where there is one.

At the equilibrium state v = V(Σ) the tangential drift is −Π S τ with the covector τ = ½ T[C]. It is −Π S ∇F on Γ if
τ restricted to Γ is closed, Πᵀ (∂_i τ_j − ∂_j τ_i) Π = 0. Under label noise, with each entry of S a function of one
entry v_k = V_k(Σ) alone, F = ¼ Σ_k (Σ_i H_ii/V_k(H)) ∫ S_k(v) dv over the i that share S_k: tr H for SGD,
tr Diag(H)^½ for Adam.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from .manifold import solved_for
from .points import Numbers, random_points, start
from .printing import formula_latex, formula_text
from .within import Within


@dataclass(frozen=True, repr=False)
class Potential:
    """F with drift −Π S ∇F along Γ, at v = V(Σ).

    Attributes:
        value: F, up to a constant, in the parameters; None where there is none, or none was found.
        closed: whether there is one.
        curl: Πᵀ (∂_i τ_j − ∂_j τ_i) Π (p, p), zero where it is.
        covector: τ, which is ∇F along Γ (p, 1).
    """

    value: Any
    closed: bool
    curl: Any
    covector: Any
    within: Within

    def stationary_points(self) -> list[dict[Any, Any]]:
        """Where τ vanishes along Γ and the flow is at rest, [{parameter: value}]: the real ones that SymPy finds."""
        symbols, names = self.within.formula.symbols, self.within.formula.names
        solution = solved_for(self.within.manifold, symbols)
        free = [s for s in symbols if s not in solution]
        g: Any = sympy.Matrix([solution.get(s, s) for s in symbols])
        along = (g.jacobian(free).T * _on(names.inner(self.covector), solution)).applyfunc(self.within.tidy.entry)
        equations = [sympy.fraction(e)[0] for e in along if e != 0]
        try:
            found = sympy.solve(equations, free, dict=True) if equations else []
        except NotImplementedError as error:
            raise ValueError(
                f"SymPy does not solve {equations} = 0 for {free}: use ss.stationary_point for numbers."
            ) from error
        points = [{s: e.subs(f) for s, e in zip(symbols, g, strict=True)} for f in found]
        return [_outer(p, names) for p in points if _is_real(p)]

    def __str__(self) -> str:
        if self.value is None:
            why = "closed, but not integrated" if self.closed else "none: the curl does not vanish"
            return f"no potential ({why})"
        return f"F = {formula_text(self.value)}"

    def __repr__(self) -> str:
        return f"<Potential {self}>"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle F = {formula_latex(self.value)}$" if self.value is not None else rf"$\text{{{self}}}$"


def _on(matrix: Any, values: Any) -> Any:
    return matrix.subs(values, simultaneous=True)


def _outer(point: dict[Any, Any], names: Any) -> dict[Any, Any]:
    return {names.outer(s): names.outer(sympy.simplify(value)) for s, value in point.items()}


def _is_real(point: dict[Any, Any]) -> bool:
    return all(
        value.is_real is not False and not (s.is_positive and (value.is_nonpositive or value.is_zero))
        for s, value in point.items()
    )


def potential_of(within: Within) -> Potential:
    """See `Derivation.potential`."""
    still, names = within.at_equilibrium(), within.formula.names
    symbols = within.formula.symbols
    tau = still.expanded(still.coefficients.force)
    projector = still.expanded(still.coefficients.projector)
    twist = sympy.Matrix(len(symbols), len(symbols), lambda i, j: tau[j].diff(symbols[i]) - tau[i].diff(symbols[j]))
    curl = projector.T * twist * projector
    test = _Test(still, tau, projector)
    # A curve bears no curl, whatever it is as an expression.
    closed = len(symbols) - len(within.manifold.equations) == 1 or test.vanishes(curl)
    value = None
    if closed:
        tries = (_by_state, _by_coordinates)
        found = (attempt(still, tau) for attempt in tries)
        value = next((F for F in found if F is not None and test.is_potential(F)), None)
    curl = sympy.zeros(*curl.shape) if closed else curl.applyfunc(within.tidy.entry)
    outer = None if value is None else names.outer(value)
    return Potential(outer, closed, names.outer(curl), names.outer(tau.applyfunc(within.tidy.entry)), within)


def _by_state(within: Within, tau: Any) -> Any:
    """F = ¼ Σ_k n_k ∫ S_k(v) dv at v = V(Σ), for label noise and a metric that is diagonal and of one v_k each."""
    formula, moments = within.formula, within.moments
    if formula.scale is None or not moments.metric.is_diagonal():
        return None
    H = [formula.scale * within.manifold.put(within.manifold.hessian[i, i]) for i in range(len(formula.symbols))]
    total = sympy.S.Zero
    for S in dict.fromkeys(moments.metric.diagonal()):
        trace = sum(h for h, entry in zip(H, moments.metric.diagonal(), strict=True) if entry == S)
        used = S.free_symbols & set(moments.symbols)
        if not used:
            total += S * trace / 4
            continue
        if len(used) > 1:
            return None
        v = used.pop()
        target = within.equilibrium[v]
        count = sympy.cancel(trace / target)
        if count.free_symbols & set(formula.symbols):
            return None
        total += count * _integral(S, v).subs(v, target) / 4
    return within.tidy.entry(total)


def _integral(S: Any, v: Any) -> Any:
    """∫ S dv; of v^{−λ} without the case of λ = 1."""
    if S.is_Pow and S.base == v and not S.exp.has(v):
        return v ** (S.exp + 1) / (S.exp + 1)
    if S.has(sympy.sqrt(v)):
        r = sympy.Dummy("r", positive=True)
        return sympy.integrate(sympy.apart(2 * r * S.subs(v, r**2), r), r).subs(r, sympy.sqrt(v))
    return sympy.integrate(S, v)


def _by_coordinates(within: Within, tau: Any) -> Any:
    """∫ τ · ∂θ/∂q dq, one coordinate of Γ after the other."""
    symbols = within.formula.symbols
    try:
        solution = solved_for(within.manifold, symbols)
    except ValueError:
        return None
    free = [s for s in symbols if s not in solution]
    g = sympy.Matrix([solution.get(s, s) for s in symbols])
    along = (g.jacobian(free).T * _on(tau, solution)).applyfunc(within.tidy.entry)
    # |σ| of a noise whose sign is open would be integrated case by case.
    sizes = {e: sympy.Dummy(positive=True) for e in along.atoms(sympy.Abs) if not e.free_symbols & set(symbols)}
    total: Any = sympy.S.Zero
    for a, q in zip(along.xreplace(sizes), free, strict=True):
        total += sympy.integrate(sympy.expand(a - total.diff(q)), q)
    return None if total.has(sympy.Integral) else within.tidy.entry(total.xreplace({d: e for e, d in sizes.items()}))


class _Test:
    """Whether what should vanish on Γ does so at random points of it, to 1e-8 of the size of τ."""

    def __init__(self, within: Within, tau: Any, projector: Any):
        self.within, self.tau, self.projector = within, tau, projector
        formula, rng = within.formula, np.random.default_rng(1)
        symbols = formula.symbols
        exprs = [*tau, *projector, formula.loss]
        for _ in range(3):
            self.numbers = Numbers.drawn(exprs, symbols, rng)
            if within.manifold.solution:
                chart = self.numbers.function(_on(sympy.Matrix(symbols), dict(within.manifold.solution)))
                points = [chart(start(symbols, rng))[:, 0] for _ in range(3)]
            else:
                equations = sympy.Matrix(within.manifold.equations)
                points = random_points(equations, equations.jacobian(symbols), symbols, self.numbers, rng)
            self.points = [x for x in points if np.all(np.isfinite(x))]
            if self.points:
                break

    def vanishes(self, matrix: Any) -> bool:
        function, scale = self.numbers.function(matrix), self.numbers.function(self.tau)
        return all(np.max(np.abs(function(x))) < 1e-8 * (1e-3 + np.max(np.abs(scale(x)))) for x in self.points)

    def is_potential(self, F: Any) -> bool:
        """Whether Πᵀ(∇F − τ) = 0."""
        gradient = sympy.Matrix([F.diff(s) for s in self.within.formula.symbols])
        return self.vanishes(self.projector.T * (gradient - self.tau))

"""`derive`, and what it returns: the slow SDE of a formula, as formulas."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
import sympy
from sympy.core.function import AppliedUndef, UndefinedFunction

from ..dynamics.coefficients import Coefficients as Values
from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from . import numbers
from .coefficients import Coefficients, coefficients_of
from .compact import named_metric
from .formula import Formula, formula_of
from .manifold import Manifold, manifold_of, solved_for
from .optimizers import chart_of, on_symbols, state_of
from .potential import Potential, potential_of
from .printing import Printed, System
from .reduced import Reduced, reduced_to
from .tidy import Tidy, tell_if_long
from .within import Within


def derive(
    expr: Any,
    symbols: Any,
    optimizer: AGM,
    noise: Any,
    *,
    manifold: Any = None,
    simplify: bool = True,
    progress: bool | None = None,
) -> "Derivation":
    """The slow SDE of a loss given as a formula, as formulas.

        dζ = Π S B dW + ½ ∂²Φ_S(ζ)[S Σ S] dt,      dv = c (V(Σ) − v) dt          (Li, Wen and Lyu 2025)

    on the manifold Γ of minimizers, per unit of slow time t = kη². Everything that is not listed in `symbols` stays a
    symbol: δ, ε, c, λ, undefined functions such as h(y) or φ(w x). Unlisted symbols and those of settings are taken for
    real, the latter for positive.

    Args:
        expr: a SymPy expression, the loss; or a list of residuals r_1, ..., r_n, of which it is (1/2n) Σ r_i².
        symbols: the parameters θ, SymPy symbols in the order of the flat params; or a list with matrices of symbols in
            it, the leaves of params (for Adalayer, Adam-mini and Shampoo, which ask for rows and layers).
        optimizer: any AGM but a group; c, eps, lam and weight_decay may be symbols, c=∞ puts v = V(Σ) in. V and S of an
            AGM of your own must work on SymPy: `lambda g: g * g`, `lambda v: 1 / (v**0.5 + eps)`.
        noise: the factor B on Γ as a SymPy matrix (p, r), a number or symbol σ for σI, or `LabelNoise(std)` (std a
            number, a symbol, or one a residual) for residuals.
        manifold: Γ as {parameter: formula} or as a list of functions that vanish on it; None to find it: the zeros of
            residuals or of a sum of squares, else where SymPy solves ∇L = 0 (the first branch that it finds).
        simplify: False to leave formulas as they come.
        progress: a line on stderr before a long simplification; None for only where it is a terminal.

    Returns: `Derivation`.
    Raises: ValueError on bad input, and with the reason where Γ is not found or is no manifold of minimizers of
        constant rank (looked at in random points, with random numbers for all other symbols).

    Example:
        >>> x, y, sx, sy = sympy.symbols("x y sigma_x sigma_y")
        >>> h = sympy.Function("h")
        >>> print(derive(h(y) * x**2 / 2, [x, y], sgd(), sympy.diag(sx, sy)).reduced([y]))
        dy = -1/4 σ_x² (ln h)'(y) dt + σ_y dW
    """
    formula = formula_of(expr, symbols, optimizer, noise)
    optimizer = on_symbols(optimizer, formula.names.inner)
    gamma = manifold_of(formula, manifold, formula.names)
    moments = state_of(formula, optimizer)
    moments = replace(moments, target=tuple(gamma.put(e) for e in moments.target))
    S, metric = named_metric(moments.metric, moments, formula.symbols)
    found, long = coefficients_of(formula, gamma, S)
    time = sympy.Symbol("tau" if "t" in {s.name for s in formula.free_symbols} else "t", positive=True)
    found = _with_settings(found, formula, gamma, optimizer, time)
    if optimizer.quasi_static:
        metric = tuple((s, value.subs(dict(zip(moments.symbols, moments.target, strict=True)))) for s, value in metric)
    free = tuple(f for f in gamma.equations if gamma.put(f) != 0)
    tidy = Tidy(free, formula.symbols, simplify, bool(long))
    if simplify:
        tell_if_long([found.tangential, found.projector, found.diffusion], progress)
    return Derivation(Within(formula, gamma, optimizer, moments, (*metric, *long), found, time, tidy).settled())


def _with_settings(found: Coefficients, formula: Formula, gamma: Manifold, optimizer: AGM, time: Any) -> Coefficients:
    """With a schedule s(t) and weight decay ω: diffusion × s, drift × s², and −s Π ω ζ."""
    pace = sympy.S.One
    if optimizer.schedule is not None:
        try:
            pace = formula.names.inner(sympy.sympify(optimizer.schedule(time)))
        except Exception as error:
            raise ValueError(
                f"schedule cannot be evaluated on a symbol ({error}): write it with SymPy or operators, such as "
                "lambda t: 1 / (1 + t), or pass sympy.Function('s')."
            ) from error
    decay = decay_of(optimizer, formula)
    point = gamma.put(sympy.Matrix(formula.symbols))
    shift = found.projector * sympy.diag(*decay) * point if any(decay) else sympy.zeros(len(decay), 1)
    return Coefficients(
        found.projector,
        found.force,
        pace**2 * found.tangential - pace * shift,
        pace**2 * found.ito,
        pace * found.diffusion,
    )


def decay_of(optimizer: AGM, formula: Formula) -> list[Any]:
    """ω, one for each parameter."""
    leaves = jax.tree.leaves(optimizer.weight_decay)
    if len(leaves) == 1 and np.ndim(leaves[0]) == 0:
        return [leaves[0]] * len(formula.symbols)
    chart = chart_of(formula)
    shapes = [shape for shape in chart.shapes if shape is not None]
    if len(leaves) == len(formula.symbols) and len(shapes) == 1:
        shapes = [()] * len(leaves)
    parts = [np.ravel(np.broadcast_to(np.asarray(w, object), s)) for w, s in zip(leaves, shapes, strict=True)]
    return [formula.names.inner(w) for w in np.concatenate(parts)]


@dataclass(frozen=True, repr=False)
class Derivation(Printed):
    """The slow SDE of a formula. Made by `derive`; matrices are SymPy matrices in the user's symbols and `state`.

    Long formulas have names in them, S_x for an entry of S(v) above all: `compact` and the printed forms keep them,
    `definitions` says what they are, and the properties have them put in.
    """

    within: Within

    @property
    def state(self) -> tuple[Any, ...]:
        """The symbols of v, one for each entry of the optimizer's state; () for SGD and for c = ∞."""
        return self.within.state

    @property
    def equilibrium(self) -> Any:
        """V(Σ), where v relaxes to, one row for each entry of the state."""
        target = self.within.moments.target
        return self._outer(sympy.Matrix(len(target), 1, list(target)))

    @property
    def equations(self) -> tuple[Any, ...]:
        """Functions that vanish on Γ."""
        return tuple(self._outer(f) for f in self.within.manifold.equations)

    @property
    def metric(self) -> Any:
        """S(v) (p, p)."""
        return self._outer(self.within.metric())

    @property
    def projector(self) -> Any:
        """Π (p, p), along S·(normal space) on the tangent space."""
        return self._outer(self.within.coefficients.projector)

    @property
    def drift(self) -> Any:
        """The whole Itô drift (p, 1), the sum of the next two."""
        return self._outer(self.within.drift)

    @property
    def tangential_drift(self) -> Any:
        """−½ Π S T[C], or −(α/4) Π S T[S] for label noise of one std, and weight decay (p, 1)."""
        return self._outer(self.within.coefficients.tangential)

    @property
    def ito_drift(self) -> Any:
        """The part of the drift normal to Γ that keeps a path with noise along Γ on it (p, 1)."""
        return self._outer(self.within.coefficients.ito)

    @property
    def diffusion(self) -> Any:
        """Π S B (p, r); (p, 0) where nothing diffuses (label noise)."""
        return self._outer(self.within.coefficients.diffusion)

    @property
    def v_drift(self) -> Any:
        """c (V(Σ) − v), one row for each symbol of `state`."""
        return self._outer(self.within.v_drift())

    @property
    def definitions(self) -> dict[Any, Any]:
        """What the names in `compact` and in printed formulas stand for, in order: later ones have earlier in them."""
        return {symbol: self._names.outer(value) for symbol, value in self.within.named}

    @property
    def compact(self) -> dict[str, Any]:
        """projector, drift and diffusion with names for what is long."""
        found = self.within.coefficients
        matrices = {"projector": found.projector, "drift": self.within.drift, "diffusion": found.diffusion}
        return {name: self._names.outer(matrix) for name, matrix in matrices.items()}

    def on(self, values: Mapping[Any, Any] | None = None) -> "Derivation":
        """With `values` put in, {symbol or function: number or formula}, and simplified: {x: 0}, {eps: 0}, {v: 1 / u},
        {h(y): sympy.exp(y)}, {phi: sympy.tanh}. Without any, with Γ as SymPy solves it.

        Values of parameters go into the coefficients, all others into loss, noise and optimizer as well.
        ValueError for values of parameters that are not on Γ, and for keys that are neither symbol nor function.
        """
        inner, symbols = self._names.inner, self.within.formula.symbols
        if values is None:
            return Derivation(self.within.put({}, solved_for(self.within.manifold, symbols), {}))
        functions = {key: inner_function(value, inner) for key, value in functions_in(values).items()}
        rest = {key: value for key, value in values.items() if not isinstance(key, (UndefinedFunction, AppliedUndef))}
        for key in rest:
            if not isinstance(key, sympy.Symbol):
                raise ValueError(f"values has the key {key!r}: give symbols, or functions such as h or h(y).")
        put = {inner(key): inner(value) for key, value in rest.items()}
        _check_known(put, functions, self.within)
        points = {key: value for key, value in put.items() if key in symbols}
        return Derivation(self.within.put({k: v for k, v in put.items() if k not in points}, points, functions))

    def reduced(self, coordinates: Any) -> Reduced:
        """The slow SDE in coordinates q of Γ (Itô).

        Args:
            coordinates: parameters, `[y]`, by which SymPy can solve Γ for the others; new symbols with what they are,
                `{w: u**2 - v**2}`, as many as you like; or all parameters by new ones, `{x: cos(phi), y: sin(phi)}`.

        Raises ValueError for coordinates that do not fit Γ.
        """
        return reduced_to(self.within, coordinates)

    def potential(self) -> Potential:
        """F with drift −Π S ∇F along Γ at the equilibrium state v = V(Σ), if there is one; see `Potential`."""
        return potential_of(self.within)

    def lambdify(self) -> Any:
        """(params, v, t) ↦ (drift (p,), diffusion (p, r), v_drift (k,)), NumPy, all of them flat; v in the order of
        `state`. ValueError if symbols without a value are left: put them in with `on`."""
        return self._function

    def evaluate(self, params: Any, v: Any = None, t: Any = None) -> Values:
        """Numbers, in the form of `ss.coefficients`, at params on Γ and state v (None: V(Σ)) at slow time t.

        ValueError if symbols without a value are left, or params is not on Γ.
        """
        return numbers.evaluated(self.within, self._function, params, v, t)

    def as_problem(self) -> AbstractProblem:
        """The loss and its noise as a problem for `simulate` and all else; params as `symbols` were listed."""
        return numbers.problem(self.within.formula)

    def as_optimizer(self) -> AGM:
        """The optimizer, with the values of its symbols put in."""
        return numbers.optimizer(self.within)

    @cached_property
    def _function(self) -> Any:
        return numbers.compiled(self.within)

    @property
    def _names(self) -> Any:
        return self.within.formula.names

    def _outer(self, expr: Any) -> Any:
        return self._names.outer(self.within.expanded(expr))

    def _system(self) -> System:
        return System(
            symbols=tuple(self._names.outer(s) for s in self.within.formula.symbols),
            drift=self.compact["drift"],
            diffusion=self.compact["diffusion"],
            state=self.state,
            v_drift=self._names.outer(self.within.v_drift()),
            definitions=tuple(self.definitions.items()),
            equations=self.equations,
        )


def functions_in(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """{h: z ↦ formula} from the keys h and h(y) of `values`."""
    found = {}
    for key, value in values.items():
        if isinstance(key, UndefinedFunction):
            found[key] = value
        elif isinstance(key, AppliedUndef):
            if not all(arg.is_Symbol for arg in key.args):
                raise ValueError(f"values has the key {key}: give a function of symbols, such as h(y), or h itself.")
            found[key.func] = sympy.Lambda(key.args, sympy.sympify(value))
    return found


def inner_function(function: Any, inner: Any) -> Any:
    return lambda *z: inner(function(*z))


def _check_known(values: Mapping[Any, Any], functions: Mapping[Any, Any], within: Within) -> None:
    known = within.free_symbols
    for key in (*values, *functions):
        if key not in known and key not in within.functions:
            raise ValueError(f"values has {key}, on which nothing here depends; there are {sorted(map(str, known))}.")

"""From formulas to numbers, and back into the library: evaluation, the problem and the optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jaxtyping import PyTree

import manifolds as mf
from manifolds.support.coordinates import Coordinates, ravel

from ..dynamics.coefficients import Coefficients as Values
from ..optimizers.adam import PowerMetric
from ..optimizers.agm import AGM
from ..problems.any_loss import Problem
from ..problems.gaussian_noise import GaussianNoise
from ..problems.label_noise import LabelNoise
from ..problems.least_squares import LeastSquares
from .formula import Formula
from .optimizers import chart_of
from .symbols import functions_of
from .within import Within

OFF = 1e-7  # how far from 0 an equation of Γ may be at a point of it, over the size of what it is made of


def check_numbers(exprs: Any, allowed: Any, names: Any) -> None:
    """ValueError if symbols or functions without a value are left."""
    left = set().union(*(e.free_symbols for e in exprs)) - set(allowed)
    functions = functions_of(exprs)
    if left or functions:
        found = ", ".join(sorted([str(names.outer(s)) for s in left] + [f.__name__ for f in functions]))
        example = (
            str(names.outer(min(left, key=str))) + ": 0.5" if left else f"{next(iter(functions)).__name__}: sympy.tanh"
        )
        raise ValueError(f"{found} have no value: put numbers and functions in first, with .on({{{example}}}).")


def compiled(within: Within) -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(x, v, t) ↦ drift (p,), diffusion (p, r) or (p, 0), v_drift (k,), all flat. What has a name is computed once."""
    found, formula = within.coefficients, within.formula
    arguments = [*formula.symbols, *within.state, within.time]
    named = [symbol for symbol, _ in within.named]
    drift = found.tangential + found.ito
    results = [drift, found.diffusion, within.v_drift()]
    check_numbers([*(v for _, v in within.named), *results], [*arguments, *named], formula.names)
    steps = [
        sympy.lambdify([*arguments, *named[:i]], value, modules=["numpy", "scipy"], cse=True)
        for i, (_, value) in enumerate(within.named)
    ]
    last = sympy.lambdify([*arguments, *named], [list(m) for m in results], modules=["numpy", "scipy"], cse=True)
    shapes = [(len(formula.symbols),), found.diffusion.shape, (len(within.state),)]

    def evaluate(x: Any, v: Any = (), t: Any = np.inf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        numbers = [float(a) for a in (*np.ravel(x), *np.ravel(v), t)]
        if len(numbers) != len(arguments):
            raise ValueError(
                f"params and v have {np.size(x)} and {np.size(v)} entries; there are {len(formula.symbols)} symbols "
                f"and {len(within.state)} of the state."
            )
        for step in steps:
            numbers.append(float(step(*numbers)))
        values = [np.array(part, float).reshape(s) for part, s in zip(last(*numbers), shapes, strict=True)]
        return values[0], values[1], values[2]

    return evaluate


def evaluated(within: Within, function: Any, params: PyTree, v: PyTree, t: Any) -> Values:
    """The coefficients at a point, as pytrees, by the `compiled` function; ValueError if it is not on Γ."""
    chart = chart_of(within.formula)
    x = _flat(params, chart)
    if within.optimizer.schedule is not None and t is None and within.coefficients.tangential.has(within.time):
        raise ValueError("t=None, but the optimizer has a schedule: pass the slow time t at which to evaluate it.")
    check_on(within, x)
    target = _target(within, x)
    state = target if v is None or not within.state else _state(within, v)
    drift, diffusion, v_drift = function(x, state if within.state else (), np.inf if t is None else t)
    return Values(chart.unravel_arrays(drift), diffusion, _in_form(within, v_drift) if within.state else None)


def _flat(params: PyTree, chart: Coordinates) -> np.ndarray:
    leaves = jax.tree.leaves(params)
    x = np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in leaves]) if leaves else np.zeros(0)
    if x.size != chart.size:
        raise ValueError(f"params has {x.size} entries; this formula has {chart.size} symbols.")
    return x


def check_on(within: Within, x: np.ndarray) -> None:
    """ValueError unless every equation of Γ vanishes at x."""
    formula = within.formula
    at = dict(zip(formula.symbols, map(sympy.Float, x), strict=True))
    for f in within.manifold.equations:
        check_numbers([f], formula.symbols, formula.names)
        slope = sum(abs(float(f.diff(s).subs(at))) for s in formula.symbols)
        value = abs(float(f.subs(at)))
        if not value <= OFF * (1 + slope) * (1 + float(np.max(np.abs(x)))):
            raise ValueError(
                f"params is not on Γ: {formula.names.outer(f)} is {value:.3g} there, not 0. Move it there first with "
                "ss.to_manifold(derivation.as_problem(), params)."
            )


def _target(within: Within, x: np.ndarray) -> np.ndarray:
    targets = within.moments.target if within.state else ()
    check_numbers([sympy.Integer(0), *targets], within.formula.symbols, within.formula.names)
    at = dict(zip(within.formula.symbols, map(sympy.Float, x), strict=True))
    return np.array([float(e.subs(at)) for e in targets])


def _state(within: Within, v: PyTree) -> list[float]:
    """The values of the state symbols from a state in the form of V."""
    form, given = jax.tree.leaves(within.moments.leaves), jax.tree.leaves(v)
    if [leaf.shape for leaf in form] != [np.shape(leaf) for leaf in given]:
        raise ValueError(
            f"v has leaves of shape {[np.shape(leaf) for leaf in given]}, but this optimizer's state has "
            f"{[leaf.shape for leaf in form]}. Pass v=None for the equilibrium V(Σ)."
        )
    values = {s: x for a, b in zip(form, given, strict=True) for s, x in zip(np.ravel(a), np.ravel(b), strict=True)}
    return [float(values[s]) for s in within.state]


def _in_form(within: Within, values: np.ndarray) -> PyTree:
    of = dict(zip(within.state, values, strict=True))
    return jax.tree.map(
        lambda leaf: np.array([of[s] for s in np.ravel(leaf)], float).reshape(leaf.shape), within.moments.leaves
    )


def problem(formula: Formula) -> Problem | LeastSquares:
    """The loss with its noise, on params as the symbols were listed."""
    symbols, flat = list(formula.symbols), formula.shapes is None
    check_numbers([formula.loss, *formula.factor, *formula.std], symbols, formula.names)

    def of_params(expr: Any) -> Callable[[PyTree], Any]:
        function = mf.sympy_function(expr, symbols)
        return function if flat else lambda params: function(ravel(params))

    if formula.std:
        residuals = [of_params(r) for r in formula.residuals]
        std = np.array([float(s) for s in formula.std])
        noise = LabelNoise(
            float(std[0]) if np.ptp(std) == 0 else std, None if formula.batch == len(std) else formula.batch
        )

        def predict(params: PyTree, index: Any) -> Any:
            return jnp.stack([r(params) for r in residuals])[index]

        return LeastSquares(predict, np.arange(len(residuals)), np.zeros(len(residuals)), noise)
    if not formula.factor.free_symbols:
        return Problem(of_params(formula.loss), GaussianNoise(np.array(formula.factor.tolist(), float)))
    entries = [of_params(e) for e in formula.factor]

    def factor(params: PyTree) -> Any:
        return jnp.stack([jnp.asarray(e(params)) for e in entries]).reshape(formula.factor.shape)

    return Problem(of_params(formula.loss), GaussianNoise(factor))


def optimizer(within: Within) -> AGM:
    """The optimizer with SymPy numbers as arrays; ValueError if a setting has no value yet."""
    found, names = within.optimizer, within.formula.names

    def one(leaf: Any) -> Any:
        if isinstance(leaf, sympy.Basic):
            check_numbers([leaf], [], names)
            return np.asarray(leaf, float)
        return leaf

    made = jax.tree.map(one, found)
    object.__setattr__(made, "c", float(made.c))
    object.__setattr__(made, "b1", float(made.b1))
    if isinstance(made.S, PowerMetric):
        object.__setattr__(made, "S", PowerMetric(float(one(sympy.sympify(found.S.power))), made.S.eps))
    return made

"""V and S of an optimizer on symbols: its own functions, run on object arrays."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import sympy
from jaxtyping import PyTree

import manifolds as mf
from manifolds.support.coordinates import Coordinates

from ..optimizers.adam import PowerMetric
from ..optimizers.agm import AGM
from ..optimizers.grouped import Grouped
from ..optimizers.shampoo import ShampooMetric
from .formula import Formula
from .symbols import exact

REMEDY = (
    "Write it with operators that work on SymPy too, g * g for V and 1 / (v**0.5 + eps) for S, leaf by leaf "
    "(jax.tree.map), or S as a SymPy matrix."
)


@dataclass(frozen=True)
class State:
    """An optimizer's state as symbols, and the metric made of it.

    Attributes:
        leaves: the state in the form of V, leaves object arrays of symbols; None for a method without one.
        symbols: each of them once.
        target: V(Σ), one expression for each of `symbols`.
        metric: S(v), (p, p).
    """

    leaves: PyTree
    symbols: tuple[Any, ...]
    target: tuple[Any, ...]
    metric: Any


def state_of(formula: Formula, optimizer: AGM) -> State:
    """The state of `optimizer` on the parameters and the noise of a formula; ValueError where it has no formula."""
    if isinstance(optimizer, Grouped):
        raise ValueError(
            "optimizer is a group of optimizers, which has no formula here: pass one AGM, such as ss.AGM(V, S, c) with "
            "an S of different ε, or use ss.coefficients for numbers."
        )
    chart = chart_of(formula)
    if isinstance(optimizer.S, ShampooMetric):
        _check_small(chart)
    g = np.array([sympy.Dummy(f"g_{s.name}", real=True) for s in formula.symbols], object)
    form = _increment(optimizer, chart, g)
    leaves, treedef = jax.tree.flatten(form)
    named = _named([np.asarray(leaf, object) for leaf in leaves], formula, g)
    state = treedef.unflatten(named)
    metric = _metric(optimizer, state, chart) if leaves else _metric(optimizer, None, chart)
    symbols = tuple(dict.fromkeys(s for leaf in named for s in leaf.ravel()))
    totals = [_increment(optimizer, chart, np.array(list(column), object)) for column in _columns(formula.factor)]
    flat = [
        np.concatenate([np.ravel(np.asarray(leaf, object)) for leaf in jax.tree.leaves(t)]) for t in totals if leaves
    ]
    values = dict(zip((s for leaf in named for s in leaf.ravel()), np.sum(flat, axis=0) if leaves else (), strict=True))
    return State(state, symbols, tuple(exact(values[s]) for s in symbols), metric)


def chart_of(formula: Formula) -> Coordinates:
    """The chart of params as a user passes them for these symbols: one vector, or a list of arrays."""
    if formula.shapes is None:
        return Coordinates.of(np.zeros(len(formula.symbols)))
    return Coordinates.of([np.zeros(shape) for shape in formula.shapes])


def on_symbols(optimizer: AGM, inner: Any) -> AGM:
    """`optimizer` with its numbers as exact SymPy numbers and its symbols as those within (the function `inner`)."""

    def one(leaf: Any) -> Any:
        if np.ndim(leaf) or callable(leaf) or isinstance(leaf, (str, bool)):
            return leaf
        return inner(exact(leaf))

    found = jax.tree.map(one, optimizer)
    if isinstance(found.S, PowerMetric):
        object.__setattr__(found, "S", PowerMetric(_half(inner(exact(found.S.power))), found.S.eps))
    return found


def _half(power: Any) -> Any:
    # PowerMetric compares with 0.5; SymPy's ½ equals no float.
    return 0.5 if power == sympy.S.Half else power


def _columns(matrix: Any) -> list[Any]:
    return [matrix[:, j] for j in range(matrix.shape[1])]


def _increment(optimizer: AGM, chart: Coordinates, g: Any) -> PyTree:
    """V(g)."""
    try:
        return optimizer.V(chart.unravel_arrays(g))
    except Exception as error:
        raise ValueError(f"optimizer.V cannot be evaluated on symbols ({error}). {REMEDY}") from error


def _named(leaves: list[np.ndarray], formula: Formula, g: np.ndarray) -> list[np.ndarray]:
    """A symbol for every entry of a state, the same where V has the same: v_x where it is of one parameter's shape."""
    flat = [exact(e) for leaf in leaves for e in leaf.ravel()]
    for e in flat:
        if sympy.expand(e.subs({x: 2 * x for x in g}, simultaneous=True) - 4 * e) != 0:
            raise ValueError(
                f"optimizer.V must be quadratic in the gradient, V(2g) = 4 V(g) (such as g * g); it has {e}."
            )
    names = [s.name.replace("_", "") for s in formula.symbols]
    own = len(flat) == len(g) and all(e.free_symbols == {x} for e, x in zip(flat, g, strict=True))
    labels = iter(names if own else _numbers(flat))
    made: dict[Any, Any] = {}
    taken = {s.name for s in formula.symbols} | {s.name for s in formula.loss.free_symbols}
    for e in flat:
        if e not in made:
            name = f"v_{next(labels)}"
            made[e] = sympy.Symbol(name if name not in taken else f"nu_{name[2:]}", positive=True)
    signs = {e for e in made if not e.is_nonnegative}
    # Off-diagonal entries of Shampoo's factors have any sign.
    made |= {e: sympy.Symbol(made[e].name, real=True) for e in signs}
    entries = iter([made[e] for e in flat])
    return [np.array([next(entries) for _ in range(leaf.size)], object).reshape(leaf.shape) for leaf in leaves]


def _numbers(flat: list[Any]) -> list[str]:
    count = len(set(flat))
    return [str(i + 1) for i in range(count)] if count > 1 else ["1"]


def _metric(optimizer: AGM, state: PyTree, chart: Coordinates) -> Any:
    """S(v) as a matrix."""
    try:
        found = _shampoo(optimizer.S, state) if isinstance(optimizer.S, ShampooMetric) else optimizer.S(state)
        matrix = _matrix(found, chart)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"optimizer.S cannot be evaluated on symbols ({error}). {REMEDY}") from error
    if matrix.shape != (chart.size, chart.size):
        raise ValueError(f"optimizer.S gives a metric of shape {matrix.shape}, but there are {chart.size} parameters.")
    matrix = matrix.applyfunc(exact)
    if any(sympy.simplify(e) != 0 for e in matrix - matrix.T if e != 0):
        raise ValueError("optimizer.S is not symmetric: a metric is symmetric and positive definite.")
    return sympy.ImmutableMatrix(matrix)


def _matrix(found: Any, chart: Coordinates) -> Any:
    if found is None or isinstance(found, mf.Identity):
        return sympy.eye(chart.size)
    if isinstance(found, mf.Diagonal):
        return sympy.diag(*found.diagonal)
    if isinstance(found, sympy.MatrixBase):
        return found if min(found.shape) > 1 or chart.size == 1 else sympy.diag(*found)
    if isinstance(found, np.ndarray) and found.ndim == 2 and chart.shapes != (found.shape,):
        return sympy.Matrix(found.tolist())
    diagonal = chart.expand(jax.tree.map(lambda leaf: np.asarray(leaf, object), found))
    if not (isinstance(diagonal, np.ndarray) and diagonal.shape == (chart.size,)):
        raise ValueError(f"optimizer.S returns {found!r}, which is no metric for {chart.size} symbols. {REMEDY}")
    return sympy.diag(*diagonal)


def _check_small(chart: Coordinates) -> None:
    for shape in chart.shapes:
        if shape is not None and len(shape) > 1 and max(shape) > 2:
            raise ValueError(
                f"Shampoo takes roots of matrices L and R, which have formulas up to 2×2, but a matrix of symbols is "
                f"{'×'.join(map(str, shape))}. Use ss.coefficients for numbers, or a method with a diagonal metric."
            )


def _shampoo(S: ShampooMetric, state: PyTree) -> Any:
    """diag over leaves of ⊗_i (F_i + εI)^{−2q/k}, and Diag((v + ε)^{−2q})."""
    blocks = []
    for leaf in jax.tree.leaves(state, is_leaf=lambda node: type(node) is tuple):
        if isinstance(leaf, tuple):
            powers = [
                _power(sympy.Matrix(f.tolist()) + S.eps * sympy.eye(len(f)), -2 * S.exponent / len(leaf)) for f in leaf
            ]
            blocks.append(sympy.kronecker_product(*powers))
        else:
            blocks += [(entry + S.eps) ** (-2 * S.exponent) for entry in np.ravel(leaf)]
    return sympy.diag(*blocks)


def _power(M: Any, s: Any) -> Any:
    """M^s of a symmetric positive matrix, 1×1 or 2×2, by its eigenvalues."""
    if M.shape == (1, 1):
        return sympy.Matrix([[M[0, 0] ** s]])
    mean, gap = M.trace() / 2, sympy.sqrt((M[0, 0] - M[1, 1]) ** 2 / 4 + M[0, 1] ** 2)
    low, high = (mean - gap) ** s, (mean + gap) ** s
    # f(M) = f(λ₋) + (f(λ₊) − f(λ₋))(M − λ₋)/(λ₊ − λ₋).
    return sympy.eye(2) * low + (M - (mean - gap) * sympy.eye(2)) * (high - low) / (2 * gap)

"""What is asked for, checked: a loss with its noise, as formulas in real symbols."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import sympy

from ..optimizers.agm import AGM
from ..problems.gaussian_noise import GaussianNoise
from ..problems.label_noise import LabelNoise
from .symbols import Names, exact


@dataclass(frozen=True)
class Square:
    """One term ½ w f² of a loss that is a sum of squares: weight w > 0 and f, which vanishes on Γ."""

    weight: Any
    base: Any


@dataclass(frozen=True)
class Formula:
    """A loss and its noise. Everything is in the symbols of `names`, which are known to be real.

    Attributes:
        symbols, shapes: the p parameters, flat; the shapes of the leaves of params, None for one flat vector.
        loss, residuals: L, and the r_i that it is (1/2n) Σ r_i² of, () where it was given as a scalar.
        factor: B on Γ, (p, r).
        scale: α if Σ = αH on Γ (label noise of one std), else None.
        std: the deviations of label noise, one a residual, () for other noise.
        batch: its b.
    """

    names: Names
    symbols: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...] | None
    loss: Any
    residuals: tuple[Any, ...]
    factor: Any
    scale: Any
    std: tuple[Any, ...]
    batch: int | None

    @property
    def jacobian(self) -> Any:
        """∂r/∂θ, (n, p)."""
        return sympy.Matrix(self.residuals).jacobian(self.symbols)

    @property
    def free_symbols(self) -> set[Any]:
        """All symbols in the loss and its noise."""
        return self.loss.free_symbols | self.factor.free_symbols

    def map(self, function: Callable[[Any], Any]) -> "Formula":
        """With `function` of everything but the parameters."""
        return replace(
            self,
            loss=function(self.loss),
            residuals=tuple(map(function, self.residuals)),
            factor=function(self.factor),
            scale=None if self.scale is None else function(self.scale),
            std=tuple(map(function, self.std)),
        )

    @property
    def diffuses(self) -> bool:
        """Whether the noise may have a part along Γ; label noise has none."""
        return not self.std


def formula_of(expr: Any, symbols: Any, optimizer: Any, noise: Any) -> Formula:
    """The request, checked; ValueError names what does not fit."""
    flat, shapes = _flat_symbols(symbols)
    given = _expressions(expr)
    if not isinstance(optimizer, AGM):
        raise ValueError(f"optimizer={optimizer!r} must be an AGM, such as ss.sgd() or ss.adam(c=1.0).")
    settings = _symbols_of(jax.tree.leaves(optimizer), getattr(optimizer.S, "power", None))
    deviations = _symbols_of(jax.tree.leaves(noise.std)) if isinstance(noise, LabelNoise) else set()
    matrix = None if isinstance(noise, LabelNoise) else _noise_matrix(noise, len(flat))
    others = set().union(*(e.free_symbols for e in given), matrix.free_symbols if matrix is not None else set())
    _check_names(flat, others | settings | deviations, given)
    names = Names.of(flat, others, settings | deviations)
    inner = tuple(names.inner(s) for s in flat)
    is_list = not isinstance(expr, sympy.Basic) or isinstance(expr, sympy.MatrixBase)
    residuals = tuple(names.inner(e) for e in given) if is_list else ()
    for i, residual in enumerate(residuals if residuals else (names.inner(given[0]),)):
        _check_real(residual, f"expr[{i}]" if residuals else "expr")
    loss = sum(r**2 for r in residuals) / (2 * len(residuals)) if residuals else names.inner(given[0])
    if matrix is None:
        return _with_label_noise(names, inner, shapes, loss, residuals, noise)
    return Formula(names, inner, shapes, loss, residuals, names.inner(matrix), None, (), None)


def _flat_symbols(symbols: Any) -> tuple[list[Any], tuple[tuple[int, ...], ...] | None]:
    """The symbols, flat, and the shapes of the leaves they come in, None for a flat list."""
    if isinstance(symbols, (str, sympy.Basic)) and not isinstance(symbols, sympy.MatrixBase):
        symbols = [symbols]
    items = list(symbols) if not isinstance(symbols, sympy.MatrixBase) else [symbols]
    leaves = [_leaf(item) for item in items]
    flat = [symbol for leaf in leaves for symbol in np.ravel(leaf)]
    for symbol in flat:
        if not isinstance(symbol, sympy.Symbol):
            raise ValueError(
                f"symbols has {symbol!r}, a {type(symbol).__name__}: list SymPy symbols, such as those of "
                "sympy.symbols('x y'), or matrices of them."
            )
    if not flat or len(set(flat)) != len(flat):
        raise ValueError(f"symbols={symbols} must list at least one symbol, each once.")
    return flat, None if all(leaf.ndim == 0 for leaf in leaves) else tuple(leaf.shape for leaf in leaves)


def _leaf(item: Any) -> np.ndarray:
    if isinstance(item, sympy.MatrixBase):
        found = np.array(item.tolist(), object)
        return found[:, 0] if item.shape[1] == 1 else found
    return np.array(item, object)


def _expressions(expr: Any) -> list[Any]:
    if isinstance(expr, str) or (isinstance(expr, Sequence) and any(isinstance(e, str) for e in expr)):
        # sympify would evaluate the string as Python code.
        raise ValueError(f"expr={expr!r} is a string. Build the SymPy expression from sympy.symbols instead.")
    items: list[Any] = [*expr] if isinstance(expr, (Sequence, np.ndarray, sympy.MatrixBase)) else [expr]
    try:
        found = [sympy.sympify(item) for item in items]
    except (sympy.SympifyError, TypeError) as error:
        raise ValueError(f"expr={expr!r} must be a SymPy expression, or a list of residuals.") from error
    bad = [e for e in found if not isinstance(e, sympy.Expr)]
    if bad or not found:
        raise ValueError(f"expr={expr!r} must be a SymPy expression, or a list of residuals; it has {bad}.")
    return found


def _noise_matrix(noise: Any, p: int) -> Any:
    """B as a (p, r) matrix."""
    if isinstance(noise, GaussianNoise) and not callable(noise.function):
        noise = np.asarray(noise.function)
    if noise is None or isinstance(noise, str) or callable(noise) or type(noise).__module__.startswith("slowsde"):
        raise ValueError(
            f"noise={noise!r} has no formula: pass its factor B as a SymPy matrix (p, r), Σ = B Bᵀ on Γ, a number σ "
            "or symbol for σI, or ss.LabelNoise(std)."
        )
    if not isinstance(noise, sympy.MatrixBase) and np.ndim(noise) == 0:  # pyright: ignore[reportArgumentType]
        return sympy.eye(p) * sympy.sympify(np.asarray(noise).item())
    try:
        found = noise if isinstance(noise, sympy.MatrixBase) else sympy.Matrix(np.asarray(noise).tolist())
    except (TypeError, ValueError) as error:
        raise ValueError(f"noise={noise!r} is no matrix: pass a SymPy matrix (p, r) with p = {p}.") from error
    if found.shape[0] != p:
        raise ValueError(
            f"noise has shape {found.shape}; it must be (p, r) with p = {p}, one row for each of symbols and one "
            "column for each independent noise. Pass noise.T if it has p columns."
        )
    return found


def _symbols_of(leaves: list[Any], *more: Any) -> set[Any]:
    return set().union(*(getattr(leaf, "free_symbols", set()) for leaf in (*leaves, *more)))


def _check_names(listed: list[Any], others: set[Any], given: list[Any]) -> None:
    names = {symbol.name: symbol for symbol in listed}
    for symbol in others - set(listed):
        if symbol.name in names:
            raise ValueError(
                f"symbols lists {symbol.name}, but expr, noise or optimizer has another of that name, with other "
                f"assumptions ({_assumed(names[symbol.name])} and {_assumed(symbol)}): use one and the same object."
            )
    used = set().union(*(e.free_symbols for e in given))
    if not used & set(listed):
        raise ValueError(f"expr={given[0] if len(given) == 1 else given} has none of symbols={listed} in it.")


def _assumed(symbol: Any) -> str:
    known = [name for name, value in symbol._assumptions_orig.items() if value]
    return " ".join(known) if known else "no assumptions"


def _check_real(expr: Any, name: str) -> None:
    imaginary = expr.as_real_imag()[1] if expr.has(sympy.I) else sympy.S.Zero
    if imaginary != 0 or expr.is_real is False:
        raise ValueError(
            f"{name} = {expr} is not real: give real and imaginary part as two residuals (sympy.re, sympy.im)."
        )
    if expr.has(sympy.zoo, sympy.nan, sympy.oo):
        raise ValueError(f"{name} = {expr} is not finite.")


def _with_label_noise(names: Any, symbols: Any, shapes: Any, loss: Any, residuals: Any, noise: LabelNoise) -> Formula:
    n = len(residuals)
    if not n:
        raise ValueError(
            "noise=LabelNoise(...) needs residuals: pass expr as a list [r_1, ..., r_n], whose mean of "
            "squares / 2, or a noise matrix B."
        )
    if noise.std is None:
        raise ValueError("LabelNoise(std=None) does not suit residuals: give std, a number or a symbol.")
    given = np.ravel(np.asarray(noise.std, object))
    if given.size not in (1, n) or len(noise.shape) > 1:
        raise ValueError(
            f"std has shape {noise.shape}, but there are {n} residuals: give one number, or one a residual."
        )
    std = tuple(names.inner(exact(s)) for s in np.broadcast_to(given, n))
    batch = noise.batch_size or n
    rows = sympy.Matrix(residuals).jacobian(symbols)
    # Σ = (1/(nb)) Σ_i J_iᵀ std_i² J_i, which is αH with α = std²/b where all are equal.
    factor = rows.T * sympy.diag(*std) / sympy.sqrt(n * batch)
    scale = std[0] ** 2 / batch if len(set(std)) == 1 else None
    return Formula(names, symbols, shapes, loss, residuals, sympy.ImmutableMatrix(factor), scale, std, batch)

"""Names for what would make formulas long: entries of S, and of K = N S Nᵀ where Γ has two equations or more."""

from typing import Any

import sympy

from .optimizers import State

LONG = 60  # operations in det K from which on it is better read as D

Definitions = tuple[tuple[Any, Any], ...]  # (symbol, value), later ones with earlier symbols in them


def named_metric(metric: Any, moments: State, symbols: tuple[Any, ...]) -> tuple[Any, Definitions]:
    """S with a symbol for each of its entries that depends on the state: S_x on the diagonal, S_{xy} beside it."""
    made: dict[Any, Any] = {}
    labels = [s.name.replace("_", "") for s in symbols]
    shared = len({metric[i, i] for i in range(len(symbols))}) < len(symbols)

    def entry(i: int, j: int) -> Any:
        value = metric[min(i, j), max(i, j)]
        if value.is_number or not value.free_symbols & set(moments.symbols):
            return value
        if value not in made:
            own = str(len(made) + 1) if shared and metric.is_diagonal() else labels[min(i, j)]
            name = f"S_{own}" if i == j else f"S_{labels[min(i, j)]}{labels[max(i, j)]}"
            made[value] = sympy.Symbol(name, positive=True) if i == j else sympy.Symbol(name, real=True)
        return made[value]

    # The diagonal first, so that its entries give the names.
    for i in range(len(symbols)):
        entry(i, i)
    compact = sympy.Matrix(len(symbols), len(symbols), entry)
    return compact, tuple((symbol, value) for value, symbol in made.items())


class Names:
    """Names for the entries of matrices within one derivation, if it is `long`; else everything stays as it is."""

    def __init__(self, long: bool):
        self.long = long
        self.made: list[tuple[Any, Any]] = []

    def matrix(self, letter: str, values: Any, symmetric: bool = False) -> Any:
        """A matrix of symbols X_11, X_12, ... for the entries of `values` that are no atoms."""
        if not self.long:
            return values

        def entry(i: int, j: int) -> Any:
            i, j = (min(i, j), max(i, j)) if symmetric else (i, j)
            value = values[i, j]
            index = f"{i + 1}{j + 1}" if values.shape[1] > 1 else f"{i + 1}"
            return value if value.is_Atom else self.entry(f"{letter}_{index}", value)

        return sympy.Matrix(*values.shape, entry)

    def entry(self, name: str, value: Any) -> Any:
        """The symbol `name` for `value`, the same one if it was named before."""
        if not self.long:
            return value
        symbol = sympy.Symbol(name, real=True)
        if symbol not in dict(self.made):
            self.made.append((symbol, value))
        return symbol

    @property
    def definitions(self) -> Definitions:
        return tuple(self.made)


def is_long(K: Any, weighted: bool) -> bool:
    """Whether formulas with K⁻¹ are better read with names in them; `weighted` ones have Lyapunov's weights besides."""
    # Two equations with noise along Γ: 90 000 operations without names, 300 with them.
    return not K.is_diagonal() and (weighted or sympy.count_ops(K.det(method="berkowitz")) > LONG)


def expanded(expr: Any, definitions: Definitions) -> Any:
    """`expr` with all names put in."""
    for symbol, value in reversed(definitions):
        expr = expr.subs(symbol, value)
    return expr

"""Random points of Γ, with random numbers for every symbol and function that has no value: where claims are checked."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from .symbols import functions_of, with_functions

STARTS, STEPS = 24, 60


@dataclass(frozen=True)
class Numbers:
    """Random values of all symbols but the parameters, and random smooth functions, positive as most in losses are."""

    symbols: tuple[Any, ...]
    values: tuple[tuple[Any, Any], ...]
    functions: tuple[tuple[Any, Any], ...]

    @classmethod
    def drawn(cls, exprs: Iterable[Any], symbols: tuple[Any, ...], rng: np.random.Generator) -> "Numbers":
        exprs = list(exprs)
        others = set().union(*(e.free_symbols for e in exprs)) - set(symbols)
        origins = functions_of(exprs)
        values = {s: _drawn(s, rng) for s in sorted(others, key=lambda s: s.name)}
        functions = {f: _wave(rng) for f in sorted(origins, key=lambda f: f.__name__)}
        return cls(symbols, tuple(values.items()), tuple(functions.items()))

    def function(self, exprs: Any) -> Callable[[np.ndarray], np.ndarray]:
        """x ↦ the matrix `exprs` at parameters x."""
        matrix = sympy.Matrix(exprs)
        numbers = matrix.applyfunc(lambda e: with_functions(e, dict(self.functions)).subs(dict(self.values)))
        compiled = sympy.lambdify([list(self.symbols)], numbers, modules=["numpy", "scipy"], cse=True)
        return lambda x: np.asarray(compiled(x), float)


def _drawn(symbol: Any, rng: np.random.Generator) -> Any:
    value = sympy.Float(rng.uniform(0.6, 1.6))
    return -value if symbol.is_negative else value


def _wave(rng: np.random.Generator) -> Callable[..., Any]:
    a, b, c = (sympy.Float(x) for x in rng.uniform((1.5, 0.6, 0.0), (2.5, 1.4, 3.0)))
    return lambda *z: a + sympy.sin(b * sum((i + 1) * part for i, part in enumerate(z)) + c)


def random_points(
    equations: Any,
    jacobian: Any,
    symbols: tuple[Any, ...],
    numbers: Numbers,
    rng: np.random.Generator,
    count: int = 3,
    starts: int = STARTS,
) -> list[np.ndarray]:
    """Up to `count` points where the equations vanish, by damped Gauss–Newton from random starts."""
    f, J = numbers.function(sympy.Matrix(equations)), numbers.function(jacobian)
    found = []
    for _ in range(starts):
        with np.errstate(all="ignore"):
            x = _descended(f, J, start(symbols, rng))
        if x is not None and _allowed(symbols, x):
            found.append(x)
        if len(found) == count:
            break
    return found


def start(symbols: tuple[Any, ...], rng: np.random.Generator) -> np.ndarray:
    """Random values of the parameters, of the signs that their symbols have."""
    x = rng.normal(size=len(symbols)) + 0.3
    signs = np.array([1 if s.is_nonnegative else -1 if s.is_nonpositive else 0 for s in symbols])
    return np.where(signs == 0, x, signs * (np.abs(x) + 0.1))


def _allowed(symbols: tuple[Any, ...], x: np.ndarray) -> bool:
    return all(
        not (s.is_positive and v <= 1e-6) and not (s.is_negative and v >= -1e-6)
        for s, v in zip(symbols, x, strict=True)
    )


def _descended(f: Any, J: Any, x: np.ndarray) -> np.ndarray | None:
    damping = 1e-2
    value = f(x)[:, 0]
    for _ in range(STEPS):
        if not np.all(np.isfinite(value)):
            return None
        if np.max(np.abs(value)) < 1e-13:
            return x
        jac = J(x)
        gram = jac @ jac.T + damping * np.linalg.norm(value) * np.eye(len(value))
        if not np.all(np.isfinite(gram)):
            return None
        trial = x - jac.T @ np.linalg.lstsq(gram, value, rcond=None)[0]
        new = f(trial)[:, 0]
        if np.all(np.isfinite(new)) and np.linalg.norm(new) < np.linalg.norm(value):
            x, value, damping = trial, new, damping / 10
        else:
            damping = 10 * max(damping, 1e-6)
            if damping > 1e8:
                break
    return x if np.max(np.abs(value)) < 1e-10 else None

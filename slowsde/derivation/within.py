"""The slow SDE of a formula as it is kept within a derivation: real symbols, names for what is long."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import sympy

from ..optimizers.adam import PowerMetric
from ..optimizers.agm import AGM
from .coefficients import Coefficients
from .compact import Definitions, expanded
from .formula import Formula
from .manifold import Manifold
from .optimizers import State
from .symbols import functions_of, with_functions
from .tidy import Tidy

SHORT = 600  # operations up to which the metric of an equilibrium state is put in rather than named


@dataclass(frozen=True)
class Within:
    """Attributes: the request, Γ, the optimizer on symbols, its state, what names stand for (later ones with earlier
    ones in them), the coefficients with these names, the symbol of slow time, and how to simplify."""

    formula: Formula
    manifold: Manifold
    optimizer: AGM
    moments: State
    named: Definitions
    coefficients: Coefficients
    time: Any
    tidy: Tidy

    @property
    def state(self) -> tuple[Any, ...]:
        """The symbols of v; none for c = ∞."""
        return () if self.optimizer.quasi_static else self.moments.symbols

    @property
    def free_symbols(self) -> set[Any]:
        """Every symbol that something here depends on."""
        settings = [leaf for leaf in jax.tree.leaves(self.optimizer) if isinstance(leaf, sympy.Basic)]
        parts = [*vars(self.coefficients).values(), self.moments.metric, *self.moments.target, *settings]
        named = [value for _, value in self.named]
        found = set().union(*(part.free_symbols for part in (*parts, *named)))
        return found | self.formula.free_symbols | set(self.formula.symbols) | {self.time}

    @property
    def functions(self) -> set[Any]:
        """The undefined functions in the loss and its noise."""
        return functions_of((self.formula.loss, *self.formula.factor))

    @property
    def equilibrium(self) -> dict[Any, Any]:
        """{v: V(Σ)}."""
        return dict(zip(self.moments.symbols, self.moments.target, strict=True))

    @cached_property
    def drift(self) -> Any:
        """The whole drift (p, 1)."""
        tangential, ito = self.coefficients.tangential, self.coefficients.ito
        return self.tidy(tangential + ito) if any(ito) else tangential

    def v_drift(self) -> Any:
        """c (V(Σ) − v), over 1 − e^{−ct} with bias correction (k, 1)."""
        c = self.optimizer.c
        rate = c / (1 - sympy.exp(-c * self.time)) if self.optimizer.bias_correction else c
        return sympy.Matrix(len(self.state), 1, [rate * (self.equilibrium[v] - v) for v in self.state])

    def metric(self) -> Any:
        """S(v) (p, p), at v = V(Σ) for c = ∞."""
        values = self.equilibrium if self.optimizer.quasi_static else {}
        return self.moments.metric.subs(values, simultaneous=True)

    def expanded(self, expr: Any) -> Any:
        """`expr` with all names put in."""
        return expanded(expr, self.named)

    def at_equilibrium(self) -> "Within":
        """With v = V(Σ) in the metric."""
        named = tuple((symbol, value.subs(self.equilibrium, simultaneous=True)) for symbol, value in self.named)
        return replace(self, named=named)

    def settled(self) -> "Within":
        """Simplified; with the metric of an equilibrium state put in where it is short."""
        found = self._simplified(self.tidy)
        size = sum(int(sympy.count_ops(value)) for _, value in self.named) * len(self.formula.symbols)
        if self.optimizer.quasi_static and not self.tidy.lightly and size < SHORT:
            put = found.coefficients.map(lambda m: self.expanded(m))
            found = replace(found, coefficients=put, named=())._simplified(self.tidy)
        return found

    def _simplified(self, tidy: Tidy) -> "Within":
        moments = replace(self.moments, target=tuple(tidy(e) for e in self.moments.target))
        # What depends on the state alone is a metric, which is best read as it is written: 1/(√v + 1e-8).
        here = set(self.formula.symbols) | {symbol for symbol, _ in self.named}
        named = tuple((s, tidy(value) if value.free_symbols & here else value) for s, value in self.named)
        return replace(self, coefficients=self.coefficients.map(tidy), moments=moments, named=named)

    def put(
        self, values: Mapping[Any, Any], points: Mapping[Any, Any], functions: Mapping[Any, Callable[[Any], Any]]
    ) -> "Within":
        """With values of parameters (`points`) in the coefficients, and other values and functions everywhere.

        ValueError for values of parameters that are not on Γ.
        """
        everywhere, here = _putting(values, functions), _putting({**values, **points}, functions)
        left = tuple(here(f) for f in self.manifold.equations)
        for f, value in zip(self.manifold.equations, left, strict=True):
            if points and not value.has(*self.formula.symbols) and sympy.simplify(value) != 0:
                raise ValueError(f"values={dict(points)} is not on Γ, where {f} = 0.")
        moments = replace(self.moments, target=tuple(map(here, self.moments.target)), metric=here(self.moments.metric))
        found = Within(
            self.formula.map(everywhere),
            self.manifold.map(everywhere),
            settings_with(self.optimizer, everywhere),
            moments,
            tuple((symbol, here(value)) for symbol, value in self.named),
            self.coefficients.map(here),
            self.time,
            replace(self.tidy, equations=tuple(f for f in left if f.has(*self.formula.symbols))),
        )
        return found.settled()


def _putting(values: Mapping[Any, Any], functions: Mapping[Any, Any]) -> Callable[[Any], Any]:
    def put(expr: Any) -> Any:
        if isinstance(expr, sympy.MatrixBase):
            return sympy.ImmutableMatrix(expr.applyfunc(put))
        return with_functions(expr, functions).subs(values, simultaneous=True)

    return put


def settings_with(optimizer: AGM, function: Callable[[Any], Any]) -> AGM:
    """`optimizer` with `function` of its settings that are SymPy expressions."""

    def one(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, sympy.Basic) else leaf

    found = jax.tree.map(one, optimizer)
    if isinstance(found.S, PowerMetric):
        # A static field, which `tree.map` does not reach.
        object.__setattr__(found, "S", PowerMetric(one(found.S.power), found.S.eps))
    return found

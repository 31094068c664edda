"""A Runge–Kutta method whose every step ends on Γ, for the slow flow without diffusion."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, Int

from .state import SlowState, State, finite_end, scaled_error

RESULTS: Any = dfx.RESULTS  # an Enumeration, which type checkers take for its values
TOO_MANY = 100  # a flow that needs this many more steps at its present step is stiff,
PERSISTENT = 5  # if it does so for this many accepted steps in a row


class ReturningSolver(dfx.AbstractAdaptiveSolver):
    """`solver` with every step returned to Γ; a step from which the return fails is rejected, so that it shrinks.

    The order is that of `solver`: a point within O(h^{q+1}) of Γ moves by as much. Errors are scaled by `rtol`, see
    `scaled_error`. With `end`, the time to reach, a stiff flow ends the solve with `diffrax.RESULTS.stagnation`
    instead of crawling on.
    """

    solver: dfx.AbstractAdaptiveSolver
    slow: SlowState
    rtol: Any
    end: Array | None = None

    @property
    def term_structure(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.interpolation_cls

    def order(self, terms: Any) -> int | None:
        return self.solver.order(terms)

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> tuple[Any, Int[Array, ""]]:
        return self.solver.init(terms, t0, t1, y0, args), jnp.asarray(0)

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return self.solver.func(terms, t0, y0, args)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: Any, made_jump: Any) -> Any:
        inner, crawling = solver_state
        y1, error, dense_info, inner, result = self.solver.step(terms, t0, t1, y0, args, inner, made_jump)
        y1, regular = finite_end(y0, *self.slow.returned(y1))
        if self.end is not None:
            crawling = jnp.where(self.end - t1 > TOO_MANY * (t1 - t0), crawling + 1, 0)
            result = RESULTS.where(crawling > PERSISTENT, RESULTS.stagnation, result)
        return y1, scaled_error(self.slow, error, y0, y1, self.rtol, regular), dense_info, (inner, crawling), result

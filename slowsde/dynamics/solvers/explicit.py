"""A Runge–Kutta method whose every step ends on Γ, for the slow flow without diffusion."""

from typing import Any

import diffrax as dfx

from .state import SlowState, State, finite_end, scaled_error, unbroken


class ReturningSolver(dfx.AbstractAdaptiveSolver):
    """`solver` with every step returned to Γ; a step from which the return fails is rejected, so that it shrinks.

    The order is that of `solver`: a point within O(h^{q+1}) of Γ moves by as much. Errors are scaled by `rtol`, see
    `scaled_error`.
    """

    solver: dfx.AbstractAdaptiveSolver
    slow: SlowState
    rtol: Any

    # Properties where Diffrax has class variables, as they are those of the solver within.
    @property
    def term_structure(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.interpolation_cls

    def order(self, terms: Any) -> int | None:
        return self.solver.order(terms)

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> Any:
        return self.solver.init(terms, t0, t1, y0, args)

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return self.solver.func(terms, t0, y0, args)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: Any, made_jump: Any) -> Any:
        y1, error, dense_info, solver_state, result = self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)
        # Once a step, not in every stage: the end is within O(h^{q+1}) of Γ without.
        end, regular = self.slow.returned(y1)
        y1, regular = finite_end(y0, end, regular & unbroken(y0[0], y1[0], end[0]))
        return y1, scaled_error(self.slow, error, y0, y1, self.rtol, regular), dense_info, solver_state, result

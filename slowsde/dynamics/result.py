"""How a path ended."""

import enum


class Result(enum.IntEnum):
    """How a path ended."""

    SUCCESS = 0
    LEFT_MANIFOLD = 1  # the return to Γ did not converge
    RANK_LOST = 2  # a nonzero eigenvalue of H' became zero
    NON_FINITE = 3
    MAX_STEPS = 4  # too many steps: the flow is too stiff for the solver
    NOT_STATIONARY = 5  # with t1 = inf: max_steps came before the flow was stationary

    def explain(self) -> str:
        """What happened and what to do about it."""
        return {
            Result.SUCCESS: "successful",
            Result.LEFT_MANIFOLD: "the return to the manifold did not converge; use a smaller step (dt or rtol)",
            Result.RANK_LOST: "the rank of the Hessian drops and Γ is singular there, or the step is too long to tell: "
            "try a smaller dt, or a larger eps where v vanishes",
            Result.NON_FINITE: "the state became non-finite; use a smaller step (dt or lr)",
            Result.MAX_STEPS: "max_steps was reached; the flow is stiff there: raise eps or max_steps",
            Result.NOT_STATIONARY: "max_steps was reached and the flow still moves (there may be no stationary point): "
            "raise max_steps, or tol if stats['stillness'] is small enough for you, or give a finite t1",
        }[self]

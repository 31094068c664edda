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
    KINK = 6  # the loss is not twice differentiable there
    ESCAPES = 7  # with t1 = inf: the flow leaves for infinity, so that there is no rest
    DIVERGED = 8  # finite still, but 10¹⁰ times as far out as the start
    INTERRUPTED = 9  # by Ctrl-C
    NO_MANIFOLD = 10  # of many starts: the flow from this one ends at no regular point of Γ

    def explain(self, label: str = "slow") -> str:
        """What happened to a path and what to do about it; `label` is that of its trajectory."""
        if self in OF_LABEL.get(label, {}):
            return OF_LABEL[label][self]
        return {
            Result.SUCCESS: "successful",
            Result.LEFT_MANIFOLD: "the return to the manifold did not converge; use a smaller step (dt or rtol). If it "
            "ends there whatever the step, the loss jumps there or is not defined beyond (jnp.where, log, sqrt, a "
            "division, a sort or a round in the model): mend it, or end the run before",
            Result.RANK_LOST: "the rank of the Hessian drops and Γ is singular there, or the step is too long to tell: "
            "try a smaller dt, or a larger eps where v vanishes",
            Result.NON_FINITE: "the state became non-finite; use a smaller step (dt or lr). If it does so whatever the "
            "step, the loss is not defined beyond (log, sqrt, a division in the model): mend it, or end the run before",
            Result.MAX_STEPS: "max_steps was reached; the flow is stiff there: raise eps or max_steps",
            Result.KINK: "the loss has a kink there (as of relu, abs or a maximum) or a jump (jnp.where, round) and is "
            "not twice differentiable; use a smooth activation (gelu, softplus(βx)/β), or start elsewhere",
            Result.NOT_STATIONARY: "the flow still moves (see stats['stillness']) after max_steps, or after 1000 "
            "steps of the search for its rest: raise max_steps, or tol if that is still enough, or give a finite t1",
            Result.DIVERGED: "the path ran away, to 1e10 times the size of its start or more; use a smaller step or lr",
            Result.NO_MANIFOLD: "the start leads to no manifold of minimizers; stats['messages'] says why",
            Result.INTERRUPTED: "Ctrl-C was pressed; with checkpoint=... the same call goes on from there",
            Result.ESCAPES: "the flow does not come to rest: it leaves for infinity, along stats['leaving'], or slows "
            "down without an end; give a finite t1, or weight_decay",
        }[self]


# A discrete run has no solver: what can be chosen is the learning rate, and whether its iterates are returned to Γ.
DISCRETE = {
    Result.LEFT_MANIFOLD: "the flow from a saved iterate did not end at a minimizer, so that it has no limit on Γ; use "
    "project=False to keep the iterates as they are, or a smaller lr to keep them near Γ",
    Result.NON_FINITE: "the iterates became non-finite, as beyond the edge of stability; use a smaller lr",
}
BACKWARD = {
    Result.NON_FINITE: "the flow leaves the domain of the loss, or runs away: the loss or its gradient is not finite "
    "there; start elsewhere, or use a smaller lr or t1",
    Result.DIVERGED: "the flow ran away, to 1e10 times the size of its start or more: the loss is unbounded along it, "
    "or lr beyond the edge of stability",
    Result.MAX_STEPS: "the flow is too stiff within one step of lr for an expansion in lr; use a smaller lr, or raise "
    "eps",
}
OF_LABEL = {"discrete": DISCRETE, "backward error": BACKWARD}

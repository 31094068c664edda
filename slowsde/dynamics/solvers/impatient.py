"""Adaptive steps that give up where they do not get on."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .wrapped import AbstractWrappedController

PATIENCE = 100  # rejected steps beyond those accepted; smooth flows reject fewer than they accept
ENDLESS = np.iinfo(np.int32).max


class ImpatientController(AbstractWrappedController):
    """`controller` that ends the solve, with `max_steps_rejected`, once rejected steps outnumber accepted ones.

    A flow that meets a kink of its loss slides along it from side to side, two of three steps rejected, for ever.
    The count of rejected less accepted steps starts anew wherever it falls to 0; it ends the solve beyond `patience`.
    """

    patience: Array

    def __init__(self, controller: Any, patience: Array):
        self.controller, self.patience = controller, patience

    def wrap(self, direction: Any) -> "ImpatientController":
        return ImpatientController(self.controller.wrap(direction), self.patience)

    def init(self, *args: Any) -> Any:
        t1, state = self.controller.init(*args)
        return t1, (state, jnp.zeros((), int))

    def adapt_step_size(self, *args: Any) -> Any:
        *rest, (state, excess) = args
        keep, t0, t1, jump, state, result = self.controller.adapt_step_size(*rest, state)
        excess = jnp.where(keep, jnp.maximum(excess - 1, 0), excess + 1)
        ended = (excess > self.patience) & (result == dfx.RESULTS.successful)
        result = dfx.RESULTS.where(ended, dfx.RESULTS.max_steps_rejected, result)
        return keep, t0, t1, jump, (state, excess), result

"""Adaptive steps that end on given times."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .wrapped import AbstractWrappedController


class LandingController(AbstractWrappedController):
    """`controller` with its steps shortened so that a whole number of them ends on each of the ascending `times`.

        h ← (T − t)/⌈(T − t)/h⌉     for the next time T

    Cutting only the last step before T would leave a sliver, from which the step size takes long to recover, or one
    below rounding, which looks like a failure.
    """

    times: Float[Array, " T"]

    def __init__(self, controller: Any, times: Float[Array, " T"]):
        self.controller, self.times = controller, times

    def wrap(self, direction: Any) -> "LandingController":
        return self  # slow time runs forward

    def init(self, terms: Any, t0: Any, *args: Any) -> Any:
        t1, state = self.controller.init(terms, t0, *args)
        return self.land(t0, t1), state

    def adapt_step_size(self, *args: Any) -> Any:
        keep, t0, t1, *rest = self.controller.adapt_step_size(*args)
        return keep, t0, self.land(t0, t1), *rest

    def land(self, t0: Any, t1: Any) -> Array:
        """The end of the next step from t0, for which the controller proposes t1."""
        # Clipping the last step instead left steps of 1e-17, which ended runs.
        following = jnp.searchsorted(self.times, t0, side="right")
        target = jnp.append(self.times, jnp.inf)[following]
        count = jnp.ceil((target - t0) / (t1 - t0) - 0.01)  # one per cent longer is no harm
        landed = jnp.where(count > 1, t0 + (target - t0) / count, target)
        return jnp.where(jnp.isfinite(target), landed, t1)

"""The conventional SDE with its momentum m as a state: what follows the first 1/(1−β1) steps of an optimizer as well.

In slow time t = kη², with κ = (1−β1)/η² the rate at which m forgets,

    dθ = −(1/η) s S(v) m dt − s ω θ dt,     dm = κ ((∇L − m) dt + η B dW),     dv = c (V(Σ + ∇L ∇Lᵀ) − v) dt

(Malladi, Lyu, Panigrahi and Arora 2022, who keep κ fixed as η → 0). With bias correction m is m/(1−e^{−κt}), which
relaxes at the rate κ/(1−e^{−κt}) and starts at ∇L, as the corrected v starts at V(Σ).

A step of any scheme here draws one gradient g = ∇L + (η/h) B ΔW, as the optimizer does, and m ← m + (1−e^{−κh})(g − m),
which is exact for the mean of m at any κh, so that m is never stiff; v relaxes exactly as well.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from manifolds.support.compilation import compiled_once

from .conventional import Conventional
from .slow_sde import SlowSDE
from .solvers.euler import AbstractEulerMaruyama

Vector = Float[Array, " p"]
State = tuple[Vector, PyTree, Vector]  # (θ, v, m)


class Momentum(eqx.Module):
    """The conventional SDE for (θ, v, m)."""

    model: Conventional

    @property
    def rate(self) -> Array:
        """κ = (1−β1)/η²."""
        return (1 - self.model.sde.optimizer.b1) / self.model.lr**2

    def drawn(self, x: Vector, h: Any, dW: Vector) -> Vector:
        """∇L + (η/h) B ΔW, the mean over a step of the gradients that m sees."""
        # Not the exact variance of m, κη²/2, but that of its integral: θ diffuses exactly, at any κh. With the other
        # the variance of θ is (κh)²/12 too large, and grows without bound as β1 → 0, where m = g and this is right.
        return self.model.sde.loss.gradient(x) + self.model.lr / h * (self.model.sde.factor(x) @ dW)

    def renewed(self, m: Vector, g: Vector, t: Any, h: Any) -> Vector:
        """m at t + h from m at t while its target is g."""
        share = -jnp.expm1(-self.rate * h)
        if self.model.sde.optimizer.bias_correction:
            share = share / -jnp.expm1(-self.rate * (t + h))
        return m + share * (g - m)

    def moved(self, state: State, t: Any, h: Any) -> Vector:
        """θ after h with v and m held still."""
        x, v, m = state
        optimizer, pace = self.model.sde.optimizer, self.model.sde.optimizer.pace(t)
        move = pace * h / self.model.lr * self.model.sde.metric(v)(m)
        if not optimizer.decays:
            return x - move
        kept = jnp.exp(-0.5 * pace * h * optimizer.decay(self.model.sde.chart))
        return kept * (kept * x - move)  # half of it before and after, or order 2 is lost


def no_momentum(sde: SlowSDE, x: Vector, t0: float) -> Vector:
    """m at the start of a run that has seen no gradient: 0, or ∇L where m is corrected for that."""
    return _gradient(sde, x) if sde.optimizer.bias_correction and t0 == 0 else jnp.zeros_like(x)


@compiled_once
def _gradient(sde: SlowSDE, x: Vector) -> Vector:
    return sde.loss.gradient(x)


def split_step(model: Momentum, t: Any, h: Any, dW: Vector, state: State) -> State:
    """Strang's splitting: θ by half a step, m and v exactly at that θ, θ by the other half. Order 2, one gradient.

    The stationary second moment of θ in a quadratic is exact at every step that is stable.
    """
    x, v, m = state
    x = model.moved(state, t, 0.5 * h)
    v = model.model.sde.optimizer.relaxed(v, model.model.target(x), t, h)
    m = model.renewed(m, model.drawn(x, h, dW), t, h)
    return model.moved((x, v, m), t + h, 0.5 * h), v, m


def heun_step(model: Momentum, t: Any, h: Any, dW: Vector, state: State) -> State:
    """The mean of the velocities and of the targets of m and v at both ends. Order 2, two gradients."""
    x, v, m = state
    relaxed = model.model.sde.optimizer.relaxed
    g, target = model.drawn(x, h, dW), model.model.target(x)
    x1 = model.moved(state, t, h)
    # The noise at the start of the step only: averaged over both ends it would be Stratonovich's integral.
    change = model.model.sde.loss.gradient(x1) - model.model.sde.loss.gradient(x)
    m1 = model.renewed(m, g + 0.5 * change, t, h)
    v1 = relaxed(v, jax.tree.map(lambda a, b: 0.5 * (a + b), target, model.model.target(x1)), t, h)
    return 0.5 * (x1 + model.moved((x, v1, m1), t + h, h)), v1, m1


def euler_step(model: Momentum, t: Any, h: Any, dW: Vector, state: State) -> State:
    """m ← m + κh (g − m), then v, then θ: with h = η² the step of the optimizer itself. Order 1, one gradient."""
    x, v, m = state
    kept = 1 - model.rate * h  # β1 for h = η²
    share = model.rate * h
    if model.model.sde.optimizer.bias_correction:
        share = share / (1 - kept ** ((t + h) / h))
    m = m + share * (model.drawn(x, h, dW) - m)
    v = model.model.sde.optimizer.relaxed(v, model.model.target(x), t, h)
    return model.moved((x, v, m), t, h), v, m


SCHEMES: dict[str, Callable[[Momentum, Any, Any, Vector, State], State]] = {
    "splitting": split_step,
    "heun": heun_step,
    "euler": euler_step,
}


class MomentumSteps(AbstractEulerMaruyama):
    """Steps of one of the `SCHEMES`."""

    model: Momentum
    scheme: str = eqx.field(static=True)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: None, made_jump: Any) -> Any:
        time, noise = terms.terms
        y1 = SCHEMES[self.scheme](self.model, t0, time.contr(t0, t1), noise.contr(t0, t1), y0)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

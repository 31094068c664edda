"""An implicit step for stiff slow flows: linearly implicit Euler on Γ, extrapolated in the step size.

Under label noise adaptive methods drive coordinates to zero, so that S_i → 1/ε there and the flow relaxes at rates of
order αS². With S frozen it is the gradient flow, in the metric S⁻¹, of (α/4)⟨H(ζ), S⟩ on Γ, and one step of implicit
Euler minimizes ½h⁻¹‖ζ − ζ_k‖²_{S⁻¹} + (α/4)⟨H(ζ), S⟩ on Γ. Linearized, with a model G of the second derivative of
the last term (diagonal, or coupling parameters, see `SlowSDE.damped_constraints`), that is a step of the explicit flow
in the damped metric P = (S⁻¹ + hG)⁻¹:

    ζ* = ζ_k − h (α/4) Π_P P T[S],      ζ_{k+1} = return of ζ* to Γ in the metric P.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.normal.constraints import LOOSE

from .state import SlowState, State, finite_end, scaled_error, unbroken


class ExtrapolatedImplicit(dfx.AbstractAdaptiveSolver):
    """Aitken–Neville extrapolation of linearly implicit Euler over 1, 2, ..., `stages` substeps: order `stages`.

    The substeps freeze S(v) at the state v relaxed over the substep (exactly, so a large c costs nothing). The error
    estimate is the difference of the last two extrapolants, scaled by `rtol` (see `scaled_error`). (Hairer and
    Wanner II, IV.9, for the method without a manifold.)
    """

    slow: SlowState
    rtol: Any
    stages: int = eqx.field(static=True, default=4)
    coupled: bool = eqx.field(static=True, default=False)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        return self.stages

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> Any:
        h = t1 - t0
        return self.slow.sde.nearby(y0[0], self.middle_metric(y0, t0, h), t0, h / 2, self.coupled)

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return terms.vf(t0, y0, args)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: Any, made_jump: Any) -> Any:
        h = t1 - t0
        middle = self.middle_metric(y0, t0, h)
        frame = self.slow.sde.implicit_frame(y0[0], middle, t0, h / 2, near=solver_state, coupled=self.coupled)

        def refined(n: Array) -> State:
            return jax.lax.fori_loop(0, n, lambda k, state: self.euler(state, t0 + k * h / n, h / n, frame), y0)

        substeps = jax.lax.map(refined, jnp.arange(1, self.stages + 1))  # one loop, so compiled once
        # Where v is positive at every end: entries of a matrix, as of Shampoo's states, may have any sign.
        positive = jax.tree.map(lambda leaf: jnp.all(leaf > 0, axis=0), substeps[1])
        ends = to_logarithms(substeps, positive)
        weights = self.extrapolations()
        best, previous = (jax.tree.map(lambda leaf, w=w: jnp.tensordot(w, leaf, 1), ends) for w in weights)
        # A coordinate that is being driven to zero within the step has no expansion in its length. The error is still
        # that of the plain extrapolants: one that crosses zero is not to be held there.
        plain = ends[0][0]
        vanishing = (jnp.abs(plain) < 0.5 * jnp.abs(y0[0])) & (jnp.abs(best[0] - previous[0]) > 0.1 * jnp.abs(plain))
        best = jnp.where(vanishing, arriving(ends[0], weights[0]), best[0]), best[1]
        end, regular, near = self.returned(from_logarithms(best, positive), frame)
        y1, regular = finite_end(y0, end, regular)
        regular &= self.falls(y0, jax.tree.map(lambda leaf: leaf[0], substeps), t0, h)
        error = jax.tree.map(jnp.subtract, y1, from_logarithms(previous, positive))
        error = scaled_error(self.slow, error, y0, y1, self.rtol, regular)
        return y1, error, {"y0": y0, "y1": y1}, near, dfx.RESULTS.successful

    def extrapolations(self) -> Float[np.ndarray, "2 stages"]:
        """Weights of the ends after 1, 2, ... substeps in the extrapolants of the two highest orders, the last first.

        That over the substeps n of a set has Π_{m≠n} n/(n − m) for the end after n of them (Aitken and Neville).
        """
        every = np.arange(1.0, self.stages + 1)
        weights = np.zeros((2, self.stages))
        for k, some in enumerate((every, every[1:])):
            for n in some:
                weights[k, int(n) - 1] = np.prod([n / (n - m) for m in some if m != n])
        return weights

    def middle_metric(self, state: State, t: Array, h: Array) -> mf.AbstractMetric:
        """S(v) in the middle of a step of length h."""
        return self.slow.sde.metric(self.slow.v(self.relaxed(state, t, h / 2)))

    def relaxed(self, state: State, t: Array, h: Array) -> State:
        """The state with v at t + h if ζ stays."""
        x, v = state
        return x, None if v is None else self.slow.sde.relaxed(x, v, t, h)

    def plain_step(self, state: State, t: Array, h: Array) -> tuple[State, Array]:
        """One step of linearly implicit Euler that ends on Γ, and whether it is one that lowers what it must."""
        metric = self.slow.sde.metric(self.slow.v(self.relaxed(state, t, h)))
        if self.coupled:
            frame, near = self.slow.sde.newton_frame(state[0], metric, t), None
        else:
            near = self.slow.sde.nearby(state[0], metric, t, h)
            frame = self.slow.sde.implicit_frame(state[0], metric, t, h, near=near)
        end, regular = finite_end(state, *self.returned(self.euler(state, t, h, frame), frame)[:2])
        return end, regular & self.falls(state, end, t, h)

    def returned(self, state: State, frame: Any) -> tuple[State, Array, Any]:
        """The end of a step on Γ, whether it is a regular point, and what preconditions from there on."""
        if frame.near is None:
            return *self.slow.returned(state), None
        # In the metric of which there is a kernel: another would ask for one of its own, and a way of the order of the
        # step's own error may be taken in either.
        near = self.slow.sde.loss.renewed(frame.near, state[0], frame.metric, 1.0, 0.0)
        return *self.slow.returned(state, near, frame.metric), near

    def falls(self, start: State, end: State, t: Array, h: Array) -> Array:
        """Whether one substep over the whole length does what an implicit step must: lower ¼α⟨H, S⟩ at the S that it
        holds fixed. One that climbs is damped too little, and its extrapolation means nothing."""
        sde, metric = self.slow.sde, self.slow.sde.metric(self.slow.v(self.relaxed(start, t, h)))
        before, after = jax.lax.map(lambda x: sde.sharpness(x, metric, t + h), jnp.stack([start[0], end[0]]))
        return after <= before * (1 + self.rtol)

    def euler(self, state: State, t: Array, h: Array, frame: Any) -> State:
        """One substep of linearly implicit Euler from t to t + h. It ends off Γ by O(h³), one Newton step with the
        Jacobian of its start; whole steps end on Γ to rounding."""
        sde = self.slow.sde
        x, v = self.relaxed(state, t, h)
        metric = sde.metric(self.slow.v((x, v)))
        normal = sde.damped_constraints(x, metric, t + h, h, frame)
        gradient = sde.sharpness_gradient(x, metric, t + h)
        moved = x - h * normal.project_gradient(gradient, LOOSE)  # what is left of its normal part the return removes
        end = moved - sde.loss.newton_step(moved, normal)
        # NaN is no end, so that the step is taken again, shorter.
        return jnp.where(unbroken(x, moved, end), end, jnp.nan), v


def arriving(ends: Float[Array, "stages p"], weights: Float[np.ndarray, " stages"]) -> Float[Array, " p"]:
    """The extrapolant of coordinates on their way to zero, from the `ends` after 1, 2, ... substeps.

    Where S ∝ 1/|ζ_i| it is ζ_i² that falls at a steady pace, ζ_i ∝ √(T − t): squares are extrapolated, no further than
    from the last end to zero.
    """
    last = ends[-1] * jnp.abs(ends[-1])
    square = jnp.tensordot(weights, ends * jnp.abs(ends), 1)
    square = jnp.clip(square, jnp.minimum(0, last), jnp.maximum(0, last))
    return jnp.sign(square) * jnp.sqrt(jnp.abs(square))


def to_logarithms(state: State, positive: PyTree) -> State:
    """(ζ, log v) where v is positive: it spans decades, and extrapolation must keep it positive."""

    def to(leaf: Array, is_so: Array) -> Array:
        return jnp.where(is_so, jnp.log(jnp.where(is_so, leaf, 1)), leaf)

    return state[0], jax.tree.map(to, state[1], positive)


def from_logarithms(state: State, positive: PyTree) -> State:
    """(ζ, v) back from (ζ, log v)."""
    return state[0], jax.tree.map(lambda leaf, is_so: jnp.where(is_so, jnp.exp(leaf), leaf), state[1], positive)

"""One step of the slow SDE that ends on Γ."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp

from manifolds.maps.return_map import gauss_newton_return

from .state import SlowState, State, unbroken

LONGEST = 3.0  # how many times as long as a step its return may be
RESULTS: Any = dfx.RESULTS  # an Enumeration, which type checkers take for its values


class StepEnds(dfx.AbstractLocalInterpolation):
    """The end of the step nearer to a time, exactly: between the ends a linear interpolant would leave Γ."""

    t0: Any
    t1: Any
    y0: State
    y1: State

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> State:
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        late = t0 - self.t0 > self.t1 - t0
        return jax.tree.map(lambda a, b: jnp.where(late, b, a), self.y0, self.y1)


class AbstractEulerMaruyama(dfx.AbstractItoSolver):
    """What one-step methods of weak order 1 and strong order ½ have in common: all but the step."""

    # Subclassed directly: Diffrax sees through one wrapper only, so that a wrapped solver slips past its test for Itô.
    term_structure: ClassVar = dfx.MultiTerm[tuple[dfx.ODETerm, dfx.ControlTerm]]
    interpolation_cls: ClassVar[Callable[..., StepEnds]] = StepEnds

    def order(self, terms: Any) -> int:
        return 1

    def strong_order(self, terms: Any) -> float:
        return 0.5

    def init(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any) -> None:
        return None

    def func(self, terms: Any, t0: Any, y0: State, args: Any) -> State:
        return terms.terms[0].vf(t0, y0, args)


class ManifoldEuler(AbstractEulerMaruyama):
    """Tangential Euler–Maruyama with the return to Γ: weak order 1, strong order ½ for the slow SDE (Itô).

        x* = ζ − ½ Π S T[C] h + Π S B ΔW,     ζ₊ = return of x* in the metric S,     v₊ = V(Σ) + (v − V(Σ)) e^{−ch}

    The return has the second derivative of Φ_S along Γ, so it adds the normal drift −½ S^½(H')⁺S^½ T[Σ_∥] h by itself;
    the frozen-ζ equation for v is solved exactly, so that a large c does not limit the step.

    A step along which the root of the last eigenvalue of H', continued linearly, would vanish ends with
    `dt_min_reached`. The root, a singular value of J S^½ for least squares, passes zero with a slope where the rank is
    lost; the eigenvalue itself only touches it, and its continuation would also refuse steps far from there.
    """

    slow: SlowState

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: None, made_jump: Any) -> Any:
        time, noise = terms.terms
        h, dW = time.contr(t0, t1), noise.contr(t0, t1)
        sde = self.slow.sde
        x, v = y0
        normal = sde.normal_space(x, self.slow.v(y0))
        # −½ Π S T[C] h + Π S B ΔW. No Itô term: the return below has the second derivative of Φ_S on tangent vectors,
        # and E of it on the projected noise is that term. Adding it here would count it twice.
        move = h * sde.tangential_drift(x, normal, t0) + sde.diffusion(x, normal, t0) @ dW
        x_star = x + move
        # In the metric of the step. A Euclidean return is biased as soon as S ≠ I: on the ellipse its D²[t,t] is (−.61,
        # −1.02) in the place of (−.19, −1.27).
        found = gauss_newton_return(sde.loss, x_star, normal.metric, sde.rank)
        regular = found.converged & (found.smallest > self.slow.floor) & jnp.all(jnp.isfinite(found.point))
        # Fixed steps may be coarse: only what no curvature makes is refused.
        regular &= unbroken(x, x_star, found.point, LONGEST)
        if v is not None:
            # At the ζ of the start, as Itô has it.
            v = sde.relaxed(x, v, t0, h)
        y1 = (found.point, v)
        result = RESULTS.where(regular, RESULTS.successful, RESULTS.nonlinear_divergence)
        # A step of fixed length may jump over the point where the rank is lost: does √λ + d√λ reach zero?
        # Before this test paths ran on from a random point on the other side.
        rank = normal.rank if sde.rank is None else sde.rank
        last = jnp.maximum(rank, 1) - 1
        # S^½q of the last true eigenvalue: dλ = ∇³L[S^½q, S^½q, dζ], and √λ + dλ/(2√λ) > 0 is λ + ½dλ > 0.
        axis = normal.metric.sqrt(normal.lift(jax.nn.one_hot(last, normal.values.shape[0], dtype=x.dtype)[:, None]))
        # `move` is tangent: what a least-squares loss leaves out of the contraction is normal, and drops out.
        slope = sde.loss.contract_factors(x, axis, axis) @ move
        result = RESULTS.where(normal.values[last] + 0.5 * slope > 0, result, RESULTS.dt_min_reached)
        return y1, None, {"y0": y0, "y1": y1}, None, result

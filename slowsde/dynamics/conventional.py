"""The conventional SDE of an optimizer: the diffusion that follows its iterates step by step, near a manifold or not.

In slow time t = kη², so that one step of the optimizer takes dt = η²,

    dθ = −(1/η) s S(v) ∇L dt + s S(v) B dW − s ω θ dt,     dv = c (V(Σ + ∇L ∇Lᵀ) − v) dt,     Σ = B Bᵀ :

over η² the mean and the covariance of a step −ηS(v)g, g of mean ∇L and covariance Σ, to leading order, and
E V(g gᵀ) = V(Σ) + V(∇L ∇Lᵀ). Li, Tai and E (2017) have it for SGD, dX = −∇L dτ + √η Σ^½ dW in τ = kη = t/η; Malladi,
Lyu, Panigrahi and Arora (2022) for RMSProp and Adam. They keep V(Σ) alone, as their noise outweighs the gradient;
V(∇L ∇Lᵀ) is what v sees besides far from Γ, and is O(η) near it. Momentum drops out at leading order if its memory of
1/(1−β1) steps is short against the 1/(η λ_max(H')) steps in which ∇L changes; in `conventional_momentum` it is a state.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..support.pieces import Pieces
from .ensemble import block_size
from .marching import Marched, march_paths, stepped
from .slow_sde import SlowSDE
from .solvers.brownian import drawn
from .solvers.euler import AbstractEulerMaruyama

State = tuple[Float[Array, " p"], PyTree]  # (θ, v)


class Conventional(eqx.Module):
    """The coefficients of the conventional SDE at learning rate η."""

    sde: SlowSDE
    lr: Array
    sees_gradient: bool = eqx.field(static=True, default=True)  # whether v has the term V(∇L ∇Lᵀ)

    def drift(self, t: Any, state: State) -> Float[Array, " p"]:
        """−(1/η) s S(v) ∇L − s ω θ."""
        x, v = state
        optimizer = self.sde.optimizer
        # 1/η, as a step moves by η S∇L and takes dt = η².
        drift = -self.sde.metric(v)(self.sde.loss.gradient(x)) / self.lr
        return optimizer.pace(t) * (drift - optimizer.decay(self.sde.chart) * x if optimizer.decays else drift)

    def diffusion(self, t: Any, state: State) -> Float[Array, "p r"]:
        """s S(v) B."""
        x, v = state
        return self.sde.optimizer.pace(t) * self.sde.metric(v)(self.sde.factor(x))

    def target(self, x: Float[Array, " p"]) -> PyTree:
        """V(Σ + ∇L ∇Lᵀ), where v relaxes to, or V(Σ)."""
        if not self.sees_gradient:
            return self.sde.equilibrium(x)
        # ∇L is one more column of the factor of Σ + ∇L∇Lᵀ.
        columns = jnp.concatenate([self.sde.factor(x), self.sde.loss.gradient(x)[:, None]], axis=1)
        return self.sde.optimizer.state_of_factor(columns, self.sde.chart)


class DriftHeun(AbstractEulerMaruyama):
    """Euler–Maruyama with the mean of the drift over the step: an Itô method, of order 2 where the noise is small.

        θ* = θ + f h + g ΔW,      θ₊ = θ + ½(f + f*) h + g ΔW,      f = f(θ, v),  g = g(θ, v),  f* = f(θ*, v*)

    The noise of the SDE is O(√η) in time τ = kη, in which a step is O(η): the weak error is O(η²) over τ = O(1). v
    relaxes exactly to its target at θ for v*, and to the mean of its targets at θ and θ* for v₊. With
    `corrected` = False, Euler–Maruyama: θ₊ = θ*, v₊ = v*.
    """

    model: Conventional
    corrected: bool = eqx.field(static=True)

    def step(self, terms: Any, t0: Any, t1: Any, y0: State, args: Any, solver_state: None, made_jump: Any) -> Any:
        time, noise = terms.terms
        h, dW = time.contr(t0, t1), noise.contr(t0, t1)
        model, (x, v) = self.model, y0
        relaxed = model.sde.optimizer.relaxed
        # g at the start of the step only: averaged over both ends it would be Stratonovich's integral.
        shake, f, target = model.diffusion(t0, y0) @ dW, model.drift(t0, y0), model.target(x)
        y1 = x + h * f + shake, relaxed(v, target, t0, h)
        if self.corrected:
            # Stationary second moments depend on the scheme at coarse steps: on a quadratic with η² = .125 Heun was
            # 26 % low where Euler was 2 % off.
            mean = jax.tree.map(lambda a, b: 0.5 * (a + b), target, model.target(y1[0]))
            y1 = x + 0.5 * h * (f + model.drift(t1, y1)) + shake, relaxed(v, mean, t0, h)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


def conventional_paths(
    solver: AbstractEulerMaruyama,
    model: Conventional,
    state0: Any,
    key: PRNGKeyArray,
    times: np.ndarray,
    grid: np.ndarray,
    dt: float,
    *,
    paths: int,
    pieces: Pieces,
    cells: np.ndarray | None = None,
) -> Marched:
    """Position and optimizer state of `paths` paths at the saved times, knots of a grid of nominal step dt, with the
    noise of `cells`, see `noise_cells`, or of the steps themselves.

    state0 is (θ, v) and whatever else the solver steps.
    """
    x0, stops = state0[0], np.searchsorted(grid, times)
    states = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (paths, *leaf.shape)), state0)
    shared = solver, model, drawn(key, grid, times, dt, x0.dtype, cells)
    size = block_size(model.sde, x0, eigenpairs=False)
    return march_paths(_path, shared, (np.arange(paths), states), 0, stops, size, pieces)


def _path(shared: Any, numbered: tuple[Array, Any]) -> tuple[Any, State]:
    """One path through a window."""
    ((solver, model, noise), window), (index, state) = shared, numbered
    columns = jax.eval_shape(model.sde.factor, state[0]).shape[1]
    brownian = noise.of_path(index, columns)
    # The solvers take increments only from their terms: no field is evaluated there.
    terms = dfx.MultiTerm(dfx.ODETerm(lambda t, y, args: y), dfx.ControlTerm(lambda t, y, args: y, brownian))

    def one_step(k: Array, state: Any) -> Any:
        return solver.step(terms, noise.grid[k], noise.grid[k + 1], state, None, None, False)[0]

    state, saved = stepped(window, one_step, state, lambda state: state[:2])
    return (index, state), saved

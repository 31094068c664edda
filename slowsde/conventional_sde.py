"""The conventional SDE of an optimizer: the diffusion that follows its iterates step by step, near a manifold or not.

In slow time t = kη², so that one step of the optimizer takes dt = η²,

    dθ = −(1/η) s S(v) ∇L dt + s S(v) B dW − s ω θ dt,     dv = c (V(Σ + ∇L ∇Lᵀ) − v) dt,     Σ = B Bᵀ :

over η² the mean and the covariance of a step −ηS(v)g, g of mean ∇L and covariance Σ, to leading order, and
E V(g gᵀ) = V(Σ) + V(∇L ∇Lᵀ). Li, Tai and E (2017) have it for SGD, dX = −∇L dτ + √η Σ^½ dW in τ = kη = t/η; Malladi,
Lyu, Panigrahi and Arora (2022) for RMSProp and Adam. They keep V(Σ) alone, as their noise outweighs the gradient;
V(∇L ∇Lᵀ) is what v sees besides far from Γ, and is O(η) near it. Momentum drops out at leading order: its memory of
1/(1−β1) steps is taken to be short against the 1/(η λ_max(H')) steps in which ∇L changes.
"""

import time
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.coordinates import check_parameters
from manifolds.precision import cast, working_precision

from . import checks
from .clocks import SLOW, check_lr
from .ensemble import block_size, map_paths
from .metrics import as_metrics, check_metrics, evaluate
from .optimizers import AGM
from .problems import AbstractProblem
from .progress import meter
from .route import Route
from .slow_sde import SlowSDE
from .solve import step_grid
from .solvers import StepBrownianPath, step_keys
from .solvers.euler import AbstractEulerMaruyama
from .start import initial_state
from .trajectory import Result, Trajectory, finish

State = tuple[Float[Array, " p"], PyTree]  # (θ, v)
SOLVERS = ("heun", "euler")


def conventional_sde(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    t0: float = 0.0,
    v0: PyTree = None,
    paths: int = 1,
    key: PRNGKeyArray | None = None,
    save_at: Any = 101,
    metrics: Any = (),
    solver: str = "heun",
    substeps: int = 1,
    route: str | Route = "auto",
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
) -> Trajectory:
    """Paths of the conventional SDE of an optimizer at learning rate η = lr, from params0 itself, in slow time t = kη².

        dθ = −(1/η) S(v) ∇L dt + S(v) B dW,     dv = c (V(B Bᵀ + ∇L ∇Lᵀ) − v) dt

    (Li, Tai and E 2017; Malladi, Lyu, Panigrahi and Arora 2022; see the module's heading.) The fast time scale stays in
    it: it costs as many steps as the optimizer, or more, where the slow SDE takes steps that do not shrink with η.
    Proved for O(1/η) steps. The momentum β1 is not in it.

    B is the noise factor at θ. For `LabelNoise` on batches it leaves out what sampling adds where residuals do not
    vanish; `MinibatchNoise` has it.

    Args:
        problem, optimizer, params0, t0, t1, v0, paths, key, save_at, metrics, route, dtype, throw, progress: as in
            `run_discrete`; nothing is returned to Γ.
        lr: the learning rate η.
        solver: "heun", second order in the drift, so that with step η² its error is O(η) of the difference between
            this SDE and the optimizer; or "euler", Euler–Maruyama, which with one substep is the optimizer itself
            without momentum and with normal noise. v relaxes exactly in both.
        substeps: solver steps for one of the optimizer, at least: steps are at most η²/substeps long, and end on the
            saved times.

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds lr, solver, dt, num_steps and seconds.
    Raises: ValueError on bad input; `RunError` with the slow time at which a path turned non-finite.

    Example:
        >>> rival = conventional_sde(problem, adam(c=10.0), params0, 1.0, lr=0.01, paths=64, metrics=("loss",))
        >>> rival.metrics["loss"].shape
        (64, 101)
    """
    started = time.perf_counter()
    checks.check_concrete("conventional_sde", problem, optimizer, params0, v0, t0, t1, lr)
    lr = check_lr(lr)
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not one of {SOLVERS}.")
    if not isinstance(substeps, (int, np.integer)) or isinstance(substeps, bool) or substeps < 1:
        raise ValueError(f"substeps={substeps!r} must be a positive integer.")
    dt = lr**2 / int(substeps)
    times = checks.save_times(save_at, t0, t1)
    paths = checks.check_paths(paths)
    key = checks.check_key(key)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        sde, x0 = checks.on_flat_coordinates(problem, optimizer, params0, route)
        v0 = initial_state(sde, x0, v0, t0)
        check_metrics(named, sde, x0, v0)
        grid = step_grid(times, t0, t1, dt)
        model, keys = Conventional(sde, jnp.asarray(lr, precision)), step_keys(key, grid, dt)
        knots = jnp.asarray(times, precision), jnp.asarray(grid, precision)
        shared, shown = (model, (x0, v0), keys, *knots, solver == "heun"), meter("conventional_sde", progress)
        xs, vs = map_paths(_path, shared, np.arange(paths), block_size(sde, x0, eigenpairs=False), shown=shown)
        found = evaluate(named, sde, xs, vs)
    good = np.isfinite(xs).all(axis=-1)
    trajectory = Trajectory(
        ts=times,
        params=sde.chart.unravel(np.where(good[..., None], xs, np.nan)),
        v=vs,
        metrics={name: np.where(good, found[name], np.nan) for name in named},
        stats={
            "clock": SLOW,
            "lr": lr,
            "solver": solver,
            "dt": dt,
            "num_steps": grid.size - 1,
            "seconds": time.perf_counter() - started,
        },
        result=np.where(good.all(axis=1), Result.SUCCESS, Result.NON_FINITE),
        label="conventional SDE",
    )
    return finish(trajectory, times[np.argmin(good, axis=1)], throw)


class Conventional(eqx.Module):
    """The coefficients of the conventional SDE at learning rate η."""

    sde: SlowSDE
    lr: Array

    def drift(self, t: Any, state: State) -> Float[Array, " p"]:
        """−(1/η) s S(v) ∇L − s ω θ."""
        x, v = state
        optimizer = self.sde.optimizer
        drift = -self.sde.metric(v)(self.sde.loss.gradient(x)) / self.lr
        return optimizer.pace(t) * (drift - optimizer.decay(self.sde.chart) * x if optimizer.decays else drift)

    def diffusion(self, t: Any, state: State) -> Float[Array, "p r"]:
        """s S(v) B."""
        x, v = state
        return self.sde.optimizer.pace(t) * self.sde.metric(v)(self.sde.factor(x))

    def target(self, x: Float[Array, " p"]) -> PyTree:
        """V(Σ + ∇L ∇Lᵀ), where v relaxes to."""
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
        shake, f, target = model.diffusion(t0, y0) @ dW, model.drift(t0, y0), model.target(x)
        y1 = x + h * f + shake, relaxed(v, target, t0, h)
        if self.corrected:
            mean = jax.tree.map(lambda a, b: 0.5 * (a + b), target, model.target(y1[0]))
            y1 = x + 0.5 * h * (f + model.drift(t1, y1)) + shake, relaxed(v, mean, t0, h)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


def _path(shared: Any, index: Array, shown: dfx.AbstractProgressMeter[Any]) -> State:
    """Position and optimizer state of one path at the saved times, which are knots of the grid."""
    model, state0, keys, times, grid, corrected = shared
    columns = jax.eval_shape(model.sde.factor, state0[0]).shape[1]
    stateless = not jax.tree.leaves(state0[1])
    noise = StepBrownianPath(grid, keys, index, columns)
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: y), dfx.ControlTerm(lambda t, y, args: model.diffusion(t, y), noise)
    )
    solution = dfx.diffeqsolve(
        terms,
        DriftHeun(model, corrected),
        grid[0],
        grid[-1],
        None,
        state0,
        saveat=dfx.SaveAt(ts=times, fn=lambda t, y, args: y[0] if stateless else y),
        stepsize_controller=dfx.StepTo(grid),
        adjoint=dfx.ForwardMode(),
        max_steps=grid.shape[0],
        progress_meter=shown,
        throw=False,
    )
    assert solution.ys is not None
    return (solution.ys, state0[1]) if stateless else solution.ys

"""Runs of the backward-error ODE, a rival model of Adam, RMSProp, heavy ball and gradient descent without noise."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from manifolds.support.coordinates import Coordinates, check_finite, check_parameters, ravel
from manifolds.support.precision import cast, to_numpy, working_precision

from ..dynamics.backward_flow import BackwardFlow, BatchLosses, Followed, follow
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..metrics.metric import check_metrics
from ..optimizers.adam import adam_eps_inside
from ..optimizers.sgd import sgd
from ..problems.any_loss import Problem
from ..support import arguments
from ..support.arguments import check_lr
from ..support.clocks import ODE
from ..support.effort import MOST_STEPS, check_steps
from .frame import diverged, recorded
from .request import Outcome, request
from .trajectory import Trajectory

METHODS = ("adam", "rmsprop", "heavy ball", "gradient descent")
# |h f¹|/|f| from which on the correction is no gain: of 96 runs on four problems the corrected flow was nearer than the
# plain one in 58 of 59 below it; in the 37 above it was at best 12 % nearer, and at worst 17 times as far off. Below 1,
# as flows that come to a rest of the corrected field alone approach 1.
EXPANSION = 0.9
UNBOUNDED = 10.0  # how many times its own size from its start a flow is that may be leaving
ADAPTIVE, WITH_MOMENTUM = ("adam", "rmsprop"), ("adam", "heavy ball")


def backward_error(
    loss: Any,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    method: str = "adam",
    corrected: bool = True,
    bias_correction: bool = True,
    batches: int | None = None,
    order: Any = None,
    save_at: Any = 101,
    metrics: Any = (),
    rtol: float = 1e-10,
    dtype: Any = "float64",
    throw: bool = True,
    m0: PyTree = None,
    v0: PyTree = None,
    step: int = 0,
) -> Trajectory:
    """The flow that Adam or its kin without gradient noise follow to O(η²) over O(1/η) steps, in time t = kη.

        θ̇_j = −(1/r_j){ ∂_jE + η [(c_β+½) − (c_ρ+½)(1−ε/r_j²)] ∂_j‖∇E‖_{1,ε} },    r_j² = (∂_jE)² + ε,
        c_b(n) = b/(1−b) − (n+1)b^{n+1}/(1−b^{n+1})  on [nη, (n+1)η),    ‖g‖_{1,ε} = Σ_i √(g_i²+ε)

    (Cattaneo, Klusowski and Shigida 2024), with β = `b1`, ρ = `b2`; r = 1 for heavy ball, and with β = 0 gradient
    descent, θ̇ = −∇E − ½η ∇²E ∇E. It is accurate where ∇E hardly changes within the memory of the method, 1/(1−ρ)
    steps, η|∇²E u|/(1−ρ) ≪ r: a small `eps` fails near a minimum. `stats["expansion"]` measures that, |term in η| over
    |term without|; where it reaches 1 there is a warning, as the corrected flow is then as far off as the plain one.

    For mini-batches the sums over past steps are those of `dynamics.backward_flow`, exactly in M and R; within f¹ the
    past u_l are taken where the flow was at step l, which makes them recursive and changes θ by O(η²) only.

    Args:
        loss: function of params, or a `Problem`, for the full batch. For mini-batches a sequence of such functions, or
            loss(params, i) with i < `batches`.
        params0: the start, where the optimizer starts.
        t1: time kη, rounded to whole steps; k counts from the first step of the method, see `step`.
        lr: η, the step size h of the paper.
        b1, b2, eps: β, ρ and ε (inside the root, see `adam_eps_inside`).
        method: "adam"; "rmsprop", without momentum; "heavy ball", θ ← θ − ηm with m ← βm + (1−β)∇E (so that the usual
            one, m ← βm + ∇E at rate γ, has η = γ/(1−β)); or "gradient descent". What a method has not is not used.
        corrected: False leaves out the term in η: θ̇ = −M_n/R_n, accurate to O(η).
        bias_correction: as Adam has it. False for m and v that start at zero and are used as they are, as in the usual
            RMSProp: weights a_nk = β^{n−k}(1−β). Heavy ball has none.
        batches: their number, if `loss` takes the batch as its second argument.
        order: the batch of every step, (n,) with n at least their number; None for 0, 1, 2, ... in turn.
        save_at: a number of equally spaced times, or the times, rounded to whole steps.
        metrics: as in `simulate`, of the mean loss over the batches.
        rtol: tolerance of the ODE solver in one step of the optimizer, relative to each parameter and to the
            largest of params0.
        dtype, throw: as in `simulate`.
        m0, v0, step: to go on from a run of the method: its moments after its first `step` steps, as it keeps them, not
            corrected (Optax's mu and nu), like params.

    Returns: `Trajectory` with one path, leaves (1, T, ...), on the clock t = kη (`stats["clock"]` "k·lr", see
        `on_slow_clock`); v is R_n² − ε, the squares that the step from there divides by, to leading order, None without
        any. `stats` holds lr, num_steps, solver_steps, batches, expansion (T,), since the time before, and seconds.
    Raises: ValueError on bad input; `RunError` with the time at which the flow became too stiff or not finite, or had
        run away from an unbounded loss.

    Example:
        >>> ode = backward_error(lambda w: 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2, params0, 4.0, lr=0.01, b2=0.95, eps=1e-2)
        >>> ode.final_params.shape
        (1, 2)
    """
    asked = request(
        "backward_error",
        (loss, params0, lr, b1, b2, eps, m0, v0),
        t0=_start_time(step, lr),
        t1=t1,
        save_at=save_at,
        metrics=metrics,
        dtype=dtype,
        throw=throw,
    )
    lr, (b1, b2) = check_lr(lr), _check_numbers(method, b1, b2, eps)
    arguments.flag("corrected", corrected)
    # Without momentum the correction changes nothing, and allows the closed form.
    adaptive, corrects = method in ADAPTIVE, arguments.flag("bias_correction", bias_correction)
    corrects = corrects if adaptive else method == "gradient descent"
    arguments.check_tolerance("rtol", rtol)
    check_steps((asked.t1 - asked.t0) / lr, MOST_STEPS, f"lr={lr:g} to t1={t1:g}", "raise lr or lower t1 (t = k·lr)")
    steps = _saved_steps(asked.times, np.ndim(save_at) > 0, lr, step)
    check_parameters(params0)
    check_finite(params0)
    moments = _moments(params0, {"m0": m0, "v0": v0}, method, step, corrects)
    with working_precision(dtype) as precision:
        params0, moments = cast((params0, moments), precision)
        chart, x0 = Coordinates.of(params0), ravel(params0)
        losses = BatchLosses.of(loss, batches, chart)
        visits = _visits(order, losses.count, step, int(steps[-1]))
        # For metrics only, which ask for a slow SDE at a point: no noise is in it, and none of it is integrated.
        c, problem = (1 - b2) / lr**2, Problem(losses.mean)
        optimizer = adam_eps_inside(c, b1, eps, corrects) if adaptive else sgd(b1, bias_correction=corrects)
        sde = SlowSDE(problem, optimizer, problem.flat_loss(chart))
        losses.check(x0)
        check_metrics(asked.metrics, sde, x0, sde.state_shapes())
        # As arrays in the precision of the run: other numbers compile nothing anew.
        numbers = (lr, b1, b2, eps, max(rtol, 4 * jnp.finfo(precision).eps))
        scalars = (jnp.asarray(number, precision) for number in numbers)
        flow = BackwardFlow(
            losses, *scalars, corrected=bool(corrected), normalized=corrects, adaptive=adaptive, continues=step > 0
        )
        m, v = moments
        found = to_numpy(follow(flow, x0, (ravel(m), ravel(v)), jnp.asarray(visits), jnp.asarray([step, *steps])))
        stats = {"clock": ODE, "lr": lr, "num_steps": int(steps[-1]) - step, "solver_steps": int(found.tries)}
        stats |= {"batches": losses.count, "expansion": found.expansion}
        outcome = _outcome(sde, steps * lr, x0, found, stats)
        good = outcome.good[0]
        _tell_expansion(outcome.ts[good], found.expansion[good])
        _tell_leaving(outcome.ts[good], to_numpy(x0), found.xs[0, good], found.losses[good])
        return recorded(asked, outcome, "backward error")


def _outcome(sde: SlowSDE, ts: np.ndarray, x0: Any, found: Followed, stats: dict[str, Any]) -> Outcome:
    finite, ran_off = np.isfinite(found.xs).all(axis=-1) & np.isfinite(found.losses), diverged(found.xs, x0)
    reached = np.asarray(found.good) & finite & ~ran_off
    # What ended it first: a path that has run off or left the domain of the loss is stiff, and not finite, as well.
    codes = (ran_off.any(), Result.DIVERGED), (not (found.defined and finite.all()), Result.NON_FINITE)
    codes = *codes, (not found.good.all(), Result.MAX_STEPS), (True, Result.SUCCESS)
    code = next(code for holds, code in codes if holds)
    # The first time not reached; of a path that reached all of them it is not looked at.
    ended = ts[np.argmin(reached, axis=1)]
    vs = sde.chart.unravel_arrays(found.vs) if jax.tree.leaves(sde.state_shapes()) else None
    return Outcome(sde, ts, found.xs, vs, reached, np.array([code]), ended, stats)


def _tell_expansion(ts: np.ndarray, expansion: np.ndarray) -> None:
    """A warning where the term in η is about as large as the one without."""
    over = expansion > EXPANSION
    if over.any():
        warnings.warn(
            f"backward_error: by t={ts[np.argmax(over)]:.4g} the term in lr is as large as the one without (up to "
            f"{np.max(expansion):.2g} times): the expansion fails, and the corrected flow may be farther off than the "
            "plain one (corrected=False). Lower lr, or raise eps.",
            UserWarning,
            stacklevel=3,  # the call of the run
        )


def _tell_leaving(ts: np.ndarray, x0: Any, xs: np.ndarray, losses: np.ndarray) -> None:
    """A warning where the loss falls as fast as ever far from the start, as one without a lower bound does."""
    moved = np.abs(xs - x0).max(axis=-1) > UNBOUNDED * np.abs(x0).max()
    # Whatever is bounded slows down by then: a far minimum, a loss that saturates.
    rates = -np.diff(losses) / np.diff(ts)
    if np.any(x0) and rates.size > 2 and moved[-1] and rates[-1] >= 0.99 * rates[1:].max() > 0:
        warnings.warn(
            f"backward_error: the flow leaves. From t={ts[np.argmax(moved)]:.4g} on it is {UNBOUNDED:g} times the size "
            f"of params0 away from them, and the loss falls as fast as ever, to {losses[-1]:.4g} at t={ts[-1]:.4g}: is "
            "it bounded below?",
            UserWarning,
            stacklevel=3,  # the call of the run
        )


def _start_time(step: Any, lr: Any) -> float:
    """kη at the start, after `step` steps."""
    if not arguments.is_integer(step) or step < 0:
        raise ValueError(f"step={step!r} must be a whole number, the steps that the method has taken, 0 for none.")
    return float(step * check_lr(lr)) if step else 0.0


def _moments(
    params0: PyTree, given: dict[str, PyTree], method: str, step: int, corrects: bool
) -> tuple[PyTree, PyTree]:
    """m and v at the start, zero where the method has none or has taken no step; ValueError for what they cannot be."""
    wanted = {"m0": method in WITH_MOMENTUM, "v0": method in ADAPTIVE}
    shapes = jax.tree.map(np.shape, params0)
    for name, moment in given.items():
        if moment is None and wanted[name] and step > 0:
            raise ValueError(f"step={step} with {name}=None: pass the moment that {method} had after those steps.")
        if moment is None:
            continue
        if not wanted[name] or step == 0:
            why = f"{method} has no such moment" if not wanted[name] else "step=0 is before the first gradient"
            raise ValueError(f"{name} was given, but {why}: leave {name}=None, or pass step=k, the steps taken.")
        if jax.tree.map(np.shape, moment) != shapes:
            raise ValueError(f"{name} has leaves of shape {jax.tree.map(np.shape, moment)}, and params0 of {shapes}.")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(moment)]
        if not all(np.all(np.isfinite(leaf)) and (name == "m0" or np.all(leaf >= 0)) for leaf in leaves):
            raise ValueError(f"{name} must be finite{' and not negative' if name == 'v0' else ''}.")
    zeros = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), params0)
    m, v = (zeros if moment is None else moment for moment in given.values())
    return m, v


def _check_numbers(method: str, b1: float, b2: float, eps: float) -> tuple[float, float]:
    """β and ρ, 0 where the method has none; ValueError for numbers that make no method."""
    arguments.choice("method", method, METHODS)
    for name, value in (("b1", b1), ("b2", b2)):
        arguments.number(name, value, least=0, below=1)
    arguments.number("eps", eps, "the flow divides by √((∂E)² + eps).", above=0)
    return float(b1) * (method in WITH_MOMENTUM), float(b2) * (method in ADAPTIVE)


def _saved_steps(times: np.ndarray, exactly: bool, lr: float, first: int) -> np.ndarray:
    """The step numbers of the saved times, strictly increasing; as many as there are times, if `exactly` those."""
    # A number of times may be more than there are steps, then every step is saved; times that are asked for must all be
    # there.
    steps = np.unique(np.rint(times / lr).astype(int))
    if steps[-1] <= first:
        raise ValueError(f"t1={times[-1]} is less than one step of lr={lr}. Time here is t = k·lr, not k·lr².")
    if exactly and steps.size < times.size:
        raise ValueError(f"save_at asks for {times.size} times, but there are fewer than that many steps of lr={lr}.")
    return steps


def _visits(order: Any, count: int, first: int, last: int) -> np.ndarray:
    """The batch of every step from number `first` to `last`, or a cycle of them, again from the front."""
    if order is None:
        return (first + np.arange(count)) % count
    visits, steps = np.asarray(order), last - first
    if visits.ndim != 1 or visits.dtype.kind not in "iu" or visits.size < steps:
        raise ValueError(
            f"order has shape {visits.shape} and dtype {visits.dtype}; it must be a batch number for each of the "
            f"{steps} steps, or None for all batches in turn."
        )
    if not (np.all(visits >= 0) and np.all(visits < count)):
        raise ValueError(
            f"order has batch numbers from {visits.min()} to {visits.max()}, but there are {count} batches."
        )
    return visits

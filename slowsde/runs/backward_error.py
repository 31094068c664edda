"""Runs of the backward-error ODE, a rival model of Adam and RMSProp without noise."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from manifolds.support.coordinates import Coordinates, check_finite, check_parameters, ravel
from manifolds.support.precision import cast, to_numpy, working_precision

from ..dynamics.backward_flow import BackwardFlow, BatchLosses, follow
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..metrics.metric import check_metrics
from ..optimizers.adam import adam_eps_inside
from ..problems.any_loss import Problem
from ..support import arguments
from ..support.arguments import check_lr
from ..support.clocks import ODE
from ..support.effort import MOST_STEPS, check_steps
from .frame import recorded
from .request import Outcome, request
from .trajectory import Trajectory

METHODS = ("adam", "rmsprop")


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
) -> Trajectory:
    """The flow that Adam or RMSProp without gradient noise follows to O(η²) over O(1/η) steps, in time t = kη.

        θ̇_j = −(1/r_j){ ∂_jE + η [(c_β+½) − (c_ρ+½)(1−ε/r_j²)] ∂_j‖∇E‖_{1,ε} },    r_j² = (∂_jE)² + ε,
        c_b(n) = b/(1−b) − (n+1)b^{n+1}/(1−b^{n+1})  on [nη, (n+1)η),    ‖g‖_{1,ε} = Σ_i √(g_i²+ε)

    (Cattaneo, Klusowski and Shigida 2024), with β = `b1`, ρ = `b2`. It is accurate where ∇E hardly changes within
    the memory of the method, 1/(1−ρ) steps, η|∇²E u|/(1−ρ) ≪ r: a small `eps` fails near a minimum.

    For mini-batches the sums over past steps are those of `dynamics.backward_flow`, exactly in M and R; within f¹ the
    past u_l are taken where the flow was at step l, which makes them recursive and changes θ by O(η²) only.

    Args:
        loss: function of params, or a `Problem`, for the full batch. For mini-batches a sequence of such functions, or
            loss(params, i) with i < `batches`.
        params0: the start, where the optimizer starts.
        t1: time kη, rounded to whole steps.
        lr: η, the step size h of the paper.
        b1, b2, eps: β, ρ and ε (inside the root, see `adam_eps_inside`).
        method: "adam", or "rmsprop", which has no momentum: `b1` is not used.
        corrected: False leaves out the term in η: θ̇ = −M_n/R_n, accurate to O(η).
        bias_correction: as Adam has it. False for m and v that start at zero and are used as they are, as in the usual
            RMSProp: weights a_nk = β^{n−k}(1−β).
        batches: their number, if `loss` takes the batch as its second argument.
        order: the batch of every step, (n,) with n at least their number; None for 0, 1, 2, ... in turn.
        save_at: a number of equally spaced times, or the times, rounded to whole steps.
        metrics: as in `simulate`, of the mean loss over the batches.
        rtol: tolerance of the ODE solver in one step of the optimizer, relative to each parameter and to 1.
        dtype, throw: as in `simulate`.

    Returns: `Trajectory` with one path, leaves (1, T, ...), on the clock t = kη (`stats["clock"]` "k·lr", see
        `on_slow_clock`); v is R_n² − ε, the squares that the step from there divides by, to leading order. `stats`
        holds lr, num_steps, solver_steps, batches and seconds.
    Raises: ValueError on bad input; `RunError` with the time at which the flow became too stiff or not finite.

    Example:
        >>> ode = backward_error(lambda w: 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2, w0, 4.0, lr=0.01, b2=0.95, eps=1e-2)
        >>> ode.final_params.shape
        (1, 2)
    """
    asked = request(
        "backward_error",
        (loss, params0, lr, b1, b2, eps),
        t1=t1,
        save_at=save_at,
        metrics=metrics,
        dtype=dtype,
        throw=throw,
    )
    lr, b1 = check_lr(lr), _check_numbers(method, b1, b2, eps)
    arguments.flag("corrected", corrected)
    arguments.flag("bias_correction", bias_correction)
    arguments.check_tolerance("rtol", rtol)
    check_steps(asked.t1 / lr, MOST_STEPS, f"lr={lr:g} to t1={t1:g}", "raise lr or lower t1 (t = k·lr)")
    steps = _saved_steps(asked.times, np.ndim(save_at) > 0, lr)
    check_parameters(params0)
    check_finite(params0)
    with working_precision(dtype) as precision:
        params0 = cast(params0, precision)
        chart, x0 = Coordinates.of(params0), ravel(params0)
        losses = BatchLosses.of(loss, batches, chart)
        visits = _visits(order, losses.count, int(steps[-1]))
        # For metrics only, which ask for a slow SDE at a point: no noise is in it, and none of it is integrated.
        optimizer, problem = adam_eps_inside((1 - b2) / lr**2, b1, eps, bias_correction), Problem(losses.mean)
        sde = SlowSDE(problem, optimizer, problem.flat_loss(chart))
        losses.check(x0)
        check_metrics(asked.metrics, sde, x0, sde.state_shapes())
        # As arrays in the precision of the run: other numbers compile nothing anew.
        numbers = (lr, b1, b2, eps, max(rtol, 4 * jnp.finfo(precision).eps))
        scalars = (jnp.asarray(number, precision) for number in numbers)
        flow = BackwardFlow(losses, *scalars, corrected=bool(corrected), normalized=bool(bias_correction))
        xs, vs, good, tries = to_numpy(follow(flow, x0, jnp.asarray(visits), jnp.asarray(steps)))
        stats = {"clock": ODE, "lr": lr, "num_steps": int(steps[-1]), "solver_steps": int(tries)}
        stats["batches"] = losses.count
        return recorded(asked, _outcome(sde, steps * lr, xs, vs, good, stats), "backward error")


def _outcome(sde: SlowSDE, ts: np.ndarray, xs: np.ndarray, vs: Any, good: np.ndarray, stats: dict[str, Any]) -> Outcome:
    finite = np.isfinite(xs).all(axis=-1)
    code = Result.MAX_STEPS if not good.all() else Result.SUCCESS if finite.all() else Result.NON_FINITE
    reached = good & finite
    # The first time not reached; of a path that reached all of them it is not looked at.
    ended = ts[np.argmin(reached, axis=1)]
    return Outcome(sde, ts, xs, sde.chart.unravel_arrays(vs), reached, np.array([code]), ended, stats)


def _check_numbers(method: str, b1: float, b2: float, eps: float) -> float:
    """β, which is 0 for RMSProp; ValueError for numbers that make no method."""
    arguments.choice("method", method, METHODS)
    for name, value in (("b1", b1), ("b2", b2)):
        arguments.number(name, value, least=0, below=1)
    arguments.number("eps", eps, "the flow divides by √((∂E)² + eps).", above=0)
    return float(b1) if method == "adam" else 0.0


def _saved_steps(times: np.ndarray, exactly: bool, lr: float) -> np.ndarray:
    """The step numbers of the saved times, strictly increasing; as many as there are times, if `exactly` those."""
    # A number of times may be more than there are steps, then every step is saved; times that are asked for must all be
    # there.
    steps = np.unique(np.rint(times / lr).astype(int))
    if steps[-1] == 0:
        raise ValueError(f"t1={times[-1]} is less than one step of lr={lr}. Time here is t = k·lr, not k·lr².")
    if exactly and steps.size < times.size:
        raise ValueError(f"save_at asks for {times.size} times, but there are fewer than that many steps of lr={lr}.")
    return steps


def _visits(order: Any, count: int, steps: int) -> np.ndarray:
    """The batch of every step, or a cycle of them: step n visits the entry n modulo their number."""
    if order is None:
        return np.arange(count)
    visits = np.asarray(order)
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

"""The two clocks of an optimizer at learning rate η: slow time t = kη² after k steps, ODE time t = kη.

The slow SDE, the conventional SDE and discrete runs are kept on the slow clock, `backward_error` on the ODE's; a
trajectory says which in `stats["clock"]` (slow where it does not), and is moved to the other here.
"""

import dataclasses
from typing import Any

import numpy as np

from . import checks
from .trajectory import Trajectory

SLOW, ODE = "k·lr²", "k·lr"


def check_lr(lr: Any) -> float:
    """lr as a float; ValueError unless positive."""
    if not (checks.is_finite(lr) and lr > 0):
        raise ValueError(f"lr={lr!r} must be a positive number: the learning rate η.")
    return float(lr)


def slow_time(steps: Any, lr: float) -> Any:
    """t = kη² after k = `steps` steps.

    Example:
        >>> slow_time(40_000, lr=0.005)
        1.0
    """
    return steps * check_lr(lr) ** 2


def ode_time(steps: Any, lr: float) -> Any:
    """t = kη after k = `steps` steps.

    Example:
        >>> ode_time(40_000, lr=0.005)
        200.0
    """
    return steps * check_lr(lr)


def steps_in(t: Any, lr: float, clock: str = SLOW) -> Any:
    """The whole number of steps nearest to time t of a clock, "k·lr²" (slow) or "k·lr"; an array of them for an array.

    Example:
        >>> steps_in(1.0, lr=0.005), steps_in(200.0, lr=0.005, clock="k·lr")
        (40000, 40000)
    """
    steps = np.rint(np.asarray(t) / _unit(clock, check_lr(lr))).astype(int)
    return int(steps) if steps.ndim == 0 else steps


def clock_of(trajectory: Trajectory) -> str:
    """The clock of a trajectory's `ts`."""
    return trajectory.stats.get("clock", SLOW)


def on_slow_clock(trajectory: Trajectory, lr: float | None = None) -> Trajectory:
    """The same trajectory with its times as slow times t = kη², to be compared and drawn with others.

    `lr` is η; None for that of the run (`stats["lr"]`). Raises ValueError if neither is known and η is needed.

    Example:
        >>> on_slow_clock(backward_error(loss, params0, 5.0, lr=0.01)).ts[-1]
        0.05
    """
    return _on(SLOW, trajectory, lr)


def on_ode_clock(trajectory: Trajectory, lr: float | None = None) -> Trajectory:
    """The same trajectory with its times as t = kη; see `on_slow_clock`."""
    return _on(ODE, trajectory, lr)


def _on(clock: str, trajectory: Trajectory, lr: float | None) -> Trajectory:
    now = clock_of(trajectory)
    if now == clock:
        return trajectory
    lr = trajectory.stats.get("lr") if lr is None else lr
    if lr is None:
        raise ValueError(f"lr=None: this run has no learning rate of its own. Pass lr to change {now} to {clock}.")
    scale = _unit(clock, check_lr(lr)) / _unit(now, lr)
    stats = trajectory.stats | {"clock": clock}
    if "failed_at" in stats:
        stats["failed_at"] = np.asarray(stats["failed_at"]) * scale
    return dataclasses.replace(trajectory, ts=trajectory.ts * scale, stats=stats)


def _unit(clock: str, lr: float) -> float:
    """The time that one step takes."""
    units = {SLOW: lr**2, ODE: lr}
    if clock not in units:
        raise ValueError(f"clock={clock!r} is not one of {sorted(units)}.")
    return units[clock]

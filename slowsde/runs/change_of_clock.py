"""A trajectory on the other clock.

The slow SDE, the conventional SDE and discrete runs are kept in slow time t = kη², `backward_error` in t = kη; a
trajectory says which in `stats["clock"]` (slow where it does not).
"""

import dataclasses

import numpy as np

from manifolds.support.user_functions import shown

from ..support.arguments import check_lr
from ..support.clocks import ODE, SLOW, step_time
from .trajectory import Trajectory


def clock_of(trajectory: Trajectory) -> str:
    """The clock of a trajectory's `ts`."""
    return trajectory.stats.get("clock", SLOW)


def on_slow_clock(trajectory: Trajectory, lr: float | None = None) -> Trajectory:
    """The same trajectory with its times as slow times t = kη², to be compared and drawn with others.

    `lr` is η; None for that of the run (`stats["lr"]`). Raises ValueError if neither is known and η is needed.

    Example:
        >>> ode = backward_error(lambda w: 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2, params0, 5.0, lr=0.01)
        >>> float(on_slow_clock(ode).ts[-1])
        0.05
    """
    return _on(SLOW, trajectory, lr)


def on_ode_clock(trajectory: Trajectory, lr: float | None = None) -> Trajectory:
    """The same trajectory with its times as t = kη; see `on_slow_clock`.

    Example:
        >>> float(on_ode_clock(fast).ts[-1])  # 2500 steps of 0.02
        50.0
    """
    return _on(ODE, trajectory, lr)


def _on(clock: str, trajectory: Trajectory, lr: float | None) -> Trajectory:
    if not isinstance(trajectory, Trajectory):
        raise ValueError(f"trajectory={shown(trajectory)} must be a Trajectory.")
    now = clock_of(trajectory)
    if now == clock:
        return trajectory
    lr = trajectory.stats.get("lr") if lr is None else lr
    if lr is None:
        raise ValueError(f"lr=None: this run has no learning rate of its own. Pass lr to change {now} to {clock}.")
    # kη² over kη is η, the same for every time.
    scale = step_time(clock, check_lr(lr)) / step_time(now, lr)
    stats = trajectory.stats | {"clock": clock}
    if "failed_at" in stats:
        stats["failed_at"] = np.asarray(stats["failed_at"]) * scale
    return dataclasses.replace(trajectory, ts=trajectory.ts * scale, stats=stats)

"""The two clocks of an optimizer at learning rate η: slow time t = kη² after k steps, ODE time t = kη."""

from typing import Any

import numpy as np

from .arguments import check_lr

SLOW, ODE = "k·lr²", "k·lr"


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
    # Nearest, not floor: t/η² of a whole number of steps may come out just below it.
    steps = np.rint(np.asarray(t) / step_time(clock, check_lr(lr))).astype(int)
    return int(steps) if steps.ndim == 0 else steps


def step_time(clock: str, lr: float) -> float:
    """The time that one step takes."""
    units = {SLOW: lr**2, ODE: lr}
    if clock not in units:
        raise ValueError(f"clock={clock!r} is not one of {sorted(units)}.")
    return units[clock]

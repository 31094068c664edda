"""At which learning rates to run an optimizer in order to tell what it does at a smaller one."""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from manifolds.support.user_functions import shown

from ..optimizers.agm import AGM
from ..optimizers.sgd import no_state
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..runs.trajectory import Trajectory
from ..support.clocks import steps_in
from .validity import validity

PAIRS = ((8, 4), (6, 4))  # multiples of lr that may do without the nearest
SINGLE, NEAREST = (4, 3), 2
SEARCH = 24  # factors of √2 by which a rate is lowered until it is admissible


class Rates(NamedTuple):
    """Rates by stages, those of a later one to be run if the earlier do not suffice, and why, in words."""

    stages: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...]
    chosen: bool  # not given: one at which runs fail may be left out

    @property
    def all(self) -> list[float]:
        """Of all stages."""
        return [rate for stage in self.stages for rate in stage]


class Setting(NamedTuple):
    """What a rate is judged by."""

    problem: AbstractProblem
    optimizer: AGM
    slow: Trajectory
    times: np.ndarray
    t0: float
    route: str | Route

    def objection(self, rate: float) -> str:
        """Why there should be no runs at `rate`; "" if there may be."""
        hindrance = impossible(rate, self.optimizer, self.times, self.t0)
        if hindrance:
            return hindrance
        found = validity(self.problem, self.optimizer, self.slow, rate, route=self.route)
        return f"not valid, {found.reasons[0]}" if found.verdict == "not valid" else ""


def impossible(rate: float, optimizer: AGM, times: np.ndarray, t0: float) -> str:
    """Why no run at `rate` can be made and saved at `times`; "" if it can."""
    if optimizer.V is not no_state and float(optimizer.c) * rate**2 > 1:
        return f"β2 = 1 − c·lr² is negative there, for c={float(optimizer.c):g}"
    steps = steps_in(times, rate)
    if np.unique(steps).size < steps.size or steps[-1] == steps_in(t0, rate):
        return f"it takes {steps[-1] - steps_in(t0, rate)} steps, fewer than saved times are apart"
    return ""


def given_rates(rates: Any, lr: float, optimizer: AGM, times: np.ndarray, t0: float) -> Rates:
    """Rates that were asked for, all of them to be run; ValueError where one cannot be, or is not above lr."""
    try:
        found = np.unique(np.asarray(rates, float))
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.size == 0 or np.ndim(rates) != 1 or not (np.isfinite(found) & (found > 1.2 * lr)).all():
        raise ValueError(
            f"rates={shown(rates)} must be learning rates above 1.2·lr={1.2 * lr:g}, such as "
            f"({2 * lr:g}, {4 * lr:g}), or None to choose them: lr lies between them and 0."
        )
    for rate in found:
        hindrance = impossible(float(rate), optimizer, times, t0)
        if hindrance:
            raise ValueError(f"rates contains {rate:g}: {hindrance}. Leave it out, or save fewer times.")
    return Rates((tuple(found.tolist()),), ("rates: as given",), False)


def doubts(rates: Rates, setting: Setting) -> Rates:
    """Given rates with a note, and a warning, for each at which the slow SDE is not valid."""
    notes = [f"lr={rate:g} is {why}" for rate in rates.all if (why := setting.objection(rate))]
    for note in notes:
        warnings.warn(
            f"rates: {note}. A gap there need be no short series in η; model_error may be too small.",
            UserWarning,
            stacklevel=4,  # the call of predict
        )
    return rates._replace(notes=(*rates.notes, *notes))


def chosen_rates(lr: float, setting: Setting) -> Rates:
    """8 (or 6), 4 and 2 times lr, where admissible; ValueError, with the lr that can be served, if twice lr is not."""
    objections: dict[int, str] = {}

    def admissible(k: int) -> bool:
        if k not in objections:
            objections[k] = setting.objection(k * lr)
        return not objections[k]

    if not admissible(NEAREST):
        raise ValueError(_refusal(lr, objections[NEAREST], setting))
    pair = next((pair for pair in PAIRS if all(map(admissible, pair))), ())
    # Two coarse ones may do: the nearest costs a quarter of the run that it is to save.
    stages = (pair, (NEAREST,)) if pair else ((*[k for k in SINGLE if admissible(k)][:1], NEAREST),)
    notes = tuple(f"left out {k}·lr: {why}" for k, why in objections.items() if why)
    return Rates(tuple(tuple(k * lr for k in stage) for stage in stages), notes, True)


def _refusal(lr: float, why: str, setting: Setting) -> str:
    said = f"lr={lr:g} is too large to be predicted from larger rates: twice lr, {2 * lr:g}, is out: {why}. "
    served = next((rate / 2 for rate in _falling(2 * lr) if not setting.objection(rate)), None)
    if served is None:
        return said + "No smaller lr is better: run_discrete at lr itself, or another start or c."
    # Rounded down, to be on the safe side.
    digit = 10.0 ** (np.floor(np.log10(served)) - 1)
    return said + f"Predict at lr={np.floor(served / digit) * digit:.2g} or less, or run_discrete at lr itself."


def _falling(rate: float) -> Iterator[float]:
    return (rate / 2 ** (k / 2) for k in range(1, SEARCH + 1))

"""Where an optimizer ends up: the stationary point of its slow flow."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..optimizers.agm import AGM
from ..plot.cards import card
from ..problems.abstract import AbstractProblem
from .simulate import simulate
from .trajectory import Trajectory


@dataclass(frozen=True, repr=False)
class StationaryPoint:
    """The end of a slow flow; of many with a leading axis of starts, numbers as arrays.

    Attributes:
        params: the point of Γ, a pytree like the parameters.
        v: the optimizer state there.
        metrics: name -> number.
        t: the slow time at which the flow was nearly still; plain implicit steps found the last digits from there.
        speed: |dζ/dt|_{S⁻¹} left there, 0 at an exact stationary point: the length in the metric S(v)⁻¹ of what
            `coefficients(problem, optimizer, params, v).drift` gives.
        stillness: the same without units, see `SlowSDE.stillness`.
        trajectory: the flow that led there.
    """

    params: PyTree
    v: PyTree
    metrics: dict[str, Any]
    t: Any
    speed: Any
    stillness: Any
    trajectory: Trajectory

    def __repr__(self) -> str:
        named = "".join(f", {name} {_short(value)}" for name, value in self.metrics.items())
        return f"<StationaryPoint {self._reached}{named}>"

    def _repr_html_(self) -> str:
        rows = [[name, _short(value)] for name, value in self.metrics.items()]
        return card(f"stationary point {self._reached}", ["at rest", "value"], rows)

    @property
    def _reached(self) -> str:
        starts = "" if np.ndim(self.t) == 0 else f"of {np.size(self.t)} starts "
        at = f"t={_short(self.t, 4)}, stillness {_short(self.stillness, 1)}, speed {_short(self.speed, 1)}"
        return f"{starts}at {at}"


def _short(value: Any, digits: int = 6) -> str:
    """A number, or the range of many."""
    ends = np.unique([np.nanmin(value), np.nanmax(value)])
    return " to ".join(f"{end:.{digits}g}" for end in ends)


def stationary_point(
    problem: AbstractProblem, optimizer: AGM, params0: PyTree, *, metrics: Any = (), **settings: Any
) -> StationaryPoint:
    """Where `optimizer` ends up from `params0`: the slow flow followed until ΠS T[S] = 0 and v = V(Σ).

    That is `simulate(..., t1=inf)`, whose other arguments (`v0`, `tol`, `rtol`, `max_steps`, `route`, ...) it takes.
    With stacked=True from many starts at once: then everything that is found has a leading axis of them, and
    `trajectory.result` says which of them came to rest.

    Raises: ValueError on bad input and where the noise diffuses, so that nothing comes to rest; `RunError`
        (NOT_STATIONARY) with what there was if the flow still moves after `max_steps`, and (ESCAPES) if it has no rest
        but leaves for infinity; `stats["leaving"]` says along which leaves.

    Example:
        >>> stationary_point(problem, adam(c=10.0), params0).params.round(5)
        array([1., 1.])
    """
    # The way is of no interest here, and saved times are ends of steps.
    settings = {"save_at": 2} | settings
    found = simulate(problem, optimizer, params0, np.inf, metrics=metrics, **settings)
    many = bool(settings.get("stacked", False))
    paths = slice(None) if many else 0

    def each(value: Any) -> Any:
        """What is known of all starts as an array of one for each."""
        return np.broadcast_to(np.asarray(value, float), found.paths).copy() if many else float(value)

    return StationaryPoint(
        params=jax.tree.map(lambda leaf: leaf[paths] if isinstance(leaf, np.ndarray) else leaf, found.final_params),
        v=jax.tree.map(lambda leaf: leaf[paths, -1], found.v),
        metrics={name: each(values[paths, -1]) for name, values in found.metrics.items()},
        t=each(np.asarray(found.stats["times"])[:, -1] if many else found.ts[-1]),
        speed=each(found.stats["speed"]),
        stillness=each(found.stats["stillness"]),
        trajectory=found,
    )

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
    """The end of a slow flow.

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
    metrics: dict[str, float]
    t: float
    speed: float
    stillness: float
    trajectory: Trajectory

    def __repr__(self) -> str:
        named = "".join(f", {name} {value:.6g}" for name, value in self.metrics.items())
        return f"<StationaryPoint {self._reached}{named}>"

    def _repr_html_(self) -> str:
        rows = [[name, f"{value:.6g}"] for name, value in self.metrics.items()]
        return card(f"stationary point {self._reached}", ["at rest", "value"], rows)

    @property
    def _reached(self) -> str:
        return f"at t={self.t:.4g}, stillness {self.stillness:.1g}, speed {self.speed:.1g}"


def stationary_point(
    problem: AbstractProblem, optimizer: AGM, params0: PyTree, *, metrics: Any = (), **settings: Any
) -> StationaryPoint:
    """Where `optimizer` ends up from `params0`: the slow flow followed until ΠS T[S] = 0 and v = V(Σ).

    That is `simulate(..., t1=inf)`, whose other arguments (`v0`, `tol`, `rtol`, `max_steps`, `route`, ...) it takes.

    Raises: ValueError on bad input and where the noise diffuses, so that nothing comes to rest; `RunError`
        (NOT_STATIONARY) with what there was if the flow still moves after `max_steps`, and (ESCAPES) if it has no rest
        but leaves for infinity; `stats["leaving"]` says along which leaves.

    Example:
        >>> stationary_point(problem, adam(c=10.0, eps=1e-6), params0, metrics=("trace_hessian",)).metrics
    """
    # The way is of no interest here, and saved times are ends of steps.
    settings = {"save_at": 2} | settings
    found = simulate(problem, optimizer, params0, np.inf, metrics=metrics, **settings)
    return StationaryPoint(
        params=jax.tree.map(lambda leaf: leaf[0] if isinstance(leaf, np.ndarray) else leaf, found.final_params),
        v=jax.tree.map(lambda leaf: leaf[0, -1], found.v),
        metrics={name: float(values[0, -1]) for name, values in found.metrics.items()},
        t=float(found.ts[-1]),
        speed=found.stats["speed"],
        stillness=found.stats["stillness"],
        trajectory=found,
    )

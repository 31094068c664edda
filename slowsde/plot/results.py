"""What figures ask of the results that they draw, whatever their classes are.

Protocols, not the classes: runs and studies draw themselves by this floor, which must not import them in turn.
"""

from typing import Any, Protocol

import numpy as np
from jaxtyping import PyTree


class Trajectory(Protocol):
    """Paths over time, see `slowsde.Trajectory`."""

    @property
    def ts(self) -> np.ndarray: ...

    @property
    def params(self) -> PyTree: ...

    @property
    def v(self) -> PyTree: ...

    @property
    def metrics(self) -> dict[str, np.ndarray]: ...

    @property
    def stats(self) -> dict[str, Any]: ...

    @property
    def result(self) -> np.ndarray: ...  # (paths,), 0 where a path did not fail

    @property
    def label(self) -> str: ...

    @property
    def paths(self) -> int: ...


class Comparison(Protocol):
    """Slow against discrete, see `slowsde.Comparison`."""

    @property
    def ts(self) -> np.ndarray: ...

    @property
    def discrete_mean(self) -> dict[str, np.ndarray]: ...

    @property
    def gap(self) -> dict[str, np.ndarray]: ...

    @property
    def standard_error(self) -> dict[str, np.ndarray]: ...

    @property
    def slow(self) -> Trajectory: ...

    @property
    def discrete(self) -> Trajectory: ...


class OrderFit(Protocol):
    """A line through errors, see `slowsde.ConvergenceStudy`."""

    @property
    def order(self) -> float: ...

    @property
    def interval(self) -> tuple[float, float]: ...

    @property
    def centre(self) -> tuple[float, float]: ...

    @property
    def refusal(self) -> str: ...


class ConvergenceStudy(Protocol):
    """Errors by learning rate, see `slowsde.ConvergenceStudy`."""

    @property
    def lrs(self) -> np.ndarray: ...

    @property
    def errors(self) -> dict[str, np.ndarray]: ...

    @property
    def standard_errors(self) -> dict[str, np.ndarray]: ...

    @property
    def fits(self) -> Any: ...  # name -> OrderFit


class Validity(Protocol):
    """Ratios along a run, see `slowsde.Validity`."""

    @property
    def ts(self) -> np.ndarray: ...

    @property
    def lr(self) -> float: ...

    @property
    def ratios(self) -> dict[str, np.ndarray]: ...

    @property
    def thresholds(self) -> dict[str, tuple[float, float]]: ...

    @property
    def levels(self) -> np.ndarray: ...


class Prediction(Protocol):
    """Means at a learning rate from runs at larger ones, see `slowsde.Prediction`."""

    @property
    def ts(self) -> np.ndarray: ...

    @property
    def lr(self) -> float: ...

    @property
    def mean(self) -> dict[str, np.ndarray]: ...

    @property
    def error(self) -> dict[str, np.ndarray]: ...

    @property
    def slow(self) -> Trajectory: ...

    @property
    def runs(self) -> tuple[Trajectory, ...]: ...

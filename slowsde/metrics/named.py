"""Metrics by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from manifolds.support.same_functions import first_alike
from manifolds.support.user_functions import shown

from .metric import Metric, OfParams
from .sharpness import (
    adaptive_largest_eigenvalue,
    adaptive_sharpness,
    largest_eigenvalue,
    loss,
    r_med,
    trace_hessian,
    trace_sqrt_diag_hessian,
)

NAMED = {
    m.name: m
    for m in (
        loss,
        trace_hessian,
        trace_sqrt_diag_hessian,
        adaptive_sharpness,
        r_med,
        largest_eigenvalue,
        adaptive_largest_eigenvalue,
    )
}
"""Name -> `Metric`: what `metrics=("trace_hessian", ...)` of a run may name."""


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """{name: Metric} from names, `Metric` objects, {name: fn(params) -> scalar}, or a sequence of the first two."""
    if isinstance(metrics, (str, Metric)):
        metrics = (metrics,)
    if isinstance(metrics, Mapping):
        return {str(name): _as_metric(name, entry) for name, entry in metrics.items()}
    if not isinstance(metrics, Sequence):
        raise ValueError(
            f"metrics={shown(metrics)} must be names from slowsde.metrics or {{name: fn(params) -> scalar}}."
        )
    found = [_as_metric(entry, entry) for entry in metrics]
    names = [metric.name for metric in found]
    for name in names:
        # The second would take the place of the first without a word.
        if names.count(name) > 1:
            raise ValueError(f"metrics has two of the name {name!r}: name them apart, as {{'near': ..., 'far': ...}}.")
    return dict(zip(names, found, strict=True))


def _as_metric(name: Any, entry: Any) -> Metric:
    if isinstance(entry, Metric):
        return entry
    if isinstance(entry, str):
        if entry not in NAMED:
            raise ValueError(
                f"metrics: {entry!r} is not one of {sorted(NAMED)}; with parameters there are "
                "metrics.trace_power_diag_hessian(exponent), metrics.gradient_norm(eps), metrics.distance(params), "
                "metrics.participation_ratio(function), metrics.sparsity(function), metrics.effective_rank(function) "
                "and metrics.accuracy(logits, inputs, labels), or pass {name: fn}."
            )
        return NAMED[entry]
    if callable(entry) and isinstance(name, str):
        return Metric(name, OfParams(first_alike(entry)))
    raise ValueError(f"metrics: {shown(entry)} is neither a name, a Metric nor a function of params under a name.")

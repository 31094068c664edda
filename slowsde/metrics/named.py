"""Metrics by name."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """{name: Metric} from names, `Metric` objects, {name: fn(params) -> scalar}, or a sequence of the first two."""
    if isinstance(metrics, (str, Metric)):
        metrics = (metrics,)
    if isinstance(metrics, Mapping):
        return {str(name): _as_metric(name, entry) for name, entry in metrics.items()}
    if not isinstance(metrics, Sequence):
        raise ValueError(f"metrics={metrics!r} must be names from slowsde.metrics or {{name: fn(params) -> scalar}}.")
    found = [_as_metric(entry, entry) for entry in metrics]
    return {metric.name: metric for metric in found}


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
        return Metric(name, OfParams(entry))
    raise ValueError(f"metrics: {entry!r} is neither a name, a Metric nor a function of params under a name.")

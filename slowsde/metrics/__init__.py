"""Named scalars along a run: `metrics=("trace_hessian", "loss")` or {name: fn(params) -> scalar}.

A library metric is a `Metric`: a function of the whole state that `simulate`, `run_discrete` and the user can call,
`trace_hessian(problem, params)`. Hessians are those on Γ (Gauss–Newton for least squares, where that is exact).
Eigenvalues take dense Hessians or n×n kernels; for larger problems `metrics.estimated` has traces and eigenvalues with
error bars. Knows the slow SDE at a point; knows no run.
"""

from . import estimated
from .metric import Metric
from .named import NAMED
from .of_params import accuracy, distance, effective_rank, participation_ratio, sparsity
from .sharpness import (
    adaptive_largest_eigenvalue,
    adaptive_sharpness,
    gradient_norm,
    largest_eigenvalue,
    loss,
    r_med,
    trace_hessian,
    trace_power_diag_hessian,
    trace_sqrt_diag_hessian,
)

__all__ = [
    "NAMED",
    "Metric",
    "accuracy",
    "adaptive_largest_eigenvalue",
    "adaptive_sharpness",
    "distance",
    "effective_rank",
    "estimated",
    "gradient_norm",
    "largest_eigenvalue",
    "loss",
    "participation_ratio",
    "r_med",
    "sparsity",
    "trace_hessian",
    "trace_power_diag_hessian",
    "trace_sqrt_diag_hessian",
]

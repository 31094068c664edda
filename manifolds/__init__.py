"""The geometry of manifolds of minimizers: limit maps, projectors, returns and third-derivative contractions.

Knows losses and metrics; knows no optimizer, no noise and no time. From the bottom up: `support`, `metrics`, `normal`
(spaces), `losses`, `maps` (to and along Γ), `second_order` (what noise does), and `geometry`, the public functions.
"""

from .geometry import contract_third, limit, limit_map, project, projector, return_to_manifold, second_derivative
from .losses.abstract import AbstractLoss
from .losses.cross_entropy import CrossEntropyLoss
from .losses.least_squares import LeastSquaresLoss
from .losses.scalar import ScalarLoss
from .losses.symbolic import sympy_function
from .maps.limit_map import LimitPoint, ManifoldError
from .metrics.abstract import AbstractMetric
from .metrics.block_diagonal import BlockDiagonal
from .metrics.conversion import as_metric
from .metrics.dense import Dense
from .metrics.diagonal import Diagonal, Identity
from .metrics.kronecker import Kronecker
from .metrics.transformed import Reordered, Scaled

__all__ = [
    "AbstractLoss",
    "AbstractMetric",
    "BlockDiagonal",
    "CrossEntropyLoss",
    "Dense",
    "Diagonal",
    "Identity",
    "Kronecker",
    "LeastSquaresLoss",
    "LimitPoint",
    "ManifoldError",
    "Reordered",
    "ScalarLoss",
    "Scaled",
    "as_metric",
    "contract_third",
    "limit",
    "limit_map",
    "project",
    "projector",
    "return_to_manifold",
    "second_derivative",
    "sympy_function",
]

"""The geometry of manifolds of minimizers: limit maps, projectors, returns and third-derivative contractions.

Knows losses and metrics; knows no optimizer, no noise and no time.
"""

from .cross_entropy import CrossEntropyLoss
from .flow_limit import LimitPoint, ManifoldError
from .geometry import contract_third, limit, limit_map, project, projector, return_to_manifold, second_derivative
from .kronecker import BlockDiagonal, Kronecker
from .least_squares import LeastSquaresLoss
from .losses import AbstractLoss, ScalarLoss
from .metrics import AbstractMetric, Dense, Diagonal, Identity, Reordered, Scaled, as_metric
from .sympy_loss import sympy_function

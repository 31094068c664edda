"""Which minimizer does my optimizer pick, and why: the slow SDE of adaptive gradient methods near a manifold."""

from . import metrics, plot
from .backward_error import adam_eps_inside, backward_error
from .blockwise import adalayer, adam_mini
from .clocks import ode_time, on_ode_clock, on_slow_clock, slow_time, steps_in
from .comparison import Comparison, compare
from .conventional_sde import conventional_sde
from .convergence import ConvergenceStudy, convergence_study
from .discrete import run_discrete
from .extrapolation import WeakEstimate, weak_estimate
from .from_optax import from_optax_state
from .grouped import grouped
from .integrate import simulate
from .noise import GaussianNoise, LabelNoise, MinibatchNoise, SampledNoise
from .optimizers import AGM, adam, adame, rmsprop, sgd, slow_rate
from .pointwise import Coefficients, coefficients
from .problems import Classification, EmpiricalRisk, LeastSquares, Problem, from_sympy
from .resume import resume
from .route import Route
from .shampoo import shampoo
from .slow_sde import SlowSDE
from .start import to_manifold
from .stationary import StationaryPoint, stationary_point
from .trajectory import Result, RunError, Trajectory, load
from .trust import Validity, validity

"""Which minimizer does my optimizer pick, and why: the slow SDE of adaptive gradient methods near a manifold."""

from typing import TYPE_CHECKING, Any

from . import metrics, plot
from .dynamics.coefficients import Coefficients, coefficients
from .dynamics.result import Result
from .dynamics.slow_sde import SlowSDE
from .dynamics.start import to_manifold
from .optimizers.adam import adam, adam_eps_inside, adame, rmsprop
from .optimizers.agm import AGM, slow_rate
from .optimizers.blockwise import adalayer, adam_mini
from .optimizers.factored import adafactor
from .optimizers.grouped import grouped
from .optimizers.optax_state import from_optax_state
from .optimizers.sgd import sgd
from .optimizers.shampoo import shampoo
from .optimizers.torch_state import from_torch_optimizer
from .problems.accumulated import accumulated
from .problems.any_loss import Problem, from_sympy
from .problems.classification import Classification
from .problems.empirical_risk import EmpiricalRisk
from .problems.gaussian_noise import GaussianNoise
from .problems.label_noise import LabelNoise
from .problems.least_squares import LeastSquares
from .problems.minibatch_noise import MinibatchNoise
from .problems.route import Route
from .problems.sampled_noise import SampledNoise
from .problems.torch_module import from_torch, into_torch
from .runs.backward_error import backward_error
from .runs.change_of_clock import on_ode_clock, on_slow_clock
from .runs.conventional_sde import conventional_sde
from .runs.discrete import run_discrete
from .runs.resume import resume
from .runs.simulate import simulate
from .runs.stationary import StationaryPoint, stationary_point
from .runs.trajectory import Interrupted, RunError, Trajectory, load
from .studies.comparison import Comparison, compare
from .studies.convergence import ConvergenceStudy, convergence_study
from .studies.extrapolation import WeakEstimate, weak_estimate
from .studies.prediction import Prediction, predict
from .studies.validity import Validity, validity
from .support.clocks import ode_time, slow_time, steps_in
from .support.compilation import cache_compilations

if TYPE_CHECKING:
    from .derivation.derivation import Derivation, derive

__all__ = [
    "AGM",
    "Classification",
    "Coefficients",
    "Comparison",
    "ConvergenceStudy",
    "Derivation",
    "EmpiricalRisk",
    "GaussianNoise",
    "Interrupted",
    "LabelNoise",
    "LeastSquares",
    "MinibatchNoise",
    "Prediction",
    "Problem",
    "Result",
    "Route",
    "RunError",
    "SampledNoise",
    "SlowSDE",
    "StationaryPoint",
    "Trajectory",
    "Validity",
    "WeakEstimate",
    "accumulated",
    "adafactor",
    "adalayer",
    "adam",
    "adam_eps_inside",
    "adam_mini",
    "adame",
    "backward_error",
    "cache_compilations",
    "coefficients",
    "compare",
    "conventional_sde",
    "convergence_study",
    "derive",
    "from_optax_state",
    "from_sympy",
    "from_torch",
    "from_torch_optimizer",
    "grouped",
    "into_torch",
    "load",
    "metrics",
    "ode_time",
    "on_ode_clock",
    "on_slow_clock",
    "plot",
    "predict",
    "resume",
    "rmsprop",
    "run_discrete",
    "sgd",
    "shampoo",
    "simulate",
    "slow_rate",
    "slow_time",
    "stationary_point",
    "steps_in",
    "to_manifold",
    "validity",
    "weak_estimate",
]


def __getattr__(name: str) -> Any:
    # Formulas alone need SymPy, which takes a fifth of the time of this import.
    if name in ("Derivation", "derive"):
        from .derivation import derivation

        return getattr(derivation, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("slowsde")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

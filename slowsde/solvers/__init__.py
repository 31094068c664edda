"""Diffrax solvers whose every step ends on Γ, by the Gauss–Newton return in the current metric S(v)."""

from .brownian import StepBrownianPath, step_keys
from .euler import ManifoldEuler
from .explicit import ReturningSolver
from .implicit import ExtrapolatedImplicit
from .landing import LandingController
from .state import SlowDiffusion, SlowFlow, SlowState, State

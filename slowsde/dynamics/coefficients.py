"""Drift and diffusion of the slow SDE at one point of Γ."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.geometry import check_loss_form
from manifolds.maps.on_manifold import OffManifold, check_on_manifold, off_manifold
from manifolds.normal.normal_space import AbstractNormalSpace
from manifolds.support.arrays import all_finite
from manifolds.support.compilation import compiled
from manifolds.support.coordinates import Coordinates, check_finite, ravel
from manifolds.support.precision import in_working_precision, is_traced
from manifolds.support.user_functions import shown

from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..support.arguments import is_number
from .checks import (
    check_numbers,
    check_standing,
    check_state,
    fitted,
    standing,
)
from .slow_sde import SlowSDE, slow_sde

Vector = Float[Array, " p"]
ROUGH = 1e-2  # the relative accuracy of a step of which only the size matters


class Coefficients(eqx.Module):
    """The slow SDE at one point.

    Attributes:
        drift: params-like, the full Itô drift of ζ per unit of slow time.
        diffusion: (p, r), Π S B, rows in the order of `ravel_pytree(params)`; (p, 0) where nothing diffuses.
        v_drift: v-like, c (V(Σ) − v).
    """

    drift: PyTree
    diffusion: Float[Array, "p r"]
    v_drift: PyTree


@in_working_precision
def coefficients(
    problem: AbstractProblem,
    optimizer: AGM,
    params: PyTree,
    v: PyTree = None,
    *,
    t: Any = None,
    route: str | Route = "auto",
) -> Coefficients:
    """Drift and diffusion of the slow SDE at params on Γ with preconditioner state v.

        drift = ½ ∂²Φ_S[SΣS] = −½ Π S T[C] − ½ S^½(H')⁺S^½ T[Σ_∥],   diffusion = Π S B,   v_drift = c(V(Σ) − v)

    and what a schedule, weight decay and bias correction add (see `AGM`).

    Args:
        problem, optimizer: see `Problem` and `AGM`.
        params: a point of Γ (see `manifolds.limit_map`).
        v: optimizer state; None for the equilibrium V(Σ).
        t: slow time, which matters to schedules (that need it) and bias correction (None: long after the start).
        route: a `Route` or its name, as in `simulate`.

    Returns: `Coefficients`, per unit of slow time t = kη². Works under jit and vmap.
    Raises: ValueError on bad input, if params is not on Γ, or if there is no Γ: at a saddle, a maximum, an isolated
        minimum, or where minimizers are degenerate or cross.

    Example:
        >>> coefficients(problem, adam(c=1.0), np.array([2.0, 0.5])).drift
    """
    if not (t is None or is_traced(t) or (is_number(t) and not np.isnan(t))):
        raise ValueError(f"t={shown(t)} must be one slow time, or None for long after the start.")
    chart, x = Coordinates.of(params), ravel(params)
    check_finite(params)
    sde = slow_sde(problem, optimizer, chart, route)
    if v is not None:
        check_state(sde, v, "v")
    if t is None and optimizer.schedule is not None:
        raise ValueError("t=None, but the optimizer has a schedule: pass the slow time t at which to evaluate it.")
    # At t = ∞ the bias correction is forgotten.
    found = _coefficients(sde, x, v, jnp.asarray(jnp.inf if t is None else t, x.dtype))
    if not is_traced(found):
        _check(sde, x, v is None, found)
    return found.coefficients


class Evaluated(NamedTuple):
    """What one evaluation tells: the coefficients at (x, v), and what is to be known before they are trusted."""

    coefficients: Coefficients
    v: PyTree
    off: OffManifold
    finite: Array


@compiled
def _coefficients(sde: SlowSDE, x: Vector, v: PyTree, t: Array) -> Evaluated:
    # One program for all. Checks of forms belong to its tracing, which later calls with other numbers are spared; those
    # of numbers look at what it returns. Apart they took as long as the evaluation (p = 20 000, n = 500).
    fitted(sde.problem, sde.optimizer, sde.chart.unravel(x))
    check_loss_form(sde.loss, x)
    v = sde.equilibrium(x) if v is None else v
    normal = sde.frame(x, v, resolved=True)
    found = Coefficients(
        drift=sde.chart.unravel_arrays(sde.drift(x, normal, t)),
        diffusion=sde.diffusion(x, normal, t),
        v_drift=sde.v_drift(x, v, t),
    )
    # Residuals that are not finite show in the drift.
    value = sde.loss.value(x) if isinstance(sde.loss, mf.ScalarLoss) else ()
    finite = all_finite((value, found.drift, found.diffusion))
    return Evaluated(found, v, _roughly_off(sde, x, normal), finite)


def _roughly_off(sde: SlowSDE, x: Vector, normal: Any) -> OffManifold:
    """As `off_manifold`, for less: what is replaced here is not computed."""
    # Whether the way back to Γ is negligible shows in its first digits: five took a quarter of the evaluation.
    found = off_manifold(sde.loss, x, normal)._replace(step=jnp.linalg.norm(sde.loss.newton_step(x, normal, ROUGH)))
    # A slope is compared with infinity where residuals vanish.
    return found if isinstance(normal, AbstractNormalSpace) else found._replace(slope=jnp.zeros_like(found.step))


def _check(sde: SlowSDE, x: Vector, at_equilibrium: bool, found: Evaluated) -> None:
    """ValueError unless numbers are sensible, and x is a regular point of Γ."""
    if found.finite:
        sde.optimizer.check(sde.chart, x)
    else:
        check_numbers(sde, x)  # which names what is not finite
    if at_equilibrium:
        check_state(sde, found.v, "v")
    check_on_manifold(found.off)
    if isinstance(sde.loss, mf.ScalarLoss):  # residuals that vanish leave no slope of these kinds
        check_standing(standing(sde, x, found.v), x.size)
    if not found.finite:
        raise ValueError(
            "The coefficients are not finite at params, though loss and noise are: is S(v) sensible there?"
        )

"""Drift and diffusion of the slow SDE at one point of Γ."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.support.compilation import compiled
from manifolds.support.precision import in_working_precision, is_traced
from manifolds.support.user_functions import shown

from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..support.arguments import is_number
from .checks import (
    OffManifold,
    check_on_manifold,
    check_standing,
    check_state,
    off_manifold,
    on_flat_coordinates,
    standing,
)
from .slow_sde import SlowSDE, equilibrium

Vector = Float[Array, " p"]


class Coefficients(eqx.Module):
    """The slow SDE at one point.

    Attributes:
        drift: params-like, the full Itô drift of ζ per unit of slow time.
        diffusion: (p, r), Π S B, rows in the order of `ravel_pytree(params)`.
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
        >>> c = coefficients(problem, adam(c=1.0), params)
        >>> jax.tree.map(jnp.shape, c.drift)
    """
    if not (t is None or is_traced(t) or (is_number(t) and not np.isnan(t))):
        raise ValueError(f"t={shown(t)} must be one slow time, or None for long after the start.")
    sde, x = on_flat_coordinates(problem, optimizer, params, route)
    v = equilibrium(sde, x) if v is None else v
    check_state(sde, v, "v")
    if t is None and optimizer.schedule is not None:
        raise ValueError("t=None, but the optimizer has a schedule: pass the slow time t at which to evaluate it.")
    # One compiled evaluation that also tells whether params lies on Γ: with a check of its own a call took 185 ms,
    # where the evaluation takes 51 (p = 20 000, n = 500). At t = ∞ the bias correction is forgotten.
    found, off = _coefficients(sde, x, v, jnp.asarray(jnp.inf if t is None else t, x.dtype))
    if not is_traced(found):
        check_on_manifold(off)
        if isinstance(sde.loss, mf.ScalarLoss):  # residuals that vanish leave no slope of these kinds
            check_standing(standing(sde, x, v), x.size)
    if sde.diffuses:
        return found
    shape = jax.eval_shape(sde.factor, x).shape
    # A view of one zero: at p = 10⁶ and n = 500 an array of them took 4 GB.
    zeros = jnp.zeros(shape, x.dtype) if is_traced(found) else np.broadcast_to(np.zeros((), x.dtype), shape)
    return eqx.tree_at(lambda c: c.diffusion, found, zeros, is_leaf=lambda leaf: leaf is None)


@compiled
def _coefficients(sde: SlowSDE, x: Vector, v: PyTree, t: Array) -> tuple[Coefficients, OffManifold]:
    """The coefficients, without a diffusion where it vanishes: (p, r) zeros need not be made; and where x is."""
    normal = sde.frame(x, v, resolved=True)
    found: Any = Coefficients(
        drift=sde.chart.unravel_arrays(sde.drift(x, normal, t)),
        diffusion=sde.diffusion(x, normal, t) if sde.diffuses else None,  # pyright: ignore[reportArgumentType]
        v_drift=sde.v_drift(x, v, t),
    )
    return found, off_manifold(sde, x, normal)

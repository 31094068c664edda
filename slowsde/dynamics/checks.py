"""Whether problem, optimizer, state and point fit each other, checked before a long computation starts."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.geometry import check_loss
from manifolds.maps.return_map import gauss_newton_return
from manifolds.support.arrays import ORIGIN, extent, signs
from manifolds.support.compilation import compiled_once
from manifolds.support.coordinates import Coordinates, check_finite, ravel
from manifolds.support.precision import is_traced
from manifolds.support.user_functions import check_signature

from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from .slow_sde import SlowSDE, noise_at, slow_sde

Vector = Float[Array, " p"]


def on_flat_coordinates(
    problem: AbstractProblem, optimizer: AGM, params: PyTree, route: str | Route = "auto"
) -> tuple[SlowSDE, Vector]:
    """The slow SDE and the flat vector of params, once problem, optimizer, noise and params are known to fit."""
    sde, x = fitted(problem, optimizer, params, route)
    check_numbers(sde, x)
    return sde, x


def fitted(
    problem: AbstractProblem, optimizer: AGM, params: PyTree, route: str | Route = "auto"
) -> tuple[SlowSDE, Vector]:
    """As `on_flat_coordinates`, by forms and shapes alone: nothing is computed, and nothing compiled."""
    chart = Coordinates.of(params)
    x = ravel(params)
    check_finite(params)
    sde = slow_sde(problem, optimizer, chart, route)
    # Each raises where a shape is wrong.
    jax.eval_shape(sde.factor, x)
    check_signature(sde.optimizer.V, "V(gradient)", 1)
    eqx.filter_eval_shape(sde.metric, sde.state_shapes())
    if sde.optimizer.decays:
        jax.eval_shape(lambda: sde.optimizer.decay(chart))
    return sde, x


def check_numbers(sde: SlowSDE, x: Vector) -> None:
    """ValueError unless loss, optimizer and noise have sensible values at x."""
    # The loss before the noise: a noise made of a loss that is not finite would be blamed for it.
    check_loss(sde.loss, x)
    if not is_traced(sde, x):
        sde.optimizer.check(sde.chart, x)
        if not np.isfinite(noise_size(sde, x)):
            shape = jax.eval_shape(sde.factor, x).shape
            raise ValueError(f"The noise factor B of shape {shape} is not finite at params.")


def check_rank(rank: int | None, sde: SlowSDE) -> None:
    """ValueError if H cannot have the rank that was given: with p parameters, and as many equations as residuals."""
    if rank is None:
        return
    most, of = sde.chart.size, "parameters"
    equations = getattr(sde.problem, "num_residuals", most)
    if equations < most:
        most, of = equations, "equations (residuals)"
    if rank > most:
        raise ValueError(f"rank={rank} is more than the number {most} of {of}. Pass rank=None to find it.")


def check_state(sde: SlowSDE, v: PyTree, name: str = "v0") -> None:
    """ValueError unless v has the structure of an optimizer state and S(v) is a metric."""
    check_state_form(sde, v, name)
    # v = 0 with bias correction stands for "no gradient yet": S(0) is not asked for, and may be infinite.
    if not is_traced(v) and not (sde.optimizer.bias_correction and is_zero(v)):
        sde.metric(v)  # raises where S(v) is not positive and finite


def is_zero(v: PyTree) -> bool:
    """Whether every entry of v is zero, looked at on the host."""
    return not any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(v))


def check_state_form(sde: SlowSDE, v: PyTree, name: str = "v0") -> None:
    """ValueError unless v has the structure of an optimizer state, and no entry that none can have."""
    expected = sde.state_shapes()
    shapes, wanted = jax.tree.map(np.shape, v), jax.tree.map(lambda leaf: leaf.shape, expected)
    if shapes != wanted:
        raise ValueError(
            f"{name} has leaves of shape {shapes}, but this optimizer's state has {wanted}. Pass {name}=None for the "
            "equilibrium V(Σ)."
        )
    if is_traced(v):
        return
    # Matrices in a state may be Shampoo's factors, whose entries have any sign; their metric is checked instead. All on
    # the host: a look at the device would be a program.
    diagonal = isinstance(eqx.filter_eval_shape(sde.metric, expected), mf.Diagonal)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(v)]
    if not all(np.all(np.isfinite(leaf) & (leaf >= 0)) for leaf in leaves if diagonal or leaf.ndim < 2):
        raise ValueError(f"{name} must be finite and not negative.")


STEEP = 1e4  # slopes over rounding that no rounding makes: x⁴ leaves 10⁶ and more
PACES = 257  # times at which a schedule is looked at


def check_pace(optimizer: AGM, t0: float, times: np.ndarray) -> None:
    """ValueError unless the schedule is finite and positive on the whole run, as far as many times of it tell."""
    if optimizer.schedule is None:
        return
    fine = np.linspace(t0, times[-1], PACES) if np.isfinite(times[-1]) else times
    ts = np.union1d(fine, times)
    found = paces(optimizer, ts)
    bad = ~((found > 0) & np.isfinite(found))
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"schedule is {found[first]:.3g} at t={ts[first]:.4g}: it must be positive and finite on the whole run, t "
            f"from {t0:g} to {times[-1]:g}. End the run before, or bound the schedule from below."
        )


def paces(optimizer: AGM, ts: np.ndarray) -> np.ndarray:
    """s(t) at all of the times."""
    return np.ones(ts.shape) if optimizer.schedule is None else np.asarray(_paces(optimizer, ts))


@compiled_once
def _paces(optimizer: AGM, ts: Any) -> Array:
    return jax.vmap(lambda t: jnp.asarray(optimizer.pace(t), float))(jnp.asarray(ts))


class Standing(NamedTuple):
    """What a point where the loss has no slope stands on."""

    negative: Float[Array, ""]  # the most negative eigenvalue of H, 0 for none
    rank: Array
    slope: Float[Array, ""]  # left after a step along the null space of H and a return, over what is rounding


@compiled_once
def standing(sde: SlowSDE, x: Vector, v: PyTree) -> Standing:
    """See `Standing`: on a manifold of minimizers a short step along it leads to others."""
    loss, metric = sde.loss, sde.metric(v)
    normal = loss.normal_space(x, metric)
    # A direction with no zero in it, so that no axis is favoured; a thousandth of the size of x.
    along = normal.project(jnp.cos(1.0 + jnp.arange(x.size)).astype(x.dtype))
    length = 1e-3 * extent(x, origin=ORIGIN) / jnp.maximum(jnp.linalg.norm(along), jnp.finfo(x.dtype).tiny)
    found = gauss_newton_return(loss, x + length * along, metric, normal.rank)
    slope = jnp.linalg.norm(metric.sqrt(loss.gradient(found.point)))
    rounding = jnp.finfo(x.dtype).eps * normal.largest * extent(metric.inv_sqrt(x), origin=ORIGIN)
    return Standing(loss.negative_curvature(x), normal.rank, slope / rounding)


def check_standing(found: Standing, size: int) -> None:
    """ManifoldError unless a point is one of a manifold of minimizers of constant rank."""
    if float(found.negative) < 0:
        raise mf.ManifoldError(
            f"params is a saddle or a maximum: the Hessian there has the eigenvalue {float(found.negative):.3g}. Move "
            "it to the minimizers with manifolds.limit_map(loss, params, metric)."
        )
    if int(found.rank) == 0:
        raise mf.ManifoldError(
            "The Hessian vanishes at params: no direction is normal to Γ, and the slow SDE has none."
        )
    if int(found.rank) == size:
        raise mf.ManifoldError(
            f"params is an isolated minimizer: the Hessian has full rank {size}, and nothing is slow."
        )
    if float(found.slope) > STEEP:
        raise mf.ManifoldError(
            f"params is no regular point of a manifold of minimizers: {size - int(found.rank)} directions have no "
            "curvature, but a short step along them leaves the minimizers (degenerate ones, or several manifolds that "
            "cross). Take a point off the crossing."
        )


def check_noise_on_manifold(sde: SlowSDE, x: Vector) -> None:
    """ValueError if the noise vanishes at x on Γ: then nothing moves on the slow clock."""
    size = noise_size(sde, x)
    # Per-sample gradients at a fitted point are what they change by within the rounding of x, not zero.
    if size <= (1e3 * float(_noise_rounding(sde, x)) if sde.diffuses else 0.0):
        raise ValueError(
            f"The noise vanishes on the manifold (|B| = {size:.2g} there), so nothing moves on the slow clock. "
            "Minibatch noise does so wherever every sample is fitted exactly; use LabelNoise or GaussianNoise."
        )


@compiled_once
def _noise_rounding(sde: SlowSDE, x: Vector) -> Array:
    """How much B changes within the rounding of x."""
    move = jnp.finfo(x.dtype).eps * extent(x) / x.size**0.5 * signs(x.size, x.dtype)
    return jnp.linalg.norm(jax.jvp(sde.factor, (x,), (move,))[1])


def noise_size(sde: SlowSDE, x: Vector) -> float:
    """|B(x)|, Frobenius; not finite where B is not."""
    return float(noise_at(sde, x)[0])

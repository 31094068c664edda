"""Whether problem, optimizer, state and point fit each other, checked before a long computation starts."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from manifolds.geometry import check_loss
from manifolds.normal.normal_space import AbstractNormalSpace
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import is_traced

from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from .slow_sde import SlowSDE, slow_sde

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
    sde = slow_sde(problem, optimizer, chart, route)
    jax.eval_shape(sde.factor, x)  # raises on a factor of the wrong shape
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
    expected = sde.state_shapes()
    shapes = jax.tree.map(jnp.shape, v)
    if shapes != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise ValueError(
            f"{name} has leaves of shape {shapes}, but this optimizer's state has "
            f"{jax.tree.map(lambda leaf: leaf.shape, expected)}. Pass {name}=None for the equilibrium V(Σ)."
        )
    if not is_traced(v):
        # Matrices in a state may be Shampoo's factors, whose entries have any sign; their metric is checked instead.
        if any(not bool(jnp.all(jnp.isfinite(leaf) & (leaf >= 0))) for leaf in jax.tree.leaves(v) if leaf.ndim < 2):
            raise ValueError(f"{name} must be finite and not negative.")
        # v = 0 with bias correction stands for "no gradient yet": S(0) is not asked for, and may be infinite.
        if any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(v)) or not sde.optimizer.bias_correction:
            sde.metric(v)  # raises where S(v) is not positive and finite


class OffManifold(NamedTuple):
    """How far a point is from Γ."""

    size: Float[Array, ""]  # 1 + |x|
    step: Float[Array, ""]  # the length of Newton's step
    slope: Float[Array, ""]  # |S^½∇L|
    flat: Float[Array, ""]  # what this is to be compared with


def off_manifold(sde: SlowSDE, x: Vector, normal: Any) -> OffManifold:
    """See `OffManifold`; `normal` is the `SlowSDE.frame` at x."""
    metric = normal.metric
    # Short steps to r = 0 leave no slope; of eigenpairs the null space may have one.
    largest = normal.largest if isinstance(normal, AbstractNormalSpace) else jnp.inf
    return OffManifold(
        1 + jnp.linalg.norm(x),
        jnp.linalg.norm(sde.loss.newton_step(x, normal)),
        jnp.linalg.norm(metric.sqrt(sde.loss.gradient(x))),
        largest * (1 + jnp.linalg.norm(metric.inv_sqrt(x))),
    )


def check_on_manifold(found: OffManifold) -> None:
    """ValueError unless params is on Γ to the square root of rounding: Newton's step back to Γ is negligible."""
    # Newton's step is quadratic: after one of the square root of rounding the point is on Γ to rounding.
    rounding = float(jnp.finfo(found.size.dtype).eps ** 0.5)
    if not found.step < rounding * found.size:
        raise ValueError(
            f"params is not on the manifold of minimizers: Newton's step towards it has length {float(found.step):.3g},"
            f" more than {float(rounding * found.size):.2g}. Move it there first with "
            "manifolds.limit_map(loss, params, metric)."
        )
    # Newton's step is blind along directions without curvature: a point on a slope once passed the first test.
    if not found.slope <= rounding * found.flat:
        raise ValueError(
            f"params is not on the manifold of minimizers: the loss has a slope there ({float(found.slope):.3g}). Move "
            "it there first with manifolds.limit_map(loss, params, metric)."
        )


def check_noise_on_manifold(sde: SlowSDE, x: Vector, curvature: Any) -> None:
    """ValueError if the noise vanishes at x on Γ: then nothing moves on the slow clock."""
    size = noise_size(sde, x)
    # Per-sample gradients at a fitted point are curvature × rounding of x, not zero.
    if size <= 1e3 * float(jnp.finfo(x.dtype).eps) * float(curvature) * (1 + float(jnp.linalg.norm(x))):
        raise ValueError(
            f"The noise vanishes on the manifold (|B| = {size:.2g} there), so nothing moves on the slow clock. "
            "Minibatch noise does so wherever every sample is fitted exactly; use LabelNoise or GaussianNoise."
        )


def noise_size(sde: SlowSDE, x: Vector) -> float:
    """|B(x)|, Frobenius; not finite where B is not."""
    return float(_noise_norm(sde, x))


# Compiled, as are all checks that evaluate the loss: run eagerly they cost seconds on large models.
@eqx.filter_jit
def _noise_norm(sde: SlowSDE, x: Vector) -> Array:
    return jnp.sqrt(sde.power(x, lambda b: b))

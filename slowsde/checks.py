"""Everything that is checked before a long computation starts. Each error names the argument, the value, the remedy."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.coordinates import Coordinates, ravel
from manifolds.geometry import check_loss
from manifolds.normal_space import AbstractNormalSpace
from manifolds.precision import is_traced, within_jit

from .optimizers import AGM
from .problems import AbstractProblem
from .route import Route
from .slow_sde import SlowSDE, slow_sde

Vector = Float[Array, " p"]


def on_flat_coordinates(
    problem: AbstractProblem, optimizer: AGM, params: PyTree, route: str | Route = "auto"
) -> tuple[SlowSDE, Vector]:
    """The slow SDE and the flat vector of params, once problem, optimizer, noise and params are known to fit."""
    chart = Coordinates.of(params)
    x = ravel(params)
    sde = slow_sde(problem, optimizer, chart, route)
    check_loss(sde.loss, x)
    factor = jax.eval_shape(sde.factor, x)  # raises on a factor of the wrong shape
    if not is_traced(sde, x):
        optimizer.check(chart, x)
        if not np.isfinite(noise_size(sde, x)):
            raise ValueError(f"The noise factor B of shape {factor.shape} is not finite at params.")
    return sde, x


def check_state(sde: SlowSDE, x: Vector, v: PyTree, name: str = "v0") -> None:
    """ValueError unless v has the structure of an optimizer state and S(v) is a metric."""
    expected = jax.eval_shape(sde.equilibrium, x)
    shapes = jax.tree.map(jnp.shape, v)
    if shapes != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise ValueError(
            f"{name} has leaves of shape {shapes}, but this optimizer's state has "
            f"{jax.tree.map(lambda leaf: leaf.shape, expected)}. Pass {name}=None for the equilibrium V(Σ)."
        )
    if not is_traced(v):
        if any(not bool(jnp.all(jnp.isfinite(leaf) & (leaf >= 0))) for leaf in jax.tree.leaves(v) if leaf.ndim < 2):
            raise ValueError(f"{name} must be finite and not negative.")
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
    rounding = float(jnp.finfo(found.size.dtype).eps ** 0.5)
    if not found.step < rounding * found.size:
        raise ValueError(
            f"params is not on the manifold of minimizers: Newton's step towards it has length {float(found.step):.3g},"
            f" more than {float(rounding * found.size):.2g}. Move it there first with "
            "manifolds.limit_map(loss, params, metric)."
        )
    if not found.slope <= rounding * found.flat:
        raise ValueError(
            f"params is not on the manifold of minimizers: the loss has a slope there ({float(found.slope):.3g}). Move "
            "it there first with manifolds.limit_map(loss, params, metric)."
        )


def check_noise_on_manifold(sde: SlowSDE, x: Vector, curvature: Any) -> None:
    """ValueError if the noise vanishes at x on Γ: then nothing moves on the slow clock."""
    size = noise_size(sde, x)
    if size <= 1e3 * float(jnp.finfo(x.dtype).eps) * float(curvature) * (1 + float(jnp.linalg.norm(x))):
        raise ValueError(
            f"The noise vanishes on the manifold (|B| = {size:.2g} there), so nothing moves on the slow clock. "
            "Minibatch noise does so wherever every sample is fitted exactly; use LabelNoise or GaussianNoise."
        )


def noise_size(sde: SlowSDE, x: Vector) -> float:
    """|B(x)|, Frobenius; not finite where B is not."""
    return float(_noise_norm(sde, x))


@eqx.filter_jit
def _noise_norm(sde: SlowSDE, x: Vector) -> Array:
    return jnp.sqrt(sde.power(x, lambda b: b))


def save_times(save_at: Any, t0: float, t1: float) -> np.ndarray:
    """The saved times: `save_at` equally spaced ones from t0 to t1, or those given. ValueError if either is bad."""
    if not (is_finite(t0) and is_finite(t1) and t1 > t0):
        raise ValueError(f"t1={t1!r} must be finite and larger than t0={t0!r}: slow time runs forward, t = kη².")
    if isinstance(save_at, (int, np.integer)) and not isinstance(save_at, bool):
        if save_at < 2:
            raise ValueError(f"save_at={save_at} must be at least 2 times (start and end), or an array of times.")
        return np.linspace(t0, t1, int(save_at))
    try:
        times = np.asarray(save_at, dtype=float)
    except (TypeError, ValueError):
        times = np.zeros(0)
    if times.ndim != 1 or times.size == 0 or not (np.all(np.diff(times) > 0) and t0 <= times[0] <= times[-1] <= t1):
        raise ValueError(f"save_at={save_at} must be a number of times or increasing times within [{t0}, {t1}].")
    return times


def is_finite(value: Any) -> bool:
    """Whether `value` is one finite real number (and no string, None or array)."""
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "iuf" and bool(np.isfinite(array))


def check_key(key: Any) -> PRNGKeyArray:
    """The key, `jax.random.key(0)` for None; ValueError for anything else."""
    try:
        key = jr.key(0) if key is None else key
        jr.fold_in(key, 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"key={key!r} must be one random key, such as jax.random.key(0).") from error
    return key


def check_concrete(name: str, *trees: PyTree) -> None:
    """ValueError inside jit, vmap or grad: a run chooses its solver and its steps by the values it meets."""
    if is_traced(*trees) or within_jit():
        raise ValueError(
            f"{name} was called inside jit, vmap or grad, where the values of its arguments are not known. Call "
            "it outside (it compiles itself); coefficients and manifolds.limit_map do work inside."
        )


def check_paths(paths: Any) -> int:
    """ValueError unless paths is a positive integer."""
    if not isinstance(paths, (int, np.integer)) or isinstance(paths, bool) or paths < 1:
        raise ValueError(f"paths={paths!r} must be a positive integer.")
    return int(paths)

"""The fast motion about Γ that the slow SDE averages out, measured at points of Γ: relaxation, fluctuations, stability.

Runs keep what a verdict needs of it, and `studies.validity` turns it into ratios.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.normal.normal_space import AbstractNormalSpace
from manifolds.support.arrays import nonzero
from manifolds.support.compilation import compiled_once

from ..problems.abstract import AbstractLabelledProblem
from ..problems.label_noise import LabelNoise
from .ensemble import map_points, points_in_block
from .slow_sde import SlowSDE

Vector = Float[Array, " p"]
DRAWS = 16  # fluctuations drawn at each point
FALLS = 2.0  # |S(v0)B| over |S(V(Σ))B| from which on the fall of S at the start is worth a look


def spectral_history(sde: SlowSDE, x: Vector, v: PyTree, normal: AbstractNormalSpace) -> dict[str, Array]:
    """What `simulate` keeps of a saved point for `studies.validity`: mean_relaxation and sampling_eigenvalue.

    `normal` are the eigenpairs of H' there.
    """
    if sde.has_sharpness:  # Σ' = αH', of which each q_i has the share λ_i/tr H'
        # Σ_i (λ_i/tr H')/λ_i = m/tr H', and |S^½B|² = α tr H'.
        mean = sde.hessian_scale * normal.rank / nonzero(sde.power(x, normal.metric.sqrt))
    else:
        mean = mean_relaxation(sde, x, normal)
    return {"mean_relaxation": mean, "sampling_eigenvalue": sampling_eigenvalue(sde, x, normal.metric, normal.largest)}


@compiled_once
def start_shares(sde: SlowSDE, x0: Vector, x: Vector, v: PyTree) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """How far off Γ a start x0 with the limit x is along each q_i, as shares of |x0 − x|²_{S⁻¹} that sum to 1, and λ_i.

    Zero where masked: tangential parts, of second order in the distance, do not relax.
    """
    normal = sde.normal_space(x, v)
    along = normal.coordinates(normal.metric.inv_sqrt(x0 - x)) ** 2
    return along / nonzero(jnp.sum(along)), jnp.where(normal.mask, normal.values, 0)


def start_motion(sde: SlowSDE, x: Vector, v: PyTree, contrast: float) -> Float[np.ndarray, "2 N"]:
    """Times after the start, and |S(v(t))B|² over |S(V(Σ))B|² there if x stays: in proportion to how fast ζ moves.

    `contrast` is its root at time 0 (see `flow.Scales`). The times are geometric over the fall of S.
    """
    c = float(sde.optimizer.c)
    times = np.concatenate([[0.0], np.geomspace(1e-2 / contrast**2, 8.0, 32)]) / c
    return np.stack([times, np.asarray(_powers(sde, x, v, jnp.asarray(times, x.dtype)))])


@compiled_once
def _powers(sde: SlowSDE, x: Vector, v: PyTree, times: Float[Array, " N"]) -> Float[Array, " N"]:
    target = sde.equilibrium(x)

    def at(time: Array) -> Array:
        return sde.power(x, sde.metric(sde.optimizer.relaxed(v, target, jnp.zeros_like(time), time)))

    return jax.lax.map(at, times) / sde.power(x, sde.metric(target))  # one after the other: each is a pass over J


def measure(sde: SlowSDE, xs: Array, vs: PyTree, rates: Float[np.ndarray, " T"]) -> dict[str, np.ndarray]:
    """Everything that `studies.validity` asks for at every point: xs (paths, T, p) -> (paths, T) each.

    `rates` are the learning rates in force at the saved times.
    """
    points = xs, vs, np.broadcast_to(rates, xs.shape[:2])
    return map_points(_measures_at, sde, points, points_in_block(sde, xs[0, 0]))


def _measures_at(sde: SlowSDE, point: tuple[Vector, PyTree, Array]) -> dict[str, Array]:
    x, v, lr = point
    normal = sde.normal_space(x, v)
    return {
        "largest": normal.largest,
        "smallest": normal.smallest,
        "mean_relaxation": mean_relaxation(sde, x, normal),
        "sampling": sampling_eigenvalue(sde, x, normal.metric, normal.largest),
        "fluctuation": fluctuation(sde, x, normal, lr),
        "directions": normal.rank.astype(x.dtype),
        **_of_rank(sde, x, normal),
        "metric": normal.metric.largest().astype(x.dtype),
    }


def _of_rank(sde: SlowSDE, x: Vector, normal: AbstractNormalSpace) -> dict[str, Array]:
    """The gap of the spectrum at a rank that is fixed along a run, and the rank that would be counted here.

    Where the rank is a finding an eigenvalue that dies passes every size, and nothing asks whether it still counts: its
    direction has the share λ_i/tr H' of the noise.
    """
    if sde.crosses_singular_points:
        return {"counted": normal.rank.astype(x.dtype)}
    counted = sde.loss.normal_space(x, normal.metric).rank
    return {"rank": spectral_gap(normal), "counted": counted.astype(x.dtype)}


def mean_relaxation(sde: SlowSDE, x: Vector, normal: AbstractNormalSpace) -> Array:
    """Σ_i w_i/λ_i, w_i the share of Σ' = S^½ΣS^½ along q_i: times η, the mean slow time of relaxing to Γ."""
    # Weighted by the noise: the longest relaxation alone, η/λ_min, was 1000 times what the run moves in at a gap of
    # 0.5 %.
    power = jnp.diagonal(normal_covariance(sde, x, normal))
    return jnp.sum(power * normal.inverse_values) / nonzero(jnp.sum(jnp.where(normal.mask, power, 0)))


def sampling_eigenvalue(sde: SlowSDE, x: Vector, metric: mf.AbstractMetric, largest: Array) -> Array:
    """(max_i tr H'_i − λ_max)/b for label noise on batches of b, else 0: H'_i = S^½ J_iᵀJ_i S^½ is that of sample i.

    The Hessian of one sample varies about H, which makes fluctuations feed on themselves: their variance is amplified
    by 1/(1 − s), s = η λ_max (1−β1)/(2(1+β1)) + ½ η (this number), at most. (Classification: J_iᵀΛ_iJ_i.)
    """
    problem, noise = sde.problem, sde.problem.noise
    if not isinstance(noise, LabelNoise) or noise.batch_size is None:
        return jnp.zeros((), x.dtype)
    assert isinstance(problem, AbstractLabelledProblem)
    norms = problem.least_squares_loss(sde.chart).row_norms(x, metric).reshape(problem.num_samples, -1)  # of J_i/√n
    return jnp.maximum(problem.num_samples * jnp.max(jnp.sum(norms, axis=1)) - largest, 0) / noise.batch_size


def fluctuation(sde: SlowSDE, x: Vector, normal: AbstractNormalSpace, lr: Array) -> Array:
    """½ |S^½(∇L(ζ+δ) − Hδ)|² / |S^½Hδ|², sums over draws of δ ~ N(0, ηC) along S·(normal space), C as in `validity`.

    C is the stationary covariance of the optimizer about Γ to leading order in η, whatever β1. The numerator is
    ½|T[δδᵀ]|² and the ratio of order η.
    """
    both = normal.mask[:, None] & normal.mask[None, :]
    # C'_ij = Σ'_ij/(λ_i+λ_j) as in `second_order`, its normal–normal block.
    sums = jnp.where(both, normal.values[:, None] + normal.values[None, :], 1)
    variances, axes = jnp.linalg.eigh(jnp.where(both, normal_covariance(sde, x, normal) / sums, 0))
    # The symmetric root of the covariance on fixed draws in R^p is continuous along a run: no sign of a q_i enters.
    draws = normal.coordinates(jr.normal(jr.key(0), (x.shape[0], DRAWS), x.dtype))
    y = jnp.sqrt(lr) * (axes @ (jnp.sqrt(jnp.maximum(variances, 0))[:, None] * (axes.T @ draws)))
    # ∇L(ζ) is rounding, but not against Hδ where λ is small: taken away.
    slope = sde.loss.gradient(x)
    forces = jax.vmap(lambda delta: sde.loss.gradient(x + delta) - slope, 1, 1)(normal.metric.sqrt(normal.lift(y)))
    linear = normal.lift(normal.values[:, None] * y)
    return 0.5 * jnp.sum((normal.metric.sqrt(forces) - linear) ** 2) / nonzero(jnp.sum(linear**2))


def normal_covariance(sde: SlowSDE, x: Vector, normal: AbstractNormalSpace) -> Float[Array, "m m"]:
    """Qᵀ S^½ Σ S^½ Q, the covariance of the noise along the q_i: α Diag(λ) where Σ = αH."""
    if sde.has_sharpness:
        return sde.hessian_scale * jnp.diag(jnp.where(normal.mask, normal.values, 0))
    b = normal.coordinates(normal.metric.sqrt(sde.factor(x)))
    return b @ b.T


def spectral_gap(normal: AbstractNormalSpace) -> Array:
    """The largest |λ_i| that counts as zero, at least rounding, over the smallest eigenvalue that does not."""
    rounding = jnp.finfo(normal.values.dtype).eps * normal.largest
    return jnp.maximum(jnp.max(jnp.where(normal.mask, 0, jnp.abs(normal.values))), rounding) / normal.smallest

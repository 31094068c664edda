"""The second derivative of Φ_S at a point of Γ, contracted with S Σ S, Σ = B Bᵀ: the Itô drift that noise causes.

    ½ ∂²Φ_S[SΣS] = −½ Π S T[C] − ½ S^½ (H')⁺ S^½ T[Σ_∥],        T[M] = ∇⟨∇²L, M⟩ with M held fixed

C = S^½ C' S^½ solves the Lyapunov equation in the coordinates S^-½ x: C'_ij = Σ'_ij/(λ_i + λ_j) in the eigenbasis of
H', Σ' = S^½ Σ S^½, zero where both eigenvalues vanish; Σ_∥ = Π S Σ S Πᵀ. The first term is tangential, the second
lies along S·(normal space) and keeps a diffusion on Γ. (Li, Wen and Lyu 2025; the second term is Itô's correction.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .losses.abstract import AbstractLoss
from .metrics.abstract import AbstractMetric
from .normal.normal_space import AbstractNormalSpace

Vector = Float[Array, " p"]
Factor = Float[Array, "p r"]


def lyapunov_factors(normal: AbstractNormalSpace, factor: Factor) -> tuple[Factor, Factor]:
    """Columns (u_k), (w_k) with C = ½ Σ_k (u_k w_kᵀ + w_k u_kᵀ), for Σ = B Bᵀ.

    With b = Qᵀ S^½ B and N = Q0 S^½ B, C' = Q X Qᵀ + Q Λ⁻¹ b Nᵀ + N bᵀ Λ⁻¹ Qᵀ, X_ij = (b bᵀ)_ij/(λ_i + λ_j): the
    normal–normal block and the two tangent–normal blocks. The tangent–tangent block is zero.
    """
    half = normal.metric.sqrt(factor)
    b = normal.coordinates(half)
    tangential = normal.metric.sqrt(normal.project_null(half))
    both = normal.mask[:, None] & normal.mask[None, :]
    weights = jnp.where(both, 1 / jnp.where(both, normal.values[:, None] + normal.values[None, :], 1), 0)
    basis = normal.metric.sqrt(normal.lift(jnp.eye(normal.values.shape[0], dtype=factor.dtype)))
    mixed = normal.metric.sqrt(normal.lift((normal.inverse_values * b.T).T))
    left = jnp.concatenate([basis, 2 * mixed], axis=1)
    right = jnp.concatenate([basis @ (weights * (b @ b.T)), tangential], axis=1)
    return left, right


def tangential_factor(normal: AbstractNormalSpace, factor: Factor) -> Factor:
    """Π S B: the diffusion on Γ, a factor of Σ_∥."""
    return normal.metric.sqrt(normal.project_null(normal.metric.sqrt(factor)))


def tangential_drift(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace, factor: Factor) -> Vector:
    """−½ Π S T[C]: the semi-gradient of ⟨∇²L, C⟩ along Γ (C is not differentiated)."""
    return -0.5 * normal.project_gradient(loss.contract_factors(x, *lyapunov_factors(normal, factor)))


def normal_drift(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace, factor: Factor) -> Vector:
    """−½ S^½ (H')⁺ S^½ T[Σ_∥]: the Itô term that keeps tangential noise on Γ."""
    return -0.5 * loss.normal_bending(x, normal, tangential_factor(normal, factor))


def sharpness_drift(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace) -> Vector:
    """−¼ Π S T[S]: what the tangential drift becomes for Σ = H, where it is the semi-gradient of ¼⟨∇²L, S⟩."""
    return -0.25 * normal.project_gradient(loss.contract_metric(x, normal.metric))


def sharpness_curvature(loss: AbstractLoss, x: Vector, metric: AbstractMetric) -> Vector:
    """diag of a positive semi-definite model of ∇²(¼⟨∇²L, S⟩): the damping an implicit step along it needs."""
    return 0.25 * loss.metric_curvature(x, metric)

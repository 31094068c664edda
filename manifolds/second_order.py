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
from .normal.constraints import TIGHT
from .normal.normal_space import AbstractNormalSpace

Vector = Float[Array, " p"]
Factor = Float[Array, "p r"]


def lyapunov_factors(normal: AbstractNormalSpace, factor: Factor) -> tuple[Factor, Factor]:
    """Columns (u_k), (w_k) with C = ½ Σ_k (u_k w_kᵀ + w_k u_kᵀ), for Σ = B Bᵀ.

    With b = Qᵀ S^½ B and N = Q0 S^½ B, C' = Q X Qᵀ + Q Λ⁻¹ b Nᵀ + N bᵀ Λ⁻¹ Qᵀ, X_ij = (b bᵀ)_ij/(λ_i + λ_j): the
    normal–normal block and the two tangent–normal blocks. The tangent–tangent block is zero.
    """
    # Σ' = S^½ΣS^½ has the factor S^½B: from here on in the coordinates S^-½x, in which the Lyapunov equation holds. (In
    # x itself it does not.)
    half = normal.metric.sqrt(factor)
    b = normal.coordinates(half)
    # S^½ N, whose products with the normal columns make the tangent–normal blocks.
    tangential = normal.metric.sqrt(normal.project_null(half))
    # The weights 1/(λ_i+λ_j) of X. Where an eigenvalue is masked the inner `where` keeps the quotient finite, and with
    # it derivatives through the outer one.
    both = normal.mask[:, None] & normal.mask[None, :]
    weights = jnp.where(both, 1 / jnp.where(both, normal.values[:, None] + normal.values[None, :], 1), 0)
    # S^½Q.
    basis = normal.metric.sqrt(normal.lift(jnp.eye(normal.values.shape[0], dtype=factor.dtype)))
    # S^½QΛ⁻¹b: between a normal and a tangential direction the weight is 1/(λ_i + 0).
    mixed = normal.metric.sqrt(normal.lift((normal.inverse_values * b.T).T))
    # Q Λ⁻¹ b Nᵀ and its transpose are one symmetrized product, hence the factor 2: ½·2 (u wᵀ + w uᵀ). Leaving out these
    # blocks is one of the mutants that the tests of the coefficients catch.
    left = jnp.concatenate([basis, 2 * mixed], axis=1)
    # Q X Qᵀ is a product of two p×m arrays: X needs no eigenvectors.
    right = jnp.concatenate([basis @ (weights * (b @ b.T)), tangential], axis=1)
    return left, right


def tangential_factor(normal: AbstractNormalSpace, factor: Factor) -> Factor:
    """Π S B: the diffusion on Γ, a factor of Σ_∥."""
    # Π S = S^½ Q0 S^-½ S = S^½ Q0 S^½.
    return normal.metric.sqrt(normal.project_null(normal.metric.sqrt(factor)))


def tangential_drift(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace, factor: Factor) -> Vector:
    """−½ Π S T[C]: the semi-gradient of ⟨∇²L, C⟩ along Γ (C is not differentiated)."""
    # Here Π S is applied, so that `contract_factors` may leave out any normal covector Jᵀμ: Π S Jᵀμ = 0.
    return -0.5 * normal.project_gradient(loss.contract_factors(x, *lyapunov_factors(normal, factor)))


def normal_drift(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace, factor: Factor) -> Vector:
    """−½ S^½ (H')⁺ S^½ T[Σ_∥]: the Itô term that keeps tangential noise on Γ."""
    return -0.5 * loss.normal_bending(x, normal, tangential_factor(normal, factor))


def sharpness_drift(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace, accuracy: float = TIGHT) -> Vector:
    """−¼ Π S T[S]: what the tangential drift becomes for Σ = H, where it is the semi-gradient of ¼⟨∇²L, S⟩."""
    # For Σ = H, C'_ij = λ_i δ_ij/(2λ_i): C' is ½ on the range of H' and C = ½S less a tangential block, whose
    # contraction is a normal covector: tᵀHt is least, 0, all along Γ for a tangent t. So −½ Π S T[C] = −¼ Π S T[S], and
    # with Σ = αH the factor is −α/4. (Papers print −α/2 as well; runs of Adam are off by more than 40 standard errors
    # then.)
    return -0.25 * normal.project_gradient(loss.contract_metric(x, normal.metric), accuracy)


def sharpness_hessian(loss: AbstractLoss, x: Vector, metric: AbstractMetric) -> Float[Array, "p p"] | None:
    """The whole of the model of which `sharpness_curvature` is the diagonal; None where it would cost too much."""
    found = loss.metric_hessian(x, metric)
    return None if found is None else 0.25 * found


def sharpness_curvature(loss: AbstractLoss, x: Vector, metric: AbstractMetric) -> Vector:
    """diag of a positive semi-definite model of ∇²(¼⟨∇²L, S⟩): the damping an implicit step along it needs."""
    return 0.25 * loss.metric_curvature(x, metric)

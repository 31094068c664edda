"""Cross-entropy against target probabilities, as least squares along its manifold of minimizers.

    L(x) = (1/n) Σ_i KL(π_i ‖ softmax f(x, z_i)) ≥ 0, and Γ = {softmax f(x, z_i) = π_i for all i}

On Γ the Hessian is H = (1/n) Σ J_iᵀ Λ_i J_i, J_i = ∂f(x, z_i)/∂x, Λ = diag(π) − ππᵀ. With F_i a (K−1)×K factor,
F_iᵀF_i = Λ_i and F_i 1 = 0, the residuals ρ_i = F_i (f_i − log π_i)/√n vanish on the same Γ, and ½|ρ|² has the same
Hessian along it. Projections, the bending of Γ and the tangential derivatives of H depend on nothing else, so all of
them may be had from ρ, whose Jacobian has n(K−1) rows. Only off Γ do the two losses differ.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, PyTree

from ..normal.jacobians import AbstractJacobian
from ..support.coordinates import Coordinates
from .abstract import Vector
from .least_squares import LeastSquaresLoss, second_order_product


def softmax_factor(probabilities: Float[Array, "... K"]) -> Float[Array, "... k K"]:
    """F, (K−1)×K, with FᵀF = Λ = diag(π) − ππᵀ and F1 = 0: F = Q Diag(√π), rows of Q orthonormal and normal to √π.

    Q is all but the first row of the Householder reflection that takes √π to −e_1. Smooth in π > 0.

    Example:
        >>> F = softmax_factor(jnp.array([0.5, 0.5]))
        >>> F.T @ F
        Array([[ 0.25, -0.25],
               [-0.25,  0.25]], dtype=float32)
    """
    # |√π| = 1, so that √π can be reflected to −e_1 and the other rows of the reflection are normal to it. F1 = Q√π = 0.
    u = jnp.sqrt(probabilities)
    size = u.shape[-1]
    # The sign + keeps the divisor 1 + √π_1 away from 0 for every π.
    normal = u.at[..., 0].add(1)  # u + e_1
    reflection = jnp.eye(size, dtype=u.dtype) - normal[..., :, None] * normal[..., None, :] / (1 + u[..., :1, None])
    return reflection[..., 1:, :] * u[..., None, :]


def kl_divergence(targets: Float[Array, "... K"], logits: Float[Array, "... K"]) -> Float[Array, "..."]:
    """KL(π ‖ softmax f) = Σ_k π_k (log π_k − log softmax(f)_k): the cross-entropy less its minimum, π's entropy."""
    # Without the entropy of the targets the loss would not vanish on Γ, and checks that a start interpolates could not
    # tell.
    return jnp.sum(xlogy(targets, targets) - targets * jax.nn.log_softmax(logits), axis=-1)


class FactoredLogits(eqx.Module):
    """(params, (z, F)) ↦ F f(params, z): the prediction whose least squares have the manifold of the cross-entropy."""

    logits: Callable[[PyTree, PyTree], Any]

    def __call__(self, params: PyTree, datum: tuple[PyTree, Float[Array, "k K"]]) -> Float[Array, " k"]:
        z, factor = datum
        return factor @ self.logits(params, z)


class CrossEntropyLoss(LeastSquaresLoss):
    """L(x) = (1/n) Σ_i KL(π_i ‖ softmax logits(x, z_i)), on Γ as the least squares of ρ_i = F_i (f_i − log π_i)/√n.

    `logits(params, z) -> (K,)`, `inputs` a pytree with leading axis n, `probabilities` (n, K), positive, rows of sum 1.
    Residuals, Jacobian, return to Γ and derivatives along it are those of ρ (see the module); value, gradient and the
    model of curvature that the flow to Γ is solved with are those of the cross-entropy.

    Example:
        >>> even = jnp.full((2, 4), 0.25)
        >>> loss = CrossEntropyLoss(lambda w, z: w @ z, jnp.ones((2, 3)), even, like=jnp.zeros((4, 3)))
        >>> loss.value(jnp.zeros(12)), loss.rows(jnp.zeros(12)).shape
        (Array(0., dtype=float32), (6, 12))
    """

    probabilities: Float[Array, "n K"]

    def __init__(
        self,
        logits: Callable[[PyTree, PyTree], Any],
        inputs: PyTree,
        probabilities: Float[Array, "n K"],
        like: PyTree | Coordinates,
        **route: Any,
    ):
        probabilities = jnp.asarray(probabilities)
        # Factors at the targets, constant in x: along Γ softmax f = π, so that Λ does not move there, and what its
        # change adds to a derivative off Γ is normal, which Π S kills.
        factors = softmax_factor(probabilities)
        targets = jnp.einsum("ikK,iK->ik", factors, jnp.log(probabilities))
        # F 1 = 0 makes F(f − log π) blind to a constant added to all logits, as the softmax is: K − 1 residuals a
        # sample, not K.
        super().__init__(FactoredLogits(logits), (inputs, factors), targets, like, **route)
        self.probabilities = probabilities

    def logits(self, x: Vector) -> Float[Array, "n K"]:
        """f(x, z_i) of every sample."""
        assert isinstance(self.predict, FactoredLogits)
        return jax.vmap(self.predict.logits, (None, 0))(self.coordinates.unravel(x), self.inputs[0])

    def value(self, x: Vector) -> Float[Array, ""]:
        # Not ½|ρ|²: the way to Γ is that of the optimizer's own loss, and the two differ off Γ.
        return jnp.mean(kl_divergence(self.probabilities, self.logits(x)))

    def residual(self, x: Vector) -> Float[Array, ""]:
        return jnp.max(jnp.abs(jax.nn.softmax(self.logits(x)) - self.probabilities))

    def curvature_jacobian(self, x: Vector) -> AbstractJacobian:
        # Off Γ the softmax weighs the outputs by Λ at its own probabilities, not by Λ at the targets.
        factors = softmax_factor(jax.nn.softmax(self.logits(x)))
        return eqx.tree_at(lambda loss: loss.inputs, self, (self.inputs[0], factors)).jacobian(x)

    def unseen_curvature(self, x: Vector) -> Callable[[Vector], Vector]:
        surplus = jax.nn.softmax(self.logits(x)) - self.probabilities  # ∂L/∂f, n times
        return second_order_product(self.logits, x, surplus / self.num_samples)

"""The normal space at a point of Γ in the metric S: eigenpairs (λ_i, q_i) of H' = S^½ H S^½ on its range.

Everything the geometry needs is a function of these pairs: the oblique projector Π, the pseudo-inverse, the Lyapunov
weights 1/(λ_i + λ_j). A route (dense eigenvectors or the kernel J S Jᵀ, with J stored or by products) only says how to
go between R^p and the coordinates along the q_i.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..metrics.abstract import AbstractMetric
from ..support.precision import in_double
from .jacobians import AbstractJacobian

COUNTED = -1  # a rank that is not given but counted, in programs that serve both


def rank_tolerance(dtype: jnp.dtype) -> float:
    """Eigenvalues below this fraction of the largest count as zero: 4e-10 in float64, 7e-5 in float32."""
    # Between rounding of a spectrum, some eps, and the smallest eigenvalues that can be told from it. Where there is no
    # gap in between the limit map refuses and asks for a rank.
    return float(jnp.finfo(dtype).eps) ** 0.6


class AbstractNormalSpace(eqx.Module):
    """Eigenpairs of H' with nonzero eigenvalue; `values` are descending and `mask` marks the `rank` true ones."""

    metric: eqx.AbstractVar[AbstractMetric]
    values: eqx.AbstractVar[Float[Array, " m"]]
    mask: eqx.AbstractVar[Bool[Array, " m"]]

    @abc.abstractmethod
    def coordinates(self, w: Float[Array, "p *r"]) -> Float[Array, "m *r"]:
        """Qᵀ w, the components along the q_i (zero where masked)."""

    @abc.abstractmethod
    def lift(self, c: Float[Array, "m *r"]) -> Float[Array, "p *r"]:
        """Q c = Σ_i c_i q_i over the true q_i."""

    @property
    def inverse_values(self) -> Float[Array, " m"]:
        """1/λ_i, zero where masked: the eigenvalues of (H')⁺."""
        # Never 1/0, not even where it is not taken: derivatives through `where` would be NaN.
        return jnp.where(self.mask, 1 / jnp.where(self.mask, self.values, 1), 0)

    @property
    def rank(self) -> Int[Array, ""]:
        """The rank of H (that of H', by Sylvester)."""
        return jnp.sum(self.mask)

    @property
    def smallest(self) -> Float[Array, ""]:
        """The smallest nonzero eigenvalue of H'."""
        return jnp.min(jnp.where(self.mask, self.values, jnp.inf))

    @property
    def largest(self) -> Float[Array, ""]:
        """The largest eigenvalue of H'."""
        return self.values[0]

    def project_null(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """Q0 w, the part of w in the null space of H'. Applied twice: the second pass removes the rounding error
        that an ill-conditioned range leaves in the first."""
        # Measured on 30 rows in 200 dimensions, cond J = 10⁴: the first pass leaves 1.5e-10 of w, the second 2e-13.
        w = w - self.lift(self.coordinates(w))
        return w - self.lift(self.coordinates(w))

    def project(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """Π w with Π = S^½ Q0 S^-½ = ∂Φ_S: onto the tangent space, along S·(normal space)."""
        return self.metric.sqrt(self.project_null(self.metric.inv_sqrt(w)))

    def project_gradient(self, g: Float[Array, " p"], accuracy: float = 0.0) -> Float[Array, " p"]:
        """Π S g = S^½ Q0 S^½ g: the tangential part of a preconditioned gradient, to rounding whatever `accuracy`."""
        return self.metric.sqrt(self.project_null(self.metric.sqrt(g)))

    def solve(self, g: Float[Array, " p"]) -> Float[Array, " p"]:
        """S^½ (H')⁺ S^½ g: Newton's step for a gradient g, along S·(normal space)."""
        c = self.inverse_values * self.coordinates(self.metric.sqrt(g))
        return self.metric.sqrt(self.lift(c))

    def multipliers(self, g: Float[Array, " p"], accuracy: float = 0.0) -> Float[Array, " p"]:
        """μ with Hμ the part of the gradient g that holds against the constraints ∇L = 0, whatever `accuracy`."""
        return self.solve(g)


class DenseNormalSpace(AbstractNormalSpace):
    """From the eigendecomposition of the p×p matrix H'. Any loss; p up to about 2000."""

    metric: AbstractMetric
    values: Float[Array, " p"]
    mask: Bool[Array, " p"]
    vectors: Float[Array, "p p"]

    def __init__(self, hessian: Float[Array, "p p"], metric: AbstractMetric, rank: Int[Array, ""] | None = None):
        # S^½ H, and S^½ of its transpose is S^½ H S^½ = H'. Symmetrized, as `eigh` reads one triangle only.
        half = metric.sqrt(hessian)
        values, vectors = jnp.linalg.eigh(_symmetric(metric.sqrt(half.T)))
        self.metric = metric
        self.values = values[::-1]
        self.mask = _true_eigenvalues(self.values, rank)
        # Masked columns are zero, so that every product with Q leaves them out by itself, at fixed shapes.
        self.vectors = vectors[:, ::-1] * self.mask

    def coordinates(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.vectors.T @ w

    def lift(self, c: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.vectors @ c


class KernelNormalSpace(AbstractNormalSpace):
    """From the m×m kernel K = J S Jᵀ of a least-squares loss ½|r|² (J = ∂r/∂x): K = U Λ Uᵀ gives q = S^½ Jᵀ u/√λ.

    Nothing p×p is formed, and Q itself is applied through J.
    """

    metric: AbstractMetric
    values: Float[Array, " m"]
    mask: Bool[Array, " m"]
    vectors: Float[Array, "m m"]
    jacobian: AbstractJacobian

    def __init__(self, jacobian: AbstractJacobian, metric: AbstractMetric, rank: Int[Array, ""] | None = None):
        self.metric, self.jacobian = metric, jacobian
        # In double, as the condition of K is the square of that of J S^½.
        pairs = in_double(jnp.linalg.eigh)(jacobian.gram(metric))
        values, vectors = (found.astype(jacobian.dtype) for found in pairs)
        self.values = values[::-1]
        self.mask = _true_eigenvalues(self.values, rank)
        self.vectors = vectors[:, ::-1] * self.mask

    def coordinates(self, w: Float[Array, "p *r"]) -> Float[Array, "m *r"]:
        # Qᵀw = Λ^-½ Uᵀ J S^½ w, and `lift` is its transpose.
        return (jnp.sqrt(self.inverse_values) * (self.vectors.T @ self.jacobian(self.metric.sqrt(w))).T).T

    def lift(self, c: Float[Array, "m *r"]) -> Float[Array, "p *r"]:
        return self.metric.sqrt(self.jacobian.transposed(self.vectors @ (jnp.sqrt(self.inverse_values) * c.T).T))

    def solve_residual(self, r: Float[Array, " m"]) -> Float[Array, " p"]:
        """S Jᵀ (J S Jᵀ)⁺ r: the Gauss–Newton step, without squaring the condition number as `solve(Jᵀ r)` would."""
        # Measured with cond J = 10⁴: right to 8e-10, where S^½(H')⁺S^½(Jᵀr) is off by 8e-6.
        inverse = self.vectors @ (self.inverse_values * (self.vectors.T @ r))
        return self.metric(self.jacobian.transposed(inverse))


def _symmetric(matrix: Float[Array, "p p"]) -> Float[Array, "p p"]:
    return (matrix + matrix.T) / 2


def _true_eigenvalues(values: Float[Array, " m"], rank: Int[Array, ""] | None) -> Bool[Array, " m"]:
    # A rank fixed by the caller keeps its meaning when S spreads the spectrum of H' over many decades.
    counted = values > rank_tolerance(values.dtype) * jnp.maximum(values[0], 0)
    if rank is None:
        return counted
    return jnp.where(rank == COUNTED, counted, (jnp.arange(values.shape[0]) < rank) & (values > 0))

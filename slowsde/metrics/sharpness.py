"""The loss and its derivatives along a run: gradients, sharpnesses, eigenvalues."""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

import manifolds as mf

from ..dynamics.slow_sde import SlowSDE
from ..support.arguments import number
from .metric import Metric, Vector


def _diagonal(sde: SlowSDE, x: Vector) -> Vector:
    return jnp.maximum(sde.loss.hessian_diagonal(x), 0)  # rounding must not make a root of it imaginary


def trace_power_diag_hessian(exponent: float) -> Metric:
    """tr Diag(H)^exponent: what AdamE-λ minimizes under label noise, at exponent 1 − λ.

    Example:
        >>> metrics.trace_power_diag_hessian(0.25)  # of adame(c, lam=0.75)
    """
    exponent = number("exponent", exponent, "AdamE-λ minimizes the one of 1 − λ.")
    return Metric(f"trace_power_diag_hessian({exponent})", lambda sde, x, v: jnp.sum(_diagonal(sde, x) ** exponent))


def gradient_norm(eps: float = 0.0) -> Metric:
    """‖∇L‖_{1,ε} = Σ_i √((∂_iL)² + ε), ε ≥ 0: the norm in the correction of `backward_error`; the 1-norm for ε = 0.

    Example:
        >>> metrics.gradient_norm(eps=1e-2)
    """
    eps = number("eps", eps, least=0)
    return Metric(f"gradient_norm({eps})", lambda sde, x, v: jnp.sum(jnp.sqrt(sde.loss.gradient(x) ** 2 + eps)))


def _r_med(sde: SlowSDE, x: Vector, v: PyTree) -> Array:
    diagonal = jnp.abs(sde.loss.hessian_diagonal(x))
    return jnp.max(diagonal) / jnp.median(diagonal)


loss = Metric("loss", lambda sde, x, v: sde.loss.value(x))
"""L(θ)."""
trace_hessian = Metric("trace_hessian", lambda sde, x, v: jnp.sum(sde.loss.hessian_diagonal(x)))
"""tr H: what SGD minimizes under label noise."""
trace_sqrt_diag_hessian = Metric("trace_sqrt_diag_hessian", lambda sde, x, v: jnp.sum(jnp.sqrt(_diagonal(sde, x))))
"""tr Diag(H)^½: what Adam minimizes under label noise."""
adaptive_sharpness = Metric("adaptive_sharpness", lambda sde, x, v: sde.loss.trace(x, sde.metric(v)))
"""tr(S(v) H) = tr H', the sharpness in the optimizer's own metric."""
r_med = Metric("r_med", _r_med)
"""max_i |H_ii| / median_i |H_ii| (Jiang, Malik and Li)."""
largest_eigenvalue = Metric("largest_eigenvalue", lambda sde, x, v: sde.loss.largest_eigenvalue(x, mf.Identity()))
"""λ_max(H)."""
adaptive_largest_eigenvalue = Metric(
    "adaptive_largest_eigenvalue", lambda sde, x, v: sde.loss.largest_eigenvalue(x, sde.metric(v))
)
"""λ_max(H') = λ_max(S^½ H S^½): η times it bounds the step at which an adaptive method is stable."""

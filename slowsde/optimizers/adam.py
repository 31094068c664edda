"""Adam and its kin, with a second moment for every parameter: V = diag, S = Diag(1/(v^λ + ε))."""

from typing import Any, Unpack

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

import manifolds as mf
from manifolds.support.precision import is_traced

from ..support.arguments import is_symbolic, number
from .agm import AGM, Settings
from .elementary import root


class PowerMetric(eqx.Module):
    """v ↦ Diag(1/(v^power + ε)): Adam for power ½."""

    power: Any = eqx.field(static=True)
    eps: Any

    def __call__(self, v: PyTree) -> mf.Diagonal:
        raised = root if self.power == 0.5 else lambda leaf: leaf**self.power
        return mf.Diagonal(jax.tree.map(lambda leaf: 1 / (raised(leaf) + self.eps), v))


def square(gradient: PyTree) -> PyTree:
    """V(g gᵀ) = diag(g gᵀ) = g²."""
    return jax.tree.map(lambda g: g * g, gradient)


def rmsprop(c: Any, eps: float = 1e-8, **settings: Unpack[Settings]) -> AGM:
    """RMSProp: V = diag, S = Diag(1/(√v + ε)), no momentum. `settings` as in `sgd`.

    Example:
        >>> rmsprop(c=slow_rate(lr=0.1, b2=0.9)).b1
        0.0
    """
    return adame(c, 0.5, 0.0, eps, **settings)


def adam(c: Any, b1: float = 0.9, eps: float = 1e-8, **settings: Unpack[Settings]) -> AGM:
    """Adam: V = diag, S = Diag(1/(√v + ε)). Under label noise it minimizes tr Diag(H)^½ (as ε → 0).

    `settings` are the keywords bias_correction, weight_decay (which makes it AdamW) and schedule of `AGM`. The Adam of
    deep-learning libraries is `adam(c, bias_correction=True)`; the correction is forgotten after a time 1/c.

    Example:
        >>> adam(c=10.0).b1
        0.9
    """
    return adame(c, 0.5, b1, eps, **settings)


def adame(c: Any, lam: float, b1: float = 0.9, eps: float = 1e-8, **settings: Unpack[Settings]) -> AGM:
    """AdamE-λ: V = diag, S = Diag(1/(v^λ + ε)), 0 ≤ λ < 1. Under label noise it minimizes tr Diag(H)^{1−λ}.

    λ = ½ is Adam, λ = 0 is SGD up to a constant. `settings` as in `sgd`.

    Example:
        >>> adame(c=10.0, lam=0.75)
    """
    lam = number("lam", lam, "λ = ½ is Adam.", least=0, below=1)
    return AGM(square, PowerMetric(lam, checked_eps(eps)), c, b1, **settings)


def checked_eps(eps: Any) -> Any:
    """ε as an array, so that compiled code serves every value; ValueError if it is negative."""
    return eps if is_traced(eps) or is_symbolic(eps) else np.asarray(number("eps", eps, least=0))


class _RootMetric(eqx.Module):
    eps: Any

    def __call__(self, v: PyTree) -> mf.Diagonal:
        # r² = (∂E)² + ε is smooth where ∂E changes its sign, as an expansion in the step needs; √v + ε = |∂E| + ε is
        # not.
        return mf.Diagonal(jax.tree.map(lambda leaf: 1 / root(leaf + self.eps), v))


def adam_eps_inside(c: Any, b1: float = 0.9, eps: float = 1e-8, bias_correction: bool = True) -> AGM:
    """Adam with ε inside the root, S = Diag(1/√(v+ε)): the method that `backward_error` describes. RMSProp for b1 = 0.

    Example:
        >>> still = Problem(lambda w: 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2, GaussianNoise(0.0))  # full batch
        >>> optimizer = adam_eps_inside(slow_rate(lr=0.01, b2=0.95), eps=1e-2)
        >>> run = run_discrete(still, optimizer, params0, slow_time(100, 0.01), lr=0.01, paths=1, project=False)
    """
    return AGM(square, _RootMetric(checked_eps(eps)), c, b1, bias_correction=bias_correction)

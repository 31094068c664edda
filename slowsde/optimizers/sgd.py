"""Stochastic gradient descent: S = I."""

from typing import Unpack

from jaxtyping import PyTree

import manifolds as mf

from .agm import AGM, Settings


def sgd(b1: float = 0.0, **settings: Unpack[Settings]) -> AGM:
    """Stochastic gradient descent with momentum b1: S = I, no state. Under label noise it minimizes tr H.

    `settings` are the keywords bias_correction, weight_decay, mask and schedule of `AGM`, here and in the others.

    Example:
        >>> sgd().S(None)
        Identity()
    """
    # c = 1 stands for any: there is no state to relax.
    return AGM(no_state, euclidean, 1.0, b1, **settings)


def no_state(gradient: PyTree) -> None:
    """V of a method that keeps no second moment."""
    return None


def euclidean(v: PyTree) -> mf.Identity:
    """S = I."""
    return mf.Identity()

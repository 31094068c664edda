"""Coefficients are those of a manifold of minimizers, and of nothing else that has no slope."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf
import slowsde as ss

NOISE = ss.GaussianNoise(0.3)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: x[0] ** 2 - x[1] ** 2, "is a saddle or a maximum: .* the eigenvalue -2"),
        (lambda x: -(x @ x), "is a saddle or a maximum"),
        (lambda x: x @ x, "isolated minimizer: the Hessian has full rank 3"),
        (lambda x: jnp.sum(x**4), "The Hessian vanishes"),
        (lambda x: x[0] ** 2 + x[1] ** 4, "no regular point of a manifold"),
        (lambda x: x[0] ** 2 + (x[1] * x[2]) ** 2, "no regular point of a manifold"),
    ],
    ids=["saddle", "maximum", "isolated", "x^4", "degenerate", "crossing"],
)
def test_what_is_no_manifold_of_minimizers_is_refused(loss: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(mf.ManifoldError, match=message):
        ss.coefficients(ss.Problem(loss, NOISE), ss.sgd(), np.zeros(3))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_curved_manifold_is_one_at_every_scale(scale: float) -> None:
    ellipse = ss.Problem(lambda x: 0.25 * ((x[0] / scale) ** 2 + 4 * (x[1] / scale) ** 2 - 1) ** 2, NOISE)
    assert np.isfinite(ss.coefficients(ellipse, ss.sgd(), np.array([scale, 0.0])).drift).all()

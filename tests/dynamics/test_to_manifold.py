"""`to_manifold`: its tolerance is that of the way, not of the end."""

import numpy as np
import pytest

import slowsde as ss

RNG = np.random.default_rng(0)
INPUTS = RNG.choice([-1.0, 1.0], (4, 8))
PROBLEM = ss.LeastSquares(lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), INPUTS, INPUTS[:, 0], ss.LabelNoise(1.0))
START = {name: RNG.uniform(0.3, 0.6, 8) for name in "uv"}


def test_a_coarse_way_ends_on_the_manifold_beside_the_exact_end() -> None:
    exact, coarse = (ss.to_manifold(PROBLEM, START, rtol=rtol) for rtol in (1e-8, 1e-3))
    weights = coarse["u"] ** 2 - coarse["v"] ** 2
    assert np.max(np.abs(INPUTS @ weights - PROBLEM.targets)) < 1e-12
    off = max(float(np.max(np.abs(coarse[name] - exact[name]))) for name in START)
    assert 1e-9 < off < 1e-2


@pytest.mark.parametrize("rtol", [0.0, -1e-3, 2.0, np.nan, "1e-4"])
def test_a_tolerance_that_is_none_is_refused(rtol: object) -> None:
    with pytest.raises((ValueError, TypeError), match="rtol"):
        ss.to_manifold(PROBLEM, START, rtol=rtol)  # pyright: ignore[reportArgumentType]

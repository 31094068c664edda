"""A program that makes a problem after the other, each with functions of its own, goes on."""

import numpy as np
import pytest

import slowsde as ss
from manifolds.support import mappings


@pytest.mark.slow
@pytest.mark.skipif(mappings.mappings() is None, reason="the system does not tell")
@pytest.mark.parametrize("count", [300])
def test_three_hundred_problems_with_fresh_functions(count: int) -> None:
    """Before the mappings were counted the process died at the 75th problem or so."""
    counts, ends = [], []
    for _ in range(count):
        problem = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(0.3))
        found = ss.simulate(problem, ss.sgd(), np.array([0.1, 1.0]), 0.1, dt=0.05, save_at=2)
        ends.append(found.params[0, -1, 1])
        counts.append(mappings.mappings())
    allowed = mappings.mappings_allowed()
    assert allowed is not None
    assert max(counts) < (mappings.SHARE + 0.1) * allowed
    # Programs that were compiled again are the same programs.
    assert np.ptp(ends) == 0

"""A program that makes a problem after the other, each with functions of its own, goes on."""

import numpy as np
import pytest

import slowsde as ss
from manifolds.support import mappings


@pytest.mark.slow
@pytest.mark.skipif(mappings.mappings() is None, reason="the system does not tell")
@pytest.mark.parametrize("count", [300])
def test_three_hundred_problems_with_fresh_functions(count: int) -> None:
    """Before the mappings were counted the process died at the 75th problem or so. These do the same, and now are known
    as one: 1271 mappings and 441 MB from the first to the last."""
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


@pytest.mark.slow
@pytest.mark.skipif(mappings.mappings() is None, reason="the system does not tell")
def test_programs_of_functions_that_differ_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """About 610 mappings a problem: with a lower bound a few problems show what 60 do. They level off, and what is
    compiled again gives the same numbers."""
    monkeypatch.setattr(mappings, "SHARE", 0.1)

    def end(scale: float) -> float:
        loss = eval(f"lambda x: {scale} * (1 + x[1] ** 2) * x[0] ** 2")  # constants of the code, which no call shares
        problem = ss.Problem(loss, ss.GaussianNoise(0.3))
        return ss.simulate(problem, ss.sgd(), np.array([0.1, 1.0]), 0.1, dt=0.05, save_at=2).params[0, -1, 1]

    counts, ends = [], []
    for k in range(25):
        ends.append(end(0.5 + k % 24))
        counts.append(mappings.mappings())
    allowed = mappings.mappings_allowed()
    assert allowed is not None
    assert np.min(np.diff(counts)) < 0
    assert max(counts) < 0.2 * allowed
    assert ends[0] == ends[24]

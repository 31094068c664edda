"""Discrete runs through sparse ends, where the rank of H falls: saved iterates land on Γ there as anywhere."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

INPUTS = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))
EVEN = {"u": np.full(12, 0.7), "v": np.full(12, 0.5)}
ADAM = ss.adam(c=2.0, eps=1e-2)
TRACE = "trace_hessian"


def network(w: Any, z: Any) -> Any:
    return z @ (w["u"] ** 2 - w["v"] ** 2)


def logits(w: Any, z: Any) -> Any:
    return jnp.stack([network(w, z), 0.0])


TRUTH = INPUTS[:, 0] - INPUTS[:, 1]  # two of twelve
HALVES = np.stack([1 / (1 + np.exp(-TRUTH)), 1 / (1 + np.exp(TRUTH))], axis=1)
REGRESSION = ss.LeastSquares(network, INPUTS, TRUTH, ss.LabelNoise(1.0))
CLASSES = ss.Classification(logits, INPUTS, HALVES, ss.LabelNoise(batch_size=1))


@pytest.mark.parametrize(
    ("problem", "curvature"),
    [(REGRESSION, 1.0), (CLASSES, np.mean(np.prod(HALVES, axis=1)))],
    ids=["values", "classes"],
)
def test_iterates_land_where_the_rank_has_fallen(problem: Any, curvature: float) -> None:
    """H has rank 6 at the start and 3 from t = 3 on, where tr H = 4 Σ_i |w_i| λ, λ the curvature of a sample's loss."""
    start = ss.to_manifold(problem, EVEN)
    fast = ss.run_discrete(problem, ADAM, start, 4.0, lr=0.02, paths=8, save_at=9, metrics=(TRACE,))
    assert np.all(fast.result == ss.Result.SUCCESS)
    assert np.max(fast.stats["residual"]) < 1e-8
    ends = np.hstack([fast.params["u"][:, -1], fast.params["v"][:, -1]])
    assert np.all(np.sum(np.abs(ends) > 1e-4, axis=1) < 12)
    assert np.median(fast.metrics[TRACE][:, -1]) == pytest.approx(8 * curvature, rel=1e-3)


def test_what_a_discrete_run_advises_is_about_discrete_runs_and_works() -> None:
    """Noise throws iterates out of the basin of x³ − 3x = 3 into that of x = −1, where a residual is left for ever."""
    problem = ss.LeastSquares(
        lambda x, z: z * (x[0] ** 3 - 3 * x[0]) / 10, np.ones(1), np.array([0.3]), ss.LabelNoise(2.0)
    )
    start, rate = ss.to_manifold(problem, np.array([2.0, 1.0])), 0.2
    options: dict[str, Any] = {"paths": 8, "save_at": 6, "metrics": {"x": lambda x: x[0]}}
    with pytest.raises(ss.RunError, match=r"LEFT_MANIFOLD.*use project=False.*or a smaller lr") as caught:
        ss.run_discrete(problem, ss.sgd(), start, 4.0, lr=rate, **options)
    assert "dt" not in str(caught.value)
    assert "rtol" not in str(caught.value)
    found = caught.value.trajectory.metrics["x"]
    assert np.all(np.isfinite(found[:, 0]))
    assert np.any(np.isnan(found))
    assert np.all(ss.run_discrete(problem, ss.sgd(), start, 4.0, lr=rate, project=False, **options).result == 0)
    assert np.all(ss.run_discrete(problem, ss.sgd(), start, 1.0, lr=0.1 * rate, **options).result == 0)

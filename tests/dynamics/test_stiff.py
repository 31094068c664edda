"""Stiff slow flows: Adam under label noise drives coordinates to zero, where S = 1/ε, and the flow must not crawl."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf
import slowsde as ss
from manifolds.support.coordinates import Coordinates, ravel
from slowsde.dynamics.slow_sde import SlowSDE, StepFrame, slow_sde

D, N, SPARSE = 100, 50, 5
RNG = np.random.default_rng(0)
INPUTS = RNG.choice([-1.0, 1.0], size=(N, D))
TRUTH = np.zeros(D)
TRUTH[RNG.choice(D, SPARSE, replace=False)] = RNG.choice([-1.0, 1.0], SPARSE)
TIMES = [0.0, 0.05, 0.1, 0.2, 1.0]
L1 = {"l1": lambda p: jnp.sum(jnp.abs(p["u"])) + jnp.sum(jnp.abs(p["v"]))}


def predict(p: Any, z: Any) -> Any:
    return z @ (p["u"] ** 2 - p["v"] ** 2)


PROBLEM = ss.LeastSquares(predict, INPUTS, INPUTS @ TRUTH, ss.LabelNoise(0.5))


@pytest.fixture(scope="module")
def start() -> Any:
    return ss.to_manifold(PROBLEM, {"u": np.full(D, 0.3), "v": np.full(D, 0.3)})


def run(
    start: Any, solver: str = "auto", rtol: float = 1e-4, t1: float = 1.0, c: float = 10.0, eps: float = 1e-6
) -> ss.Trajectory:
    optimizer = ss.adam(c=c, eps=eps)
    times = [t1 * t for t in TIMES]
    return ss.simulate(
        PROBLEM, optimizer, start, t1, save_at=times, metrics=L1, solver=solver, rtol=rtol, max_steps=400
    )


@pytest.mark.parametrize(
    ("c", "t1"),
    [
        (10.0, 1.0),
        (np.inf, 1.0),
        *(pytest.param(c, t1, marks=pytest.mark.slow) for c, t1 in ((1e3, 1.0), (10.0, 100.0))),
    ],
)
def test_a_stiff_flow_reaches_the_sparse_solution_in_few_steps(start: Any, c: float, t1: float) -> None:
    """The minimizer of Σ|θ_i| on Γ is the truth here: Σ√|w_i| = 5. An explicit method needs 10⁵ steps and more."""
    found = run(start, c=c, t1=t1)
    assert found.stats["solver"] == "implicit"
    assert found.stats["num_steps"] < 400
    assert abs(found.metrics["l1"][0, -1] - SPARSE) < 0.005
    assert np.max(found.stats["residual"]) < 1e-6
    w = found.params["u"][0, -1] ** 2 - found.params["v"][0, -1] ** 2
    np.testing.assert_allclose(w, TRUTH, atol=1e-3)
    # Γ is singular at a sparse point: the ranks say so.
    assert found.stats["ranks"][0, 0] == N
    assert found.stats["ranks"][0, -1] == SPARSE


def test_the_damping_is_the_second_derivative_along_the_manifold() -> None:
    """diag of ∇²F − Σ μ_i ∇²r_i, F = (α/4)⟨∇²L, S⟩ and μ its multipliers, exact for a diagonal network whose Hessians
    of residuals are diagonal; the sign of the second part shows."""
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        start = {"u": 0.5 + rng.uniform(size=D), "v": 0.5 + rng.uniform(size=D)}
        targets = jnp.asarray(INPUTS) @ (start["u"] ** 2 - start["v"] ** 2)  # so that the start is on Γ
        task = ss.LeastSquares(predict, jnp.asarray(INPUTS), targets, ss.LabelNoise(0.5))
        sde = slow_sde(task, ss.adam(c=10.0), Coordinates.of(start))
        x = jnp.asarray(ravel(start))
        metric, loss = mf.Diagonal(jnp.asarray(rng.uniform(0.1, 1.0, x.size))), sde.loss

        def sharpness(y: Any) -> Any:
            return 0.25 * sde.hessian_scale * jnp.sum(metric.entries() * jnp.sum(loss.rows(y) ** 2, axis=0))

        rows = loss.rows(x)
        kernel = rows @ metric(rows.T)
        multipliers = jnp.linalg.solve(kernel, rows @ metric(jax.grad(sharpness)(x)))
        held = jnp.diagonal(jax.hessian(lambda y: multipliers @ loss.residuals(y))(x))
        exact = jnp.diagonal(jax.hessian(sharpness)(x)) - held
        h, frame = 0.3, StepFrame(multipliers, None)
        damped = sde.damped_constraints(x, metric, 0.0, jnp.asarray(h), frame).metric.entries()
        np.testing.assert_allclose(1 / damped, 1 / metric.entries() + h * jnp.maximum(exact, 0), rtol=1e-9)
        assert np.max(np.abs(held)) > 0.1 * np.max(np.abs(exact))
        # The frame's own multipliers hold in the metric of a step, which is this one for a step of no length.
        own = sde.implicit_frame(x, metric, 0.0, jnp.asarray(0.0)).multipliers
        np.testing.assert_allclose(own, multipliers, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_without_damping_the_implicit_solver_crawls_too(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the steps implicit is the damped metric: with S in its place 400 steps do not suffice."""
    monkeypatch.setattr(SlowSDE, "damped_constraints", lambda self, x, metric, *_: self.loss.constraints(x, metric))
    jax.clear_caches()  # compiled code does not see the change
    with pytest.raises(ss.RunError, match="max_steps"):
        run(start, "implicit")
    jax.clear_caches()


def test_implicit_and_explicit_solvers_agree_where_the_flow_is_not_stiff(start: Any) -> None:
    """ε = 0.02: the explicit solver, at a tight tolerance, is the judge; errors fall with the tolerance."""
    judge = run(start, "tsit5", rtol=1e-9, eps=0.02)
    assert judge.stats["solver"] == "tsit5"
    errors = []
    for rtol in (1e-4, 1e-6, 1e-8):
        found = run(start, "implicit", rtol=rtol, eps=0.02)
        errors.append(np.max(np.abs(found.metrics["l1"] / judge.metrics["l1"] - 1)))
        assert np.max(found.stats["residual"]) < 1e-12
    assert np.all(np.array(errors) < [5e-4, 2e-5, 5e-7])
    assert errors[2] < 0.01 * errors[0]


def test_an_explicit_solver_alone_says_that_the_flow_is_stiff(start: Any) -> None:
    with pytest.raises(ss.RunError, match="max_steps") as caught:
        ss.simulate(PROBLEM, ss.adam(c=10.0, eps=1e-6), start, 1.0, save_at=TIMES, solver="tsit5", max_steps=200)
    assert 0 < caught.value.trajectory.stats["failed_at"][0] < 1
    assert np.isfinite(caught.value.trajectory.params["u"][0, 0]).all()


@pytest.mark.slow
def test_the_quasi_static_limit_is_the_limit_of_fast_states(start: Any) -> None:
    """c → ∞: v = αV(H) at once. The distance to it falls like 1/c."""
    times = {"save_at": [0.0, 0.02], "metrics": L1, "solver": "tsit5", "rtol": 1e-8}
    limit = ss.simulate(PROBLEM, ss.adam(c=jnp.inf, eps=0.02), start, 0.02, **times).metrics["l1"][0, -1]
    gaps = [
        abs(ss.simulate(PROBLEM, ss.adam(c=c, eps=0.02), start, 0.02, **times).metrics["l1"][0, -1] - limit)
        for c in (1e3, 1e4)
    ]
    assert gaps[0] < 0.5
    assert 5 < gaps[0] / gaps[1] < 15


def test_diffusing_noise_refuses_the_solvers_of_the_flow() -> None:
    problem = ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(1.0))
    for solver in ("tsit5", "implicit"):
        with pytest.raises(ValueError, match="solver"):
            ss.simulate(problem, ss.sgd(), np.array([1.0, 0.0]), 1.0, solver=solver)

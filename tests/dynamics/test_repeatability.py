"""Noise belongs to the path and to the slow time of a step: chunks, resumed runs and other batch sizes repeat it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import slowsde as ss
from slowsde.dynamics.diffusion import noise_cells, step_grid
from slowsde.dynamics.solvers.brownian import StepBrownianPath, drawn, step_keys

KEY, DT, PATHS = jr.key(5), 0.02, 6
START, V0 = {"a": np.array([0.9]), "b": np.array([0.6])}, {"a": np.array([0.3]), "b": np.array([0.6])}


def loss(p: Any) -> Any:
    return 0.25 * (p["a"][0] ** 2 + 2 * p["b"][0] ** 2 - 1) ** 2


PROBLEM, OPTIMIZER = ss.Problem(loss, ss.GaussianNoise(np.diag([0.5, 0.8]))), ss.adam(c=2.0, eps=0.05)


def run(t1: float, save_at: Any, paths: int = PATHS, **kw: Any) -> ss.Trajectory:
    settings: dict[str, Any] = {"v0": V0, "key": KEY, "dt": DT} | kw
    return ss.simulate(PROBLEM, OPTIMIZER, START, t1, paths=paths, save_at=save_at, **settings)


def same(a: Any, b: Any, exact: bool = True) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if exact else 1e-12)


@pytest.fixture(scope="module")
def whole() -> ss.Trajectory:
    return run(0.5, [0.2, 0.3, 0.5])


@pytest.fixture(scope="module")
def half() -> ss.Trajectory:
    return run(0.3, [0.2, 0.3])


@pytest.mark.as_users
def test_a_run_in_chunks_is_the_same_run_to_the_last_bit(
    whole: ss.Trajectory, half: ss.Trajectory, tmp_path: Path
) -> None:
    """Every path, ζ and v, through a file as well; another key or another dt are other runs."""
    rest = ss.resume(PROBLEM, OPTIMIZER, ss.load(half.save(tmp_path / "half.npz")), 0.5, save_at=[0.5])
    same((half.params, half.v), jax.tree.map(lambda leaf: leaf[:, :2], (whole.params, whole.v)))
    same((rest.params, rest.v), jax.tree.map(lambda leaf: leaf[:, 2:], (whole.params, whole.v)))
    assert half.stats["num_steps"] + rest.stats["num_steps"] == whole.stats["num_steps"]
    other = ss.resume(PROBLEM, OPTIMIZER, half, 0.5, save_at=[0.5], key=jr.key(6))
    assert np.min(np.abs(other.params["a"] - rest.params["a"])) > 1e-4


@pytest.mark.as_users
def test_saved_times_within_a_step_leave_the_path_what_it_is(whole: ss.Trajectory) -> None:
    """Off the steps of dt as well: the differences are errors of a step cut in two, 0.3 % of what the path moves by
    (another Brownian path would be off by twice the spread); a run that ends within a step goes on to the last bit."""
    times = [0.2, 0.2131, 0.3, 0.4443, 0.5]
    cut, spread = run(0.5, times), np.std(whole.params["a"][:, 2])
    assert np.max(np.abs(cut.params["a"][:, [0, 2, 4]] - whole.params["a"])) < 0.05 * spread
    half = run(0.2131, [0.2, 0.2131])
    rest = ss.resume(PROBLEM, OPTIMIZER, half, 0.5, save_at=[0.3, 0.4443, 0.5])
    same((rest.params, rest.v), jax.tree.map(lambda leaf: leaf[:, 2:], (cut.params, cut.v)))


def test_simulate_from_the_end_of_a_run_meets_the_noise_of_the_uninterrupted_run(
    whole: ss.Trajectory, half: ss.Trajectory
) -> None:
    """By `t0`, `v0` and `key` alone; only the start is mapped to Γ anew, which rounds."""
    end, v = jax.tree.map(lambda leaf: leaf[0, -1], (half.params, half.v))
    rest = ss.simulate(PROBLEM, OPTIMIZER, end, 0.5, t0=0.3, v0=v, key=KEY, dt=DT, save_at=[0.5])
    same(rest.params, jax.tree.map(lambda leaf: leaf[:1, 2:], whole.params), exact=False)
    late = ss.simulate(PROBLEM, OPTIMIZER, end, 0.52, t0=0.32, v0=v, key=KEY, dt=DT, save_at=[0.52])
    assert abs(late.params["a"][0, 0, 0] - rest.params["a"][0, 0, 0]) > 1e-4  # a step later, other noise


def test_neither_saved_times_nor_the_number_of_paths_change_a_path(whole: ss.Trajectory) -> None:
    """Up to rounding: the steps and the compiled code are not the same."""
    more = run(0.5, [0.5], paths=PATHS + 3).params
    same(jax.tree.map(lambda leaf: leaf[:PATHS], more), jax.tree.map(lambda leaf: leaf[:, 2:], whole.params), False)
    assert np.unique(np.round(more["a"][:, 0, 0], 6)).size == PATHS + 3


def test_saved_times_leave_the_conventional_sde_its_path() -> None:
    def ends(save_at: Any) -> np.ndarray:
        how: dict[str, Any] = {"lr": 0.1, "v0": V0, "paths": 4, "key": KEY, "save_at": save_at}
        return ss.conventional_sde(PROBLEM, OPTIMIZER, START, 0.5, **how).params["a"][:, -1]

    plain = ends([0.5])
    assert np.max(np.abs(ends([0.233, 0.4181, 0.5]) - plain)) < 0.1 * np.std(plain)


@pytest.mark.slow
def test_a_resumed_flow_goes_on_where_it_stopped() -> None:
    problem = ss.LeastSquares(lambda p, z: z @ p**2, np.array([[1.0, -1.0, 2.0]]), np.array([1.0]), ss.LabelNoise(0.5))
    settings: dict[str, Any] = {"rtol": 1e-9, "paths": 2}
    whole = ss.simulate(problem, OPTIMIZER, np.array([0.9, 0.6, 0.7]), 1.0, save_at=[0.5, 1.0], **settings)
    half = ss.simulate(problem, OPTIMIZER, np.array([0.9, 0.6, 0.7]), 0.5, save_at=[0.5], **settings)
    rest = ss.resume(problem, OPTIMIZER, half, 1.0, save_at=[1.0])
    np.testing.assert_allclose(rest.params[:, 0], whole.params[:, 1], rtol=1e-4)


def test_bad_resumptions_are_refused_by_name(half: ss.Trajectory) -> None:
    with pytest.raises(ValueError, match="trajectory"):
        ss.resume(PROBLEM, OPTIMIZER, START, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="t1=0\\.1"):
        ss.resume(PROBLEM, OPTIMIZER, half, 0.1)
    failed = ss.Trajectory(half.ts, half.params, half.v, {}, half.stats, np.array([0, 0, 1, 0, 0, 0]))
    with pytest.raises(ValueError, match="path 2"):
        ss.resume(PROBLEM, OPTIMIZER, failed, 1.0)


# The increments themselves ------------------------------------------------------------------------


def increments(grid: np.ndarray, dt: float, paths: int = 1, stride: int = 1) -> np.ndarray:
    """(paths, steps, 3)."""
    with jax.enable_x64(True):
        knots, keys = jnp.asarray(grid), step_keys(KEY, grid, dt)

        def path(index: Any) -> Any:
            coarse = knots[::stride]
            return jax.vmap(StepBrownianPath(knots, keys, index, 3, stride).evaluate)(coarse[:-1], coarse[1:])

        return np.asarray(jax.jit(jax.vmap(path))(jnp.arange(paths)))


def test_coarse_increments_are_sums_of_the_fine_ones() -> None:
    grid = np.linspace(0, 1, 65)
    fine = increments(grid, 1 / 64)
    for stride in (2, 8):
        np.testing.assert_allclose(
            increments(grid, 1 / 64, stride=stride), fine.reshape(1, -1, stride, 3).sum(axis=2), atol=1e-15
        )


def test_no_two_steps_or_paths_share_their_noise() -> None:
    """With uneven steps, far from zero and before it, too: an index by round(t/dt) would repeat some."""
    for t0, times in ((0.0, [0.13, 0.2, 1.0]), (1e4, [1e4 + 0.35, 1e4 + 1]), (-1.0, [-0.77, 0.3])):
        grid = step_grid(np.array(times), t0, times[-1], 0.1)
        drawn = increments(grid, 0.1, paths=2)
        assert np.unique(drawn).size == drawn.size


def test_thousands_of_steps_near_a_singular_start_have_keys_of_their_own() -> None:
    """43 557 graded steps, of which 12 000 start within dt/2²⁰ of t = 0."""
    grid = step_grid(np.array([1.0]), 0.0, 1.0, 1e-4, 1e-16)
    keys = np.asarray(jax.random.key_data(step_keys(jax.random.key(0), grid, 1e-4)))
    assert np.unique(keys, axis=0).shape[0] == grid.size - 1 > 40_000


def test_increments_have_the_law_of_a_brownian_motion() -> None:
    """60 000 increments over steps of two lengths: mean 0, variance h, no correlation of neighbours, 4.5 s.e."""
    grid = np.concatenate([np.linspace(0, 1, 10_000, endpoint=False), np.linspace(1, 3, 10_001)])
    scaled = increments(grid, 2e-4)[0] / np.sqrt(np.diff(grid))[:, None]
    n = scaled.size
    assert abs(scaled.mean()) < 4.5 / np.sqrt(n)
    assert abs(scaled.var() - 1) < 4.5 * np.sqrt(2 / n)
    assert abs(np.mean(scaled[1:] * scaled[:-1])) < 4.5 / np.sqrt(n)


def motion(times: np.ndarray, t0: float = 0.0, t1: float = 1.0, dt: float = 0.1, paths: int = 1) -> Any:
    """{t: W(t) − W(t0)} at the knots of a grid that is cut at these times, leaves (paths, 3)."""
    grid = step_grid(times, t0, t1, dt)
    with jax.enable_x64(True):
        noise = drawn(KEY, grid, times, dt, float, noise_cells(t0, t1, dt))

        def path(index: Any) -> Any:
            return jax.vmap(noise.of_path(index, 3).evaluate)(grid[:-1], grid[1:])

        parts = np.asarray(jax.jit(jax.vmap(path))(jnp.arange(paths)))
    # Summed here to more digits than they have: what differs is then theirs.
    found = np.cumsum(parts, axis=1, dtype=np.longdouble).astype(float)
    return {float(t): found[:, k] for k, t in enumerate(grid[1:])}


@pytest.mark.as_users
def test_a_brownian_path_is_there_before_it_is_looked_at() -> None:
    """W at a time is the same whatever other times are asked for, within a step and elsewhere, and from where on."""
    some, more = motion(np.array([0.137, 0.8])), motion(np.linspace(0.0, 1.0, 57)[1:] ** 1.1)
    both = motion(np.union1d([0.137], np.linspace(0.0, 1.0, 57)[1:] ** 1.1))
    for found in (some, more):
        for t, w in found.items():
            np.testing.assert_allclose(w, both[min(both, key=lambda s: abs(s - t))], rtol=0, atol=1e-14)
    late = motion(np.array([0.8]), t0=0.137)
    np.testing.assert_allclose(late[0.8], some[0.8] - some[0.137], rtol=0, atol=1e-14)


def test_parts_of_a_step_have_the_law_of_a_brownian_motion() -> None:
    """Covariance min(s, t) within a step of length 1, of 20 000 paths × 3: times that share nodes of the tree, dyadic
    ones, and two that are nearer than its usual depth tells apart. 5 standard errors."""
    times = np.array([0.1, 0.25, 0.3, 0.3 + 1e-5, 0.3 + 3e-5, 0.77, 1.0])
    found = motion(times, dt=1.0, paths=20_000)
    w = np.stack([found[float(t)] for t in times]).reshape(times.size, -1)
    increments, lengths = np.diff(w, axis=0, prepend=0.0), np.diff(times, prepend=0.0)
    scaled = increments / np.sqrt(lengths)[:, None]
    n = scaled.shape[1]
    gaps = scaled @ scaled.T / n - np.eye(times.size)
    assert np.max(np.abs(gaps)) < 5 * np.sqrt(2 / n)


def test_a_saved_time_that_is_a_step_to_rounding_makes_no_other() -> None:
    for t0, dt in ((0.0, 0.02), (0.3, 0.02), (-1.0, 0.1), (1e4, 0.1)):
        times = t0 + dt * np.array([1, 2, 5, 10]) * (1 + 1e-15)
        grid = step_grid(times, t0, times[-1], dt)
        assert grid.size == 11
        np.testing.assert_allclose(np.diff(grid), dt, rtol=1e-6)
        assert np.isin(times, grid).all()

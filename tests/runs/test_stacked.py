"""Many starts in one run: each path is the run from its start alone, and a start that fails takes no other with it."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import slowsde as ss
from slowsde.dynamics.result import Result

INPUTS = np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 6))
COUNT = 5
STARTS = {
    "u": np.random.default_rng(1).uniform(0.4, 0.9, (COUNT, 6)),
    "v": np.random.default_rng(2).uniform(0.4, 0.9, (COUNT, 6)),
}
ADAM = ss.adam(c=2.0, eps=1e-2)


def predict(w: Any, z: Any) -> Any:
    return z @ (w["u"] ** 2 - w["v"] ** 2)


LABELS = ss.LeastSquares(predict, INPUTS, INPUTS[:, 0], ss.LabelNoise(std=1.0))
KICKED = ss.LeastSquares(predict, INPUTS, INPUTS[:, 0], ss.GaussianNoise(0.1))


def alone(number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], STARTS)


def assert_path(many: ss.Trajectory, path: int, one: ss.Trajectory, other: int = 0, **tolerance: float) -> None:
    """Path `path` of many starts is path `other` of the run from its start."""
    for a, b in ((many.params, one.params), (many.v, one.v), (many.metrics, one.metrics)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[path], y[other], **tolerance), a, b)
    assert many.result[path] == one.result[other]


def test_flows_are_to_the_last_bit_those_of_their_starts() -> None:
    settings: dict[str, Any] = {"t1": 0.5, "save_at": 7, "metrics": ("trace_hessian", "trace_sqrt_diag_hessian")}
    many = ss.simulate(LABELS, ADAM, STARTS, **settings, stacked=True)
    assert many.params["u"].shape == (COUNT, 7, 6)
    for number in range(COUNT):
        assert_path(many, number, ss.simulate(LABELS, ADAM, alone(number), **settings), rtol=0)
    assert np.shape(many.stats["residual"]) == (COUNT, 7)
    assert np.shape(many.stats["start_distance"]) == (COUNT,)
    assert many.stats["rank"] == np.linalg.matrix_rank(INPUTS)
    assert many.stats["messages"] == {}


def test_stationary_points_of_many_starts() -> None:
    many = ss.stationary_point(LABELS, ADAM, STARTS, metrics=("trace_sqrt_diag_hessian",), stacked=True)
    ends = [ss.stationary_point(LABELS, ADAM, alone(n), metrics=("trace_sqrt_diag_hessian",)) for n in range(COUNT)]
    np.testing.assert_array_equal(many.params["u"], [end.params["u"] for end in ends])
    np.testing.assert_array_equal(many.v["u"], [end.v["u"] for end in ends])
    for name in ("t", "speed", "stillness"):
        np.testing.assert_array_equal(getattr(many, name), [getattr(end, name) for end in ends])
    name = "trace_sqrt_diag_hessian"
    np.testing.assert_array_equal(many.metrics[name], [end.metrics[name] for end in ends])
    np.testing.assert_array_equal(many.trajectory.stats["times"][:, -1], many.t)
    assert repr(many).startswith("<StationaryPoint of 5 starts at t=")


def test_what_diffuses_has_the_noise_of_its_path() -> None:
    settings: dict[str, Any] = {"t1": 0.05, "dt": 1e-3, "save_at": 3, "metrics": ("trace_hessian",)}
    many = ss.simulate(KICKED, ADAM, STARTS, **settings, stacked=True)
    for number in (0, 3):
        one = ss.simulate(KICKED, ADAM, alone(number), **settings, paths=COUNT)
        assert_path(many, number, one, number, rtol=1e-12)
    assert np.ptp(many.params["u"][:, -1], axis=0).min() > 0


@pytest.mark.parametrize("problem", [LABELS, KICKED])
@pytest.mark.parametrize("optimizer", [ADAM, optax.adam(0.01, b2=0.999)])
def test_discrete_runs_are_to_the_last_bit_those_of_their_starts(problem: Any, optimizer: Any) -> None:
    settings: dict[str, Any] = {"lr": 0.01, "save_at": 3, "metrics": ("trace_hessian",)}
    if optimizer is not ADAM:
        settings["like"] = ss.adam(c=10.0, bias_correction=True)
    many = ss.run_discrete(problem, optimizer, STARTS, 0.02, **settings, stacked=True)
    for number in (0, 3):
        one = ss.run_discrete(problem, optimizer, alone(number), 0.02, **settings, paths=COUNT)
        assert_path(many, number, one, number, rtol=1e-13)


def test_comparisons_go_by_pairs() -> None:
    """The spread of the starts is not in the error of the gap; by shuffled starts it would be."""
    settings: dict[str, Any] = {"save_at": 3, "metrics": ("trace_hessian",), "stacked": True}
    slow = ss.simulate(LABELS, ADAM, STARTS, 0.1, **settings)
    fast = ss.run_discrete(LABELS, ADAM, STARTS, 0.1, lr=0.01, **settings)
    found = ss.compare(slow, fast)
    gaps = fast.metrics["trace_hessian"][:, -1] - slow.metrics["trace_hessian"][:, -1]
    assert found.gap["trace_hessian"][-1] == pytest.approx(gaps.mean())
    assert found.standard_error["trace_hessian"][-1] == pytest.approx(gaps.std(ddof=1) / np.sqrt(COUNT))
    assert gaps.std() < 0.2 * fast.metrics["trace_hessian"][:, -1].std()
    assert ss.validity(LABELS, ADAM, slow, lr=0.01).verdict in ("comfortable", "doubtful")
    rest = ss.simulate(LABELS, ADAM, STARTS, np.inf, **settings)
    with pytest.raises(ValueError, match="each saved at times of its own"):
        ss.compare(rest, fast)


def test_a_start_that_fails_takes_no_other_with_it() -> None:
    # At zero nothing is learnt: all gradients vanish, and the loss is at a saddle.
    starts = jax.tree.map(lambda leaf: np.concatenate([leaf[:2], 0 * leaf[:1], leaf[2:]]), STARTS)
    ends = []
    for call in (
        lambda: ss.simulate(LABELS, ADAM, starts, 0.1, save_at=3, metrics=("loss",), stacked=True),
        lambda: ss.simulate(KICKED, ADAM, starts, 0.01, dt=1e-3, save_at=3, stacked=True),
        lambda: ss.run_discrete(KICKED, ADAM, starts, 0.01, lr=0.01, save_at=3, stacked=True),
        lambda: ss.stationary_point(LABELS, ADAM, starts, stacked=True).trajectory,
    ):
        with pytest.warns(UserWarning, match="1 of 6 starts lead to no run.* number 2: "):
            found = call()
        assert found.result.tolist() == [0, 0, Result.NO_MANIFOLD, 0, 0, 0]
        assert list(found.stats["messages"]) == [2]
        there = np.isfinite(found.params["u"]).all(axis=(1, 2))
        assert there.tolist() == [True, True, False, True, True, True]
        ends.append(found.params["u"][:, -1])
    # Noise is that of the number of the start: the failed one has its own as well.
    full = ss.simulate(KICKED, ADAM, STARTS, 0.01, dt=1e-3, save_at=3, stacked=True).params["u"][:, -1]
    np.testing.assert_allclose(ends[1][:2], full[:2], rtol=1e-12)
    assert np.abs(ends[1][3:] - full[2:]).max() > 1e-3


def test_arrays_without_one_leading_axis_are_refused() -> None:
    for bad in (
        {"u": STARTS["u"], "v": STARTS["v"][:3]},
        {"u": STARTS["u"], "v": np.float64(1.0)},
        {"u": STARTS["u"][:0], "v": STARTS["v"][:0]},
    ):
        with pytest.raises(ValueError, match=r"stacked=True: .* leading axis"):
            ss.simulate(LABELS, ADAM, bad, 0.1, stacked=True)
    with pytest.raises(ValueError, match="stacked"):
        ss.simulate(LABELS, ADAM, STARTS, 0.1, stacked="yes")  # pyright: ignore[reportArgumentType]


def test_a_killed_run_of_many_starts_goes_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from slowsde.support import pieces

    class Killed(BaseException):
        pass

    write, count = pieces.Checkpoint.write, 0

    def killed_after(self: Any) -> None:
        nonlocal count
        write(self)
        count += 1
        if count == 7:
            raise Killed

    def run(**more: Any) -> ss.Trajectory:
        return ss.simulate(LABELS, ADAM, STARTS, 0.5, save_at=7, stacked=True, **more)

    monkeypatch.setattr(pieces, "LENGTH", 1e-6)
    with monkeypatch.context() as patched:
        patched.setattr(pieces.Checkpoint, "write", killed_after)
        with pytest.raises(Killed):
            run(checkpoint=tmp_path / "run", checkpoint_every=1e-9)
    np.testing.assert_array_equal(run(checkpoint=tmp_path / "run").params["u"], run().params["u"])

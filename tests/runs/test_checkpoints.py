"""Runs that are killed, stopped or finished, with a checkpoint: the same call gives the bits of the run undisturbed."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import slowsde as ss
from slowsde.dynamics.result import Result
from slowsde.support import pieces
from slowsde.support.pieces import Checkpoint

pytestmark = pytest.mark.as_users

INPUTS = np.random.default_rng(0).choice([-1.0, 1.0], size=(4, 6))
START = {"u": np.full(6, 0.7), "v": np.full(6, 0.5)}
ADAM = ss.adam(c=2.0, eps=1e-2)
SETTINGS: dict[str, Any] = {"metrics": ("trace_hessian",)}


def predict(w: Any, z: Any) -> Any:
    return z @ (w["u"] ** 2 - w["v"] ** 2)


def problem(noise: Any) -> ss.LeastSquares:
    return ss.LeastSquares(predict, INPUTS, INPUTS[:, 0], noise)


KILLS = int(os.environ.get("SLOWSDE_KILLS", "40"))  # of each kind of run in the long study
LABELS, KICKED = problem(ss.LabelNoise(std=1.0)), problem(ss.GaussianNoise(0.1))
LIKE = ss.adam(c=10.0, bias_correction=True)
RUNS: dict[str, Callable[..., Any]] = {
    "flow": lambda **more: ss.simulate(LABELS, ADAM, START, 0.5, save_at=21, **SETTINGS, **more),
    "explicit flow": lambda **more: ss.simulate(LABELS, ADAM, START, 0.5, save_at=5, solver="tsit5", rtol=1e-9, **more),
    "flow in float32": lambda **more: ss.simulate(LABELS, ADAM, START, 0.5, save_at=5, dtype="float32", **more),
    "flow to rest": lambda **more: ss.simulate(LABELS, ADAM, START, np.inf, save_at=7, **SETTINGS, **more),
    "stationary point": lambda **more: ss.stationary_point(LABELS, ADAM, START, **SETTINGS, **more).trajectory,
    "diffusion": lambda **more: ss.simulate(KICKED, ADAM, START, 0.1, dt=1e-3, paths=9, save_at=5, **more),
    "discrete": lambda **more: ss.run_discrete(LABELS, ADAM, START, 0.05, lr=0.01, paths=9, save_at=5, **more),
    "discrete, as it is": lambda **more: ss.run_discrete(
        LABELS, ADAM, START, 0.05, lr=0.01, paths=3, save_at=5, project=False, **more
    ),
    "optax": lambda **more: ss.run_discrete(
        LABELS, optax.adam(0.01, b2=0.999), START, 0.05, lr=0.01, like=LIKE, paths=3, save_at=5, **more
    ),
}


class Killed(BaseException):
    """What a process would not live to see."""


@pytest.fixture(scope="module")
def whole() -> dict[str, ss.Trajectory]:
    return {}


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LENGTH", 1e-6)
    monkeypatch.setattr(pieces, "FIRST", 1)


def undisturbed(name: str, whole: dict[str, ss.Trajectory]) -> ss.Trajectory:
    if name not in whole:
        whole[name] = RUNS[name]()
    return whole[name]


def same(one: ss.Trajectory, other: ss.Trajectory) -> None:
    """Equal to the last bit, seconds apart."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "stats":
            a, b = ({k: v for k, v in stats.items() if k != "seconds"} for stats in (a, b))
        assert jax.tree.structure(a) == jax.tree.structure(b), field.name
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("writes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_killed_run_goes_on_to_the_same_bits(
    name: str, writes: int, whole: dict[str, ss.Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write, count = tmp_path / "run", Checkpoint.write, 0

    def killed_after(self: Checkpoint) -> None:
        nonlocal count
        write(self)
        count += 1
        if count == writes:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "write", killed_after)
        with pytest.raises(Killed):
            RUNS[name](checkpoint=file, checkpoint_every=1e-9)
    assert file.exists()
    same(RUNS[name](checkpoint=file), undisturbed(name, whole))
    # And once more, from the finished run: nothing is solved.
    monkeypatch.setattr(pieces.Pieces, "carry_out", None)
    same(RUNS[name](checkpoint=file), undisturbed(name, whole))


@pytest.mark.parametrize("name", ["flow", "flow to rest", "diffusion", "discrete"])
def test_ctrl_c_leaves_what_there_was_and_the_run_can_go_on(
    name: str, whole: dict[str, ss.Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, shown, count = tmp_path / "run", pieces.Line.show, 0

    def pressed(self: Any, done: Any) -> None:
        nonlocal count
        shown(self, done)
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pieces.Line, "show", pressed)
        with pytest.raises(ss.Interrupted, match="checkpoint=") as stopped:
            RUNS[name](checkpoint=file)
    found, full = stopped.value.trajectory, undisturbed(name, whole)
    assert (found.result == Result.INTERRUPTED).any()
    if name in ("flow", "diffusion"):
        there = np.isfinite(found.params["u"][..., 0])
        assert there.any()
        assert not there.all()
        np.testing.assert_array_equal(found.params["u"][there], full.params["u"][there])
    same(RUNS[name](checkpoint=file), full)


def test_the_file_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "run"
    RUNS["discrete"](checkpoint=file)
    for other, words in {
        "save_at": {"save_at": 4},
        "key": {"key": jax.random.key(3)},
        "paths": {"paths": 8},
        "lr": {"lr": 0.005},
        "project": {"project": False},
    }.items():
        given = {"lr": 0.01, "paths": 9, "save_at": 5, "checkpoint": file} | words
        with pytest.raises(ValueError, match=f"belongs to another run; what differs: .*{other} "):
            ss.run_discrete(LABELS, ADAM, START, 0.05, **given)
    cases = {
        "optimizer": (LABELS, ss.adam(c=3.0, eps=1e-2), START),
        "b1": (LABELS, ss.adam(c=2.0, b1=0.5, eps=1e-2), START),
        "loss": (ss.LeastSquares(predict, INPUTS, -INPUTS[:, 0], ss.LabelNoise(std=1.0)), ADAM, START),
        "noise": (problem(ss.LabelNoise(std=2.0)), ADAM, START),
        "gradients": (problem(ss.LabelNoise(std=1.0, kind="normal")), ADAM, START),
        "params0": (LABELS, ADAM, {"u": START["u"] + 0.1, "v": START["v"]}),
    }
    for other, given in cases.items():
        with pytest.raises(ValueError, match=rf"what differs: (.*, )?{other} \("):
            ss.run_discrete(*given, 0.05, lr=0.01, paths=9, save_at=5, checkpoint=file)
    with pytest.raises(ValueError, match="what differs: call"):
        RUNS["flow"](checkpoint=file)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("no checkpoint")
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        RUNS["flow"](checkpoint=file)
    saved = RUNS["flow"]().save(tmp_path / "trajectory.npz")
    with pytest.raises(ValueError, match="no checkpoint"):
        RUNS["flow"](checkpoint=saved)
    for bad in (tmp_path, tmp_path / "nowhere" / "run", 3):
        with pytest.raises(ValueError, match="checkpoint="):
            RUNS["flow"](checkpoint=bad)
    with pytest.raises(ValueError, match="checkpoint_every"):
        RUNS["flow"](checkpoint=tmp_path / "new", checkpoint_every=0)


def test_writing_takes_a_small_share_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, spent = Checkpoint.write, 0.0

    def slowly(self: Checkpoint) -> None:
        nonlocal spent
        began = time.monotonic()
        slow(self)
        time.sleep(0.01)
        spent += time.monotonic() - began

    def piece(at: Any, steps: int) -> tuple[Any, bool, float]:
        time.sleep(1e-3)
        return at + 1, bool(at > 1000), 0.0

    monkeypatch.setattr(Checkpoint, "write", slowly)
    checkpoint, began = Checkpoint(tmp_path / "run", every=10.0), time.monotonic()
    pieces.Pieces("run", False, checkpoint).carry_out("count", np.zeros(()), piece)
    assert spent > 0
    # The first two writes, of which the cost is not known, are apart.
    assert spent - 0.03 < 0.04 * (time.monotonic() - began)


def test_a_full_disk_is_told_and_loses_nothing(
    whole: dict[str, ss.Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Checkpoint.write, 0

    def full_at_times(self: Checkpoint) -> None:
        nonlocal count
        count += 1
        if count in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self)

    monkeypatch.setattr(Checkpoint, "write", full_at_times)
    with pytest.warns(UserWarning, match="could not be written .*No space left.* goes on") as told:
        found = RUNS["flow"](checkpoint=tmp_path / "run", checkpoint_every=1e-9)
    assert len(told) == 1
    assert count > 4
    same(found, undisturbed("flow", whole))
    same(RUNS["flow"](checkpoint=tmp_path / "run"), found)


def test_a_read_only_file_is_refused_before_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run"
    RUNS["flow"](checkpoint=file)
    file.chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        RUNS["flow"](checkpoint=file)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import slowsde as ss
ss.cache_compilations(sys.argv[4])
from slowsde.support import pieces
pieces.LENGTH = 1e-3
from test_checkpoints import RUNS
RUNS[sys.argv[2]](checkpoint=sys.argv[3], checkpoint_every=0.01)
print("done")
"""


def run_until_killed(name: str, file: Path, cache: Path, seconds: float) -> bool:
    """Whether a process with that run and its checkpoint is done before it is killed, so many seconds after the
    checkpoint was there."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), name, str(file), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as process:
        while process.poll() is None and not file.exists():
            time.sleep(0.002)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
    return b"done" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "flow to rest", "stationary point", "diffusion", "discrete"])
def test_processes_killed_at_random_moments_lose_nothing(
    name: str, whole: dict[str, ss.Trajectory], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moments, cache, done = np.random.default_rng(0), tmp_path_factory.mktemp("programs"), 0
    for number in range(KILLS):
        file = tmp_path / f"run{number}"
        done += run_until_killed(name, file, cache, moments.exponential(0.05))
        # A process that is gone leaves no temporary file.
        same(RUNS[name](checkpoint=file), undisturbed(name, whole))
        assert {path.name for path in tmp_path.iterdir()} == {f"run{k}" for k in range(number + 1)}
    print(f"{name}: {KILLS - done} of {KILLS} processes killed on their way, the others at their end")
    assert done < KILLS


def test_there_may_be_any_number_of_short_pieces() -> None:
    """As of hundreds of blocks of paths that take a few steps: pieces grow until they last a second, or for ever."""
    found = pieces.Pieces("run").carry_out("count", 0, lambda count, steps: (count + 1, count == 500, 0.0))
    assert found == 501

"""What is saved is there, whole and as it was; what is not is told."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
import pytest

import slowsde as ss
from slowsde.support import files

RNG = np.random.default_rng(0)
RUN = ss.Trajectory(
    np.linspace(0, 1, 5),
    {"w": RNG.normal(size=(3, 5, 2)), "b": RNG.normal(size=(3, 5))},
    {"w": RNG.uniform(size=(3, 5, 2)), "b": RNG.uniform(size=(3, 5))},
    {"loss": RNG.normal(size=(3, 5)), "trace": RNG.normal(size=(3, 5))},
    {"lr": 0.1, "spectrum": np.arange(3.0), "ranks": np.ones((3, 5)), "coupled": True, "digest": {"loss": "a"}},
    np.zeros(3, int),
    "slow",
)


def same(one: ss.Trajectory, other: ss.Trajectory) -> bool:
    trees = [(run.ts, run.params, run.v, run.metrics, run.result) for run in (one, other)]
    equal = jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    leaves = zip(*map(jax.tree.leaves, trees), strict=True)
    plain = [json.dumps(files.plain(run.stats)) for run in (one, other)]
    return equal and all(np.array_equal(a, b) for a, b in leaves) and plain[0] == plain[1] and one.label == other.label


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    assert same(ss.load(RUN.save(tmp_path / "run")), RUN)
    # The name that `save` was given will do.
    assert same(ss.load(tmp_path / "run"), RUN)


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = RUN.save(tmp_path / "run")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        RUN.save(path)
        assert path.stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(before)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "real.npz").touch()
    (tmp_path / "link.npz").symlink_to(tmp_path / "archive" / "real.npz")
    RUN.save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert same(ss.load(tmp_path / "archive" / "real.npz"), RUN)
    (tmp_path / "new.npz").symlink_to(tmp_path / "archive" / "none.npz")
    RUN.save(tmp_path / "new.npz")
    assert same(ss.load(tmp_path / "archive" / "none.npz"), RUN)


def test_a_read_only_file_is_left_alone(tmp_path: Path) -> None:
    path = RUN.save(tmp_path / "run")
    path.chmod(0o444)
    other = dataclasses.replace(RUN, ts=RUN.ts + 1)
    with pytest.raises(PermissionError, match="read-only"):
        other.save(path)
    assert same(ss.load(path), RUN)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


SAVING = """
import sys
import numpy as np, slowsde as ss
values = np.random.default_rng(int(sys.argv[2])).normal(size=(1, 200_000))
run = ss.Trajectory(np.arange(200_000.0), values, None, {}, {}, np.zeros(1, int))
print("ready", flush=True)
while True:
    run.save(sys.argv[1])
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_file_and_no_other(tmp_path: Path) -> None:
    for number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path / "run.npz"), str(number)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3 + 0.13 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "run.npz").exists():
            assert ss.load(tmp_path / "run.npz").ts.size == 200_000
    RUN.save(tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


def test_what_other_processes_left_is_cleared(tmp_path: Path) -> None:
    """As on a file system without files that have no name yet."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".run.npz.{dead.pid}.tmp").touch()
    alive = tmp_path / f".run.npz.{os.getppid()}.tmp"
    alive.touch()
    RUN.save(tmp_path / "run")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([alive.name, "run.npz"])


def test_without_nameless_files_saving_works_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    assert same(ss.load(RUN.save(tmp_path / "run")), RUN)
    monkeypatch.setattr(np, "savez_compressed", lambda *args, **arrays: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        RUN.save(tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]
    assert same(ss.load(tmp_path / "run"), RUN)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def outcomes(content: bytes, path: Path, bits: Any) -> dict[str, int]:
    counts = {"refused": 0, "the same": 0}
    for bit in bits:
        path.write_bytes(flipped(content, int(bit)))
        try:
            found = ss.load(path)
        except ValueError:
            counts["refused"] += 1
            continue
        assert same(found, RUN), f"bit {bit} changes what is read without a word"
        counts["the same"] += 1
    return counts


def test_no_flip_of_a_bit_is_silent(tmp_path: Path) -> None:
    content = RUN.save(tmp_path / "run").read_bytes()
    # All of the directory at the end, where a flip may drop an entry; some of the rest.
    directory = content.index(b"PK\x01\x02")
    picked = RNG.choice(8 * directory, 400, replace=False)
    ends = RNG.choice(np.arange(8 * directory, 8 * len(content)), 1600, replace=False)
    counts = outcomes(content, tmp_path / "run.npz", [*picked, *ends])
    assert counts["refused"] > 1000


@pytest.mark.slow
def test_no_flip_of_any_bit_is_silent(tmp_path: Path) -> None:
    content = RUN.save(tmp_path / "run").read_bytes()
    print(len(content) * 8, outcomes(content, tmp_path / "run.npz", range(8 * len(content))))


@pytest.mark.parametrize("length", [0, 1, 100, -200, -1])
def test_a_file_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    path = RUN.save(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"run\.npz is damaged"):
        ss.load(path)


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    text, archive, other = (tmp_path / name for name in ("text.npz", "archive.npz", "other.npz"))
    text.write_text("lr = 0.1")
    np.savez(archive, x=np.ones(2))
    np.savez(other, header=np.array(json.dumps({"format": 1})))
    for path in (text, archive, other):
        with pytest.raises(ValueError, match=r"no file of Trajectory\.save") as caught:
            ss.load(path)
        assert "pickle" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nothing"):
        ss.load(tmp_path / "nothing")


def rewritten(path: Path, header: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    """The file at `path` with other arrays or another header, and a checksum that fits."""
    kept = files.read_arrays(path)
    kept["header"] = np.array(json.dumps(json.loads(str(kept["header"])) | (header or {})))
    files.write_arrays(path, kept | {name.replace("__", "/"): array for name, array in arrays.items()})
    return path


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has format 3, and this version of slowsde reads up to 2: update it"):
        ss.load(rewritten(RUN.save(tmp_path / "run"), {"format": 3}))


@pytest.mark.parametrize(
    "arrays",
    [
        {"ts": np.zeros(4)},
        {"result": np.zeros(2, int)},
        {"metrics__loss": np.zeros((3, 4))},
        {"params__0": np.zeros((2, 5))},
        {"v__1": np.zeros((3, 4, 2))},
        {"ts": np.zeros((5, 1))},
    ],
)
def test_arrays_that_disagree_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="they disagree"):
        ss.load(rewritten(RUN.save(tmp_path / "run"), **arrays))


def test_files_of_the_first_format_are_read(tmp_path: Path) -> None:
    """They had no checksum."""
    arrays = files.read_arrays(RUN.save(tmp_path / "run"))
    arrays["header"] = np.array(json.dumps(json.loads(str(arrays["header"])) | {"format": 1}))
    np.savez_compressed(tmp_path / "old.npz", **arrays)  # pyright: ignore[reportArgumentType]
    assert same(ss.load(tmp_path / "old.npz"), RUN)


VALLEY = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=ss.GaussianNoise(0.3))
START = np.array([0.0, 1.0])


def half(problem: Any = VALLEY, optimizer: Any = None, **options: Any) -> ss.Trajectory:
    options = {"save_at": [0.1], "dt": 0.05} | options
    return ss.simulate(problem, ss.sgd() if optimizer is None else optimizer, START, 0.1, **options)


def test_a_run_with_keys_of_another_implementation_goes_on(tmp_path: Path) -> None:
    key = jr.key(3, impl="rbg")
    whole = ss.simulate(VALLEY, ss.sgd(), START, 0.2, save_at=[0.1, 0.2], dt=0.05, key=key)
    kept = ss.load(half(key=key).save(tmp_path / "run"))
    assert kept.stats["key_kind"] == "rbg"
    rest = ss.resume(VALLEY, ss.sgd(), kept, 0.2, save_at=[0.2])
    np.testing.assert_allclose(rest.params[0, -1], whole.params[0, -1], rtol=1e-12)


def test_an_integer_is_a_seed() -> None:
    np.testing.assert_array_equal(half(key=3).params, half(key=jr.key(3)).params)


def test_only_the_problem_and_the_optimizer_of_a_run_go_on_with_it(tmp_path: Path) -> None:
    kept = ss.load(half().save(tmp_path / "run"))
    again = ss.Problem(lambda y: 0.5 * (1 + y[1] ** 2) * y[0] ** 2, noise=ss.GaussianNoise(0.3))
    assert ss.resume(again, ss.sgd(b1=0.9), kept, 0.15, save_at=2).paths == 1
    others = (
        (
            ss.Problem(lambda x: 0.6 * (1 + x[1] ** 2) * x[0] ** 2, noise=ss.GaussianNoise(0.3)),
            ss.sgd(),
            "another loss",
        ),
        (ss.Problem(VALLEY.loss, noise=ss.GaussianNoise(0.4)), ss.sgd(), "another noise"),
        (VALLEY, ss.sgd(weight_decay=0.1), "another optimizer"),
        (VALLEY, ss.adam(c=1.0), "another optimizer"),
        (VALLEY, ss.sgd(schedule=lambda t: 1 / (1 + t)), "another optimizer"),
    )
    for problem, optimizer, said in others:
        with pytest.raises(ValueError, match=f"trajectory was made with {said}"):
            ss.resume(problem, optimizer, kept, 0.2)
        with pytest.raises(ValueError, match=f"slow was made with {said}"):
            ss.validity(problem, optimizer, kept, 0.1)


def test_xarray_goes_to_netcdf_with_all_stats(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    RUN.to_xarray().to_netcdf(tmp_path / "run.nc", engine="scipy")
    with xarray.open_dataset(tmp_path / "run.nc", engine="scipy") as found:
        np.testing.assert_array_equal(found["params['w']"], RUN.params["w"])
        np.testing.assert_array_equal(found["loss"], RUN.metrics["loss"])
        np.testing.assert_array_equal(found["stats.spectrum"], np.arange(3.0))
        assert found["stats.ranks"].dims == ("path", "time")
        assert found.attrs["lr"] == 0.1
        assert found.attrs["coupled"] == 1
        assert json.loads(found.attrs["digest"]) == {"loss": "a"}

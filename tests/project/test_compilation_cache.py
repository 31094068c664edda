"""`cache_compilations` keeps every program for the next process; nothing global changes without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import slowsde as ss
from slowsde.support import compilation, progress

RUN = """
import collections, json, os, sys
import jax, numpy as np
import slowsde as ss
import slowsde.support.progress as progress

names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
         "jax_persistent_cache_min_entry_size_bytes", "jax_enable_compilation_cache", "jax_enable_x64")
settings = lambda: {name: getattr(jax.config, name) for name in names}
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **about: counts.update([event.split("/")[-1]]))
before = settings()
if sys.argv[1]:
    assert str(ss.cache_compilations(sys.argv[1])) == str(ss.cache_compilations()) == sys.argv[1]
sys.stderr.isatty = lambda: True
shown = progress.step_meter("run", None, 10)
noise = ss.LabelNoise(0.5, batch_size=1)
problem = ss.LeastSquares(lambda w, z: z @ w**2, np.array([[1.0, 0.5, 0.2], [0.2, -1.0, 1.0]]), np.ones(2), noise)
point = ss.to_manifold(problem, np.ones(3))
ss.coefficients(problem, ss.adam(c=1.0, eps=0.1), point)
if sys.argv[2:]:
    optimizer = ss.adam(c=1.0, eps=0.1)
    ss.simulate(problem, optimizer, point, 0.1, save_at=3)
    ss.run_discrete(problem, optimizer, point, 0.1, lr=0.1, save_at=3, paths=2)
print(json.dumps({
    "counts": counts, "before": before, "after": settings(),
    "line": "NoProgressMeter" not in type(shown).__name__,
}))
"""


def run(folder: Path | str, *more: str) -> Any:
    """What a process of its own counts and is set to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", RUN, str(folder), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = run(tmp_path / "kept"), run(tmp_path / "kept")
    asked = second["counts"]["compile_requests_use_cache"]
    assert first["counts"]["cache_misses"] > 5
    assert asked == second["counts"]["cache_hits"] == first["counts"]["compile_requests_use_cache"]
    assert "cache_misses" not in second["counts"]
    assert not second["line"]  # a line would call Python, and such programs are not kept
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_flows_and_discrete_runs_are_kept(tmp_path: Path) -> None:
    """A check of times that calls Python would keep the largest programs off the disk."""
    run(tmp_path, "runs")
    second = run(tmp_path, "runs")["counts"]
    assert second["compile_requests_use_cache"] == second["cache_hits"]


def test_nothing_changes_without_the_call() -> None:
    found = run("")
    assert found["before"] == found["after"]
    assert found["after"]["jax_compilation_cache_dir"] is None
    assert "cache_misses" not in found["counts"]
    assert found["line"]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch):
    """What the call sets, set back."""
    before = {name: getattr(jax.config, name) for name in (*compilation.SETTINGS, "jax_compilation_cache_dir")}
    monkeypatch.setattr(sys, "platform", "linux")
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation.compilation_cache.reset_cache()


@pytest.mark.usefixtures("restored")
def test_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ss.cache_compilations() == tmp_path / "slowsde"
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
    assert ss.cache_compilations() == tmp_path / "told"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ss.cache_compilations() == tmp_path / ".cache" / "slowsde"


@pytest.mark.usefixtures("restored")
def test_another_folder_is_used_from_then_on(tmp_path: Path) -> None:
    for i, name in enumerate(("one", "other")):
        ss.cache_compilations(tmp_path / name)
        jax.block_until_ready(jax.jit(lambda x, i=i: x + i)(np.ones(3 + i)))
        assert any((tmp_path / name).iterdir())


@pytest.mark.usefixtures("restored")
def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad, words in (
        (tmp_path / "file", "is a file, or lies in one: pass the name of a folder"),
        (tmp_path / "file" / "in it", "is a file, or lies in one"),
        ("/proc/nowhere", "cannot be written to .*: pass a folder of your own"),
        ("", "must be the name of a folder"),
        (3, "3 must be the name of a folder"),
        (True, "True must be"),
        ("gs://bucket/cache", "must be a folder of this machine"),
    ):
        with pytest.raises(ValueError, match=f"path=.*{words}"):
            ss.cache_compilations(bad)  # pyright: ignore[reportArgumentType]
    assert not compilation.caches_compilations()


def test_steps_to_the_manifold_are_counted(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In a terminal a flow of more than 50 steps failed: the count came back as int32 where it was int64."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    problem = ss.Problem(lambda x: 0.5 * (x[0] * x[1] - 1) ** 2, noise=ss.GaussianNoise(0.1))
    point = ss.to_manifold(problem, np.array([3.0, 2.0]), progress=True)
    assert abs(point[0] * point[1] - 1) < 1e-9
    assert "to_manifold 50 of at most" in capfd.readouterr().err

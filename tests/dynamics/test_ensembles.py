"""An ensemble is the same to the last bit on any number of devices and processes, and whatever else is in it."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ensemble_runs as runs
import jax
import numpy as np
import pytest

import slowsde as ss
from slowsde.support import progress

pytestmark = pytest.mark.as_users

COMPILED: list[str] = []  # the functions compiled since the last clear


def _note(event: str, duration_secs: float, **about: Any) -> None:
    if "backend_compile" in event:
        COMPILED.append(str(about.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_note)


@pytest.fixture(scope="module")
def here() -> dict[str, np.ndarray]:
    return runs.arrays(["slow", "fast"])


def start(out: Path, names: str, devices: int = 1, *process: int) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    words = [sys.executable, str(Path(runs.__file__)), str(out), names, *map(str, process)]
    return subprocess.Popen(
        words, env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE
    )


def results(*programs: tuple[Path, subprocess.Popen], seconds: float = 300) -> list[dict[str, np.ndarray]]:
    try:
        for _, program in programs:
            errors = program.communicate(timeout=seconds)[1]
            assert program.returncode == 0, errors.decode()[-2000:]
    finally:
        for _, program in programs:
            program.kill()
    return [dict(np.load(out)) for out, _ in programs]


def on_devices(folder: Path, names: str, devices: int) -> dict[str, np.ndarray]:
    out = folder / f"{devices}.npz"
    (found,) = results((out, start(out, names, devices)))
    assert found.pop("devices") == devices
    return found


def on_processes(folder: Path, names: str, processes: int, devices: int = 1) -> list[dict[str, np.ndarray]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outs = [folder / f"process{index}.npz" for index in range(processes)]
    found = results(*[(out, start(out, names, devices, port, processes, index)) for index, out in enumerate(outs)])
    assert all(each.pop("devices") == processes * devices for each in found)
    return found


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_four_devices_compute_the_paths_of_one(here: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Points, states and metrics of 200 paths of an SDE and of a discrete run, to the last bit.

    A mutant that keys its paths by their place on the device repeats some, and a map that loses the order is seen.
    Matrices of 100 rows, which hang where they are batched, do not on several devices at once.
    """
    found = on_devices(tmp_path, "slow,fast,mutant,orders,factored", 4)
    same(found, here)
    assert found["orders"].all()
    assert found["factored"].all()
    mutant = found["mutant"][:, -1]
    assert np.unique(here["fast"][:, -1], axis=0).shape == mutant.shape
    assert np.unique(mutant, axis=0).shape[0] < mutant.shape[0]
    assert not np.array_equal(found["mutant"], here["fast"])


def test_many_starts_are_the_same_on_two_devices(tmp_path: Path) -> None:
    """Discrete runs from 70 starts, and their returns to Γ, are shared by the devices; flows go one after the other."""
    names = ["flows", "fast_from_starts"]
    same(on_devices(tmp_path, ",".join(names), 2), runs.arrays(names))


def test_two_processes_get_all_the_paths_in_order(here: dict[str, np.ndarray], tmp_path: Path) -> None:
    expected = {name: values for name, values in here.items() if name.startswith("fast")}
    for found in on_processes(tmp_path, "fast,orders", 2):
        same(found, expected)
        assert found["orders"].all()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_other_numbers_of_devices(devices: int, tmp_path: Path) -> None:
    names = "slow,fast,many_rows,conventional"
    found = on_devices(tmp_path, names + ",sharded", devices)
    assert found.pop("sharded").all()
    same(found, runs.arrays(names.split(",")))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (3, 1)])
def test_processes_with_devices(processes: int, devices: int, tmp_path: Path) -> None:
    """Also where processes do not divide the blocks, and where there are fewer blocks than processes."""
    names = "slow,fast,conventional,orders"
    expected = runs.arrays(names.split(","))
    for found in on_processes(tmp_path, names, processes, devices):
        same(found, expected)


def test_the_first_paths_do_not_depend_on_how_many_follow(here: dict[str, np.ndarray]) -> None:
    """37 of 200 paths, and one alone, to the last bit: all are computed in blocks of 64."""
    for paths in (runs.FEW, 1):
        for name, run in (("slow", runs.slow), ("fast", runs.fast)):
            few = run(paths=paths)
            np.testing.assert_array_equal(few.params, here[name][:paths])
            np.testing.assert_array_equal(few.metrics["trace_hessian"], here[f"{name} metric"][:paths])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("run", [runs.slow, runs.fast])
def test_other_numbers_do_not_compile_anew(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, number of paths, c, ε, β1, learning rate, start, time, noise and targets; another model does."""
    run()
    key = jax.random.key(3)  # which is a program as well
    COMPILED.clear()
    run(paths=9, key=key)
    run(**({"lr": 0.04} if run is runs.fast else {"dt": 1.02e-3, "v0": np.array([0.2, 0.5])}))
    monkeypatch.setattr(ss, "adam", lambda **kw: ss.adame(kw["c"] + 1, 0.5, b1=0.8, eps=2 * kw["eps"]))
    run()
    monkeypatch.setattr(runs, "LINE_START", runs.LINE_START + 0.1)
    monkeypatch.setattr(runs, "VALLEY_START", runs.VALLEY_START + 0.1)
    other = ss.LeastSquares(runs.LINE.predict, runs.LINE.inputs + 0.1, 1.1 * runs.LINE.targets, ss.LabelNoise(0.7, 2))
    monkeypatch.setattr(runs, "LINE", other)
    monkeypatch.setattr(runs, "VALLEY", ss.Problem(runs.VALLEY.loss, ss.GaussianNoise(np.diag([0.7, 0.6]))))
    run()
    assert not COMPILED
    monkeypatch.setattr(ss, "adam", lambda **kw: ss.adame(kw["c"], 0.3, eps=kw["eps"]))
    run()
    assert COMPILED


def test_the_progress_line_rises_from_block_to_block(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four blocks are one run: 0 to 100 % once, and one end of line."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    runs.fast(progress=True, save_at=101)
    jax.effects_barrier()
    shown = capfd.readouterr().err
    percents = [int(line.split()[1]) for line in shown.split("\r") if "run_discrete" in line]
    assert percents == sorted(percents)
    assert percents[0] < 10
    assert percents[-1] == 100
    assert len(percents) >= 4
    assert shown.count("\n") == 1

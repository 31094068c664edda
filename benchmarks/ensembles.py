"""How long ensembles take on 1, 2, 4 and 8 devices and in two processes of this machine, and that they stay the same.

    python benchmarks/ensembles.py [euler] [many_rows] [adam] [--repeats 7] [--quick]

Devices are forced host devices (XLA_FLAGS=--xla_force_host_platform_device_count): more of them than cores cannot help.
Every candidate is a program of its own that has compiled and waits; they take turns, one run each, and medians are
given. `compile` is the first call less a later one. The sums of all results are compared to the last bit.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import VALLEY_START, VALLEY_V0, valley

import slowsde as ss

VALLEY = valley()


def euler(paths: int) -> ss.Trajectory:
    """The SDE in the valley, 1000 steps."""
    return ss.simulate(*VALLEY, VALLEY_START, 1.0, v0=VALLEY_V0, paths=paths, save_at=2)


def many_rows(paths: int) -> ss.Trajectory:
    """An SDE on a Γ of 100 equations, 100 steps: on a CPU such paths go one after the other on each device."""
    inputs = np.random.default_rng(1).normal(size=(100, 110)) / 10
    problem = ss.LeastSquares(_bent, inputs, inputs @ np.ones(110), ss.GaussianNoise(0.1))
    return ss.simulate(problem, ss.sgd(), np.full(110, 0.9), 0.1, paths=paths, dt=1e-3, save_at=2, route="kernel")


def _bent(w: Any, z: Any) -> Any:
    return z @ (w + 0.1 * w**2)


def adam(paths: int) -> ss.Trajectory:
    """Adam on a tanh network of 353 weights and 20 samples, 1000 steps."""
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(4, 16)) / 2, "b": rng.normal(size=(16, 16)) / 4, "c": rng.normal(size=16) / 4}
    inputs = rng.normal(size=(20, 4))
    problem = ss.LeastSquares(_network, inputs, np.asarray(jax.vmap(_network, (None, 0))(start, inputs)), NOISE)
    return ss.run_discrete(
        problem, ss.adam(c=1.0, eps=1e-2), start, 1e-3, lr=1e-3, paths=paths, save_at=2, project=False
    )


def _network(w: Any, z: Any) -> Any:
    return jnp.tanh(jnp.tanh(z @ w["a"]) @ w["b"]) @ w["c"]


NOISE = ss.LabelNoise(std=0.1)
CASES = {"euler": (euler, 4096), "many_rows": (many_rows, 16), "adam": (adam, 512)}


def work(name: str, paths: int, process: list[str]) -> None:
    """A candidate: answers every line on stdin with the seconds of a run and a sum of its results."""
    if process:
        port, count, index = (int(word) for word in process)
        jax.distributed.initialize(f"localhost:{port}", count, index)
    for _ in sys.stdin:
        begun = time.perf_counter()
        run = CASES[name][0](paths)
        seconds = time.perf_counter() - begun
        total = float(np.sum([np.sum(leaf) for leaf in jax.tree.leaves(run.params)]))
        print(f"result {seconds} {total.hex()} {jax.devices()[0].device_kind}", flush=True)


def candidate(name: str, paths: int, devices: int, processes: int) -> list[subprocess.Popen]:
    """The programs of a candidate."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    process = [[str(port), str(processes), str(index)] for index in range(processes)] if processes > 1 else [[]]
    return [
        subprocess.Popen(
            [sys.executable, __file__, "--work", name, "--paths", str(paths), "--process", *words],
            env=os.environ | {"XLA_FLAGS": flags},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for words in process
    ]


def turn(programs: list[subprocess.Popen]) -> tuple[float, str, str]:
    """One run of a candidate: seconds of its slowest process, sum of the results, device."""
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    answers = []
    for program in programs:
        assert program.stdout is not None
        line = next(line for line in program.stdout if line.startswith("result"))
        answers.append(line.split(maxsplit=3)[1:])
    assert len({total for _, total, _ in answers}) == 1
    return max(float(seconds) for seconds, _, _ in answers), answers[0][1], answers[0][2].strip()


def table(name: str, quick: bool, repeats: int) -> None:
    function, paths = CASES[name]
    paths = paths // 4 if quick else paths
    layouts = [(devices, 1) for devices in (1, 2, 4, 8)] + [(1, 2)]
    candidates = [candidate(name, paths, *layout) for layout in layouts]
    try:
        first = [turn(programs) for programs in candidates]
        seconds = np.array([[turn(programs)[0] for programs in candidates] for _ in range(repeats)])
    finally:
        for programs in candidates:
            for program in programs:
                program.kill()
    medians = np.median(seconds, axis=0)
    print(f"\n{name}: {paths} paths, {first[0][2]}, {os.cpu_count()} cores. {(function.__doc__ or '').strip()}")
    print(f"{'devices':>8}{'processes':>11}{'compile s':>11}{'seconds':>9}{'speed':>7}   same")
    for (devices, processes), (cold, total, _), median in zip(layouts, first, medians, strict=True):
        print(
            f"{devices:8d}{processes:11d}{cold - median:11.2f}{median:9.3f}{medians[0] / median:7.2f}"
            f"   {total == first[0][1]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a quarter of the paths")
    parser.add_argument("--work", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--process", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.paths, options.process)
        return
    for name in options.cases or CASES:
        table(name, options.quick, options.repeats)


if __name__ == "__main__":
    main()

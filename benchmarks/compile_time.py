"""What importing and compiling cost, with and without the persistent cache of JAX, and when code is compiled again.

    python benchmarks/compile_time.py

Every line is a program of its own; `cold` has an empty cache on disk, `cached` one that the same program has filled,
`warm` is a second call in the same program with other numbers. `programs` is how many XLA programs were compiled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
CASES = ("flow", "sde", "discrete")


def work(name: str) -> None:
    """Imports, then two calls of a case with different numbers; prints seconds and programs."""
    begun = time.perf_counter()
    import jax
    import numpy as np

    import slowsde as ss

    print(f"import {time.perf_counter() - begun:.2f}")
    compiled = []

    def note(event: str, duration_secs: float, **about: Any) -> None:
        if "backend_compile" in event:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))

    def predict(w: Any, z: Any) -> Any:
        return z @ (w["u"] ** 2 - w["v"] ** 2)

    def call(scale: float) -> Any:
        targets, key = scale * (inputs[:, 0] - inputs[:, 1]), jax.random.key(int(10 * scale))
        start = {"u": np.full(12, 0.7 * scale), "v": np.full(12, 0.5)}
        noise = ss.GaussianNoise(0.1 * scale) if name == "sde" else ss.LabelNoise(std=scale)
        problem = ss.LeastSquares(predict, inputs, targets, noise)
        optimizer = ss.adam(c=2.0 * scale, eps=1e-2 * scale)
        if name == "discrete":
            return ss.run_discrete(
                problem, optimizer, start, 0.1, lr=0.01 * scale, paths=16, key=key, save_at=11, metrics="trace_hessian"
            )
        return ss.simulate(
            problem, optimizer, start, 0.1 * scale, paths=16, key=key, save_at=11, metrics="trace_hessian"
        )

    for scale in (1.0, 1.1):
        compiled.clear()
        begun = time.perf_counter()
        call(scale)
        print(f"call {time.perf_counter() - begun:.2f} {len(compiled)}")
    print(f"device {jax.devices()[0].device_kind}, jax {jax.__version__}")


def program(name: str, cache: str) -> tuple[list[list[str]], float]:
    """The words that the program of a case prints, by line, and its seconds in all."""
    begun = time.perf_counter()
    variables = os.environ | CACHE | {"JAX_COMPILATION_CACHE_DIR": cache}
    printed = subprocess.run(
        [sys.executable, __file__, "--work", name], env=variables, check=True, capture_output=True, text=True
    ).stdout
    return [line.split(maxsplit=1) for line in printed.splitlines()], time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    heads = "import s", "first call s", "programs", "warm s", "programs", "all s"
    print(f"{'':<10}{'cache':<9}" + "".join(f"{head:>14}" for head in heads))
    for name in CASES:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "cached"):
                lines, seconds = program(name, cache)
                (_, imported), (_, first), (_, second), (_, device) = lines
                (cold, programs), (warm, again) = first.split(), second.split()
                print(
                    f"{name:<10}{state:<9}{imported:>14}{cold:>14}{programs:>14}{warm:>14}{again:>14}{seconds:14.1f}",
                    flush=True,
                )
    print(f"{device}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

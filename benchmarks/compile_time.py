"""What a first call costs: programs, lines, seconds of tracing, lowering and compiling, with and without a cache.

    python benchmarks/compile_time.py [--programs] [--parts first cached peer]

first: each call of the README's example in a new process, Diffrax's Tsit5 with as many saved times beside it, and the
    same calls once more with other numbers, which are to compile nothing. `lines` are lines of StableHLO handed to XLA,
    without locations: unlike seconds they do not depend on the machine.
cached: the same with `ss.cache_compilations`, its folder empty and then filled; `on disk` counts what was found there.
peer: one curve of Adam (η = 0.0046, to t = 0.25) on a diagonal network, d = 100, n = 50, first and second call: by a
    bare jitted `lax.scan` of 16 runs, and by `ss.simulate`, each in a process of its own.

Seconds of tracing count what is traced within what is traced twice. Writing the programs out takes a few hundredths.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVENTS = {
    "jaxpr_trace_duration": "trace",
    "jaxpr_to_mlir_module_duration": "lower",
    "backend_compile_duration": "compile",
}
TIMES = 101
LR, T1, RUNS = 0.0046, 0.25, 16

# In a process of its own: imports are measured, so that none stands above ---------------------------------------------


class Counter:
    """What JAX traces, lowers and compiles from call to call."""

    def __init__(self) -> None:
        import jax

        self.folder = tempfile.TemporaryDirectory()
        self.seen: set[Path] = set()
        self.counts: collections.Counter[str] = collections.Counter()
        jax.config.update("jax_dump_ir_to", self.folder.name)
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **about: Any) -> None:
        self.counts[EVENTS.get(event.rsplit("/", 1)[-1], "other")] += duration_secs  # pyright: ignore[reportArgumentType]

    def _event(self, event: str, **about: Any) -> None:
        self.counts["found"] += event.endswith("/cache_hits")

    def told(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` returns; prints what it took, as a line of JSON."""
        self.counts.clear()
        begun = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - begun
        files = sorted(set(Path(self.folder.name).glob("*compile.mlir")) - self.seen, key=lambda f: f.name)
        self.seen.update(files)
        # Names are jax_ir0012_jit_name_compile.mlir.
        programs = [(f.name.split("_", 2)[2].removesuffix("_compile.mlir"), lines(f)) for f in files]
        print(
            json.dumps({"name": name, "seconds": seconds, "programs": programs, "found": 0} | self.counts), flush=True
        )
        return found


def lines(file: Path) -> int:
    """Lines of StableHLO of a program."""
    return sum(not line.startswith("#") for line in file.read_text().splitlines())


def readme(cache: str | None) -> None:
    begun = time.perf_counter()
    import diffrax  # noqa: F401
    import jax  # noqa: F401

    others = time.perf_counter() - begun
    import numpy as np

    import slowsde as ss

    print(json.dumps({"name": "import jax, diffrax", "seconds": others, "programs": []}))
    print(json.dumps({"name": "import slowsde", "seconds": time.perf_counter() - begun - others, "programs": []}))
    if cache:
        ss.cache_compilations(cache)
    counter = Counter()
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))

    def predict(w: Any, z: Any) -> Any:
        return z @ (w["u"] ** 2 - w["v"] ** 2)

    def example(scale: float, label: str) -> None:
        targets = scale * (inputs[:, 0] - inputs[:, 1])
        problem = ss.LeastSquares(predict, inputs, targets, noise=ss.LabelNoise(std=scale))
        params = {"u": np.full(12, 0.7 * scale), "v": np.full(12, 0.5)}
        optimizer = ss.adam(c=2.0 * scale, eps=1e-2 * scale)
        shared: dict[str, Any] = {"t1": 1.0, "metrics": ("trace_hessian", "trace_sqrt_diag_hessian"), "save_at": TIMES}
        start = counter.told(f"to_manifold{label}", lambda: ss.to_manifold(problem, params))
        slow = counter.told(f"simulate{label}", lambda: ss.simulate(problem, optimizer, start, **shared))
        fast = counter.told(
            f"run_discrete{label}",
            lambda: ss.run_discrete(problem, optimizer, start, lr=0.01, paths=64, **shared),
        )
        counter.told(f"compare{label}", lambda: ss.compare(slow, fast).table())

    example(1.0, "")
    example(1.1, ", again")


def tsit5(cache: str | None) -> None:
    import diffrax as dfx
    import jax
    import jax.numpy as jnp

    if cache:
        import slowsde as ss

        ss.cache_compilations(cache)
    counter = Counter()

    def solve() -> Any:
        found = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: -y),
            dfx.Tsit5(),
            0.0,
            1.0,
            None,
            jnp.ones(24),
            saveat=dfx.SaveAt(ts=jnp.linspace(0.0, 1.0, TIMES)),
            stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
        )
        return jax.block_until_ready(found.ys)

    with jax.enable_x64(True):
        counter.told("Tsit5 of Diffrax", solve)


def network() -> tuple[Any, Any, dict[str, Any], float]:
    """Inputs, targets and a start on Γ of the diagonal network, and c of β2 = 0.999."""
    import numpy as np

    inputs = np.random.default_rng(0).choice([-1.0, 1.0], (50, 100))
    targets = inputs[:, :5].sum(axis=1)
    w = inputs.T @ np.linalg.solve(inputs @ inputs.T, targets)
    start = {"u": np.sqrt(0.06 + np.maximum(w, 0)), "v": np.sqrt(0.06 + np.maximum(-w, 0))}
    return inputs, targets, start, 0.001 / LR**2


def scan(cache: str | None) -> None:
    """The curve by 16 bare runs in float32, as JAX has it by default: 4 Σ θ², which is tr H."""
    import jax
    import jax.numpy as jnp

    counter = Counter()
    inputs, targets, start, c = network()
    every = round(T1 / LR**2 / (TIMES - 1))
    b1, b2, eps = 0.9, 1 - c * LR**2, 1e-2

    def loss(w: Any, labels: Any) -> Any:
        return 0.5 * jnp.mean((inputs @ (w["u"] ** 2 - w["v"] ** 2) - labels) ** 2)

    def step(carry: Any, key: Any) -> Any:
        w, m, v = carry
        labels = targets + jax.random.rademacher(key, targets.shape, jnp.float32)
        g = jax.grad(loss)(w, labels)
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)
        return (jax.tree.map(lambda w, m, v: w - LR * m / (jnp.sqrt(v) + eps), w, m, v), m, v), None

    @jax.jit
    def curves(start: Any, key: Any) -> Any:
        def saved(carry: Any, key: Any) -> Any:
            carry, _ = jax.lax.scan(step, carry, jax.random.split(key, every))
            return carry, 4 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry[0]))

        zeros = jax.tree.map(jnp.zeros_like, start)
        second = jax.tree.map(lambda w: 4 * w**2 / len(targets), start)  # V(Σ) for inputs ±1
        run = lambda key: jax.lax.scan(saved, (start, zeros, second), jax.random.split(key, TIMES - 1))[1]  # noqa: E731
        return jax.vmap(run)(jax.random.split(key, RUNS))

    for seed, label in ((0, "first"), (1, "second")):
        found = counter.told(
            f"lax.scan of {RUNS} runs, {label} call",
            lambda seed=seed: jax.block_until_ready(curves(start, jax.random.key(seed))),
        )
        print(json.dumps({"name": f"  tr H at the end: {float(found[:, -1].mean()):.2f}", "programs": []}))


def simulated(cache: str | None) -> None:
    """The curve by the slow flow."""
    import slowsde as ss

    counter = Counter()
    inputs, targets, start, c = network()
    problem = ss.LeastSquares(lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, targets, ss.LabelNoise(1.0))
    for scale, label in ((1.0, "first"), (1.01, "second")):
        found = counter.told(
            f"ss.simulate, {label} call",
            lambda scale=scale: ss.simulate(
                problem, ss.adam(c * scale, eps=1e-2), start, T1, metrics="trace_hessian", save_at=TIMES
            ),
        )
        print(json.dumps({"name": f"  tr H at the end: {found.metrics['trace_hessian'][0, -1]:.2f}", "programs": []}))


WORK = {"readme": readme, "tsit5": tsit5, "scan": scan, "simulated": simulated}

# In the process that prints -------------------------------------------------------------------------------------------


def told(name: str, cache: str | None = None) -> Iterator[dict[str, Any]]:
    """What the process of some work prints, line by line, and its seconds in all."""
    begun = time.perf_counter()
    # Neither a cache nor settings that happen to be on here.
    variables = {key: value for key, value in os.environ.items() if "COMPILATION_CACHE" not in key}
    command = [sys.executable, __file__, "--work", name, *(["--cache", cache] if cache else [])]
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    yield from map(json.loads, done.stdout.splitlines())
    yield {"name": "whole process", "seconds": time.perf_counter() - begun, "programs": []}


def show(row: dict[str, Any], programs: bool) -> None:
    if "seconds" not in row:
        print(row["name"])
        return
    compiled = [count for _, count in row["programs"]]
    numbers = f"{len(compiled):9d}{row['found']:9d}{sum(compiled):8d}" if "found" in row else " " * 26
    parts = "".join(f"{row[part]:9.2f}" if row.get(part) else " " * 9 for part in EVENTS.values())
    print(f"{row['name']:<34}{numbers}{parts}{row['seconds']:9.2f}", flush=True)
    for name, count in sorted(row["programs"], key=lambda program: -program[1]) if programs else ():
        print(f"    {count:6d} {name}")


def table(title: str, names: tuple[str, ...], programs: bool, cache: str | None = None) -> None:
    heads = f"{'programs':>9}{'on disk':>9}{'lines':>8}{'trace s':>9}{'lower s':>9}{'compile s':>10}{'all s':>8}"
    print(f"\n{title:<34}{heads}")
    for name in names:
        for row in told(name, cache):
            show(row, programs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", action="store_true", help="list every program with its lines")
    parser.add_argument("--parts", nargs="*", default=["first", "cached", "peer"])
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        WORK[given.work](given.cache)
        return
    import jax

    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    if "first" in given.parts:
        table("no cache", ("tsit5", "readme"), given.programs)
    if "cached" in given.parts:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                table(f"{state} cache", ("tsit5", "readme"), given.programs, cache)
    if "peer" in given.parts:
        table("one curve of Adam", ("scan", "simulated"), given.programs)


if __name__ == "__main__":
    main()

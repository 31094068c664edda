"""A stiff slow flow against the optimizer it describes: Adam with a small ε on a diagonal network under label noise.

    python benchmarks/stiff.py [--steps 100000] [--repeats 3]

The problem is `sparse_network` of `problems.py`: 200 parameters, 195 of which Adam drives to zero, where S = 1/ε = 10⁶.

1. `simulate` against discrete Adam at η = 10⁻³, written by hand below as one `lax.fori_loop` with nothing in it but
   the gradient and the update, label noise drawn in every step. Up to slow time t = 1 that are 10⁶ steps, of which
   `--steps` are timed, and the time is scaled. Accuracy of `simulate`: Σ|θ_i| against runs at a hundred times tighter
   tolerance, and its limit, 5.
2. The price of c from 1 to ∞ and of a hundred times the horizon.

Times are the best of `--repeats` warm calls; compilation is not counted.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from problems import sparse_network

import slowsde as ss

EPS, LR, B1, STD = 1e-6, 1e-3, 0.9, 0.5
TIMES = [0.0, 0.05, 0.1, 0.2, 1.0]
L1 = {"l1": lambda p: jnp.sum(jnp.abs(p["u"])) + jnp.sum(jnp.abs(p["v"]))}


def best_of(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest time of warm calls, and the result."""
    result, seconds = call(), []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds), result


def discrete_adam(problem: ss.LeastSquares, params: Any, steps: int, c: float) -> Callable[[], Any]:
    """`steps` steps of full-batch Adam at η = `LR` with fresh noise ±`STD` on every label, by hand."""
    z, y = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
    b2 = 1 - c * LR**2

    def loss(p: Any, labels: Any) -> Any:
        return 0.5 * jnp.mean((z @ (p[0] ** 2 - p[1] ** 2) - labels) ** 2)

    @jax.jit
    def run(p: Any, key: Any) -> Any:
        def step(k: Any, state: Any) -> Any:
            p, m, v = state
            g = jax.grad(loss)(p, y + STD * jr.rademacher(jr.fold_in(key, k), y.shape, y.dtype))
            m, v = B1 * m + (1 - B1) * g, b2 * v + (1 - b2) * g**2
            return p - LR * m / (jnp.sqrt(v) + EPS), m, v

        p = jnp.stack([p["u"], p["v"]])
        v = 4 * p**2 * STD**2 / y.size * jnp.mean(z**2, axis=0)  # V(Σ), where the slow run starts too
        return jax.lax.fori_loop(0, steps, step, (p, jnp.zeros_like(p), v))[0]

    return lambda: jax.block_until_ready(run(params, jr.key(0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="discrete steps that are timed, of 10⁶")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    problem, start = sparse_network()
    cores = len(os.sched_getaffinity(0))
    print(f"{jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}, float64, best of {options.repeats}")

    def slow(rtol: float, c: float = 10.0, t1: float = 1.0, solver: str = "auto") -> ss.Trajectory:
        times = [t1 * t for t in TIMES]
        optimizer = ss.adam(c, b1=B1, eps=EPS)
        return ss.simulate(problem, optimizer, start, t1, save_at=times, metrics=L1, rtol=rtol, solver=solver)

    with jax.enable_x64(True):
        hand = discrete_adam(problem, jax.tree.map(jnp.asarray, start), options.steps, 10.0)
        spent, _ = best_of(hand, options.repeats)
    total = spent / options.steps * LR**-2
    print(f"\ndiscrete Adam by hand: {1e6 * spent / options.steps:.2f} μs a step, {total:.2f} s for 10⁶ steps (t = 1)")

    resolved = slow(1e-8, solver="implicit").metrics["l1"][0]
    print(f"\n{'simulate':<20}{'seconds':>9}{'steps':>7}{'ratio':>8}   error of Σ|θ_i| at t = .05, .1, .2, 1  residual")
    for rtol, solver in ((1e-4, "auto"), (1e-6, "auto"), (1e-4, "implicit"), (1e-6, "implicit")):
        seconds, run = best_of(lambda rtol=rtol, solver=solver: slow(rtol, solver=solver), options.repeats)
        errors = np.abs(run.metrics["l1"][0] - resolved)[1:]
        print(
            f"{f'{solver}, rtol={rtol:.0e}':<20}{seconds:9.3f}{run.stats['num_steps']:7d}{total / seconds:8.0f}   "
            + " ".join(f"{error:8.1e}" for error in errors)
            + f"   {np.max(run.stats['residual']):.0e}"
        )
    print(f"Σ|θ_i| of the resolved run: {resolved.round(4)}, of the truth 5")

    heads = f"{'seconds':>10}{'steps':>7}{'to c=10':>9}"
    print(f"\n{'':<16}{'rtol=1e-4':>26}{'':>9}{'rtol=1e-6':>27}\n{'':<16}{heads}{'Σ|θ_i|':>9} {heads}")
    base: dict[float, float] = {}
    for c, t1 in ((10.0, 1.0), (1.0, 1.0), (1000.0, 1.0), (np.inf, 1.0), (10.0, 100.0)):
        line = f"{f'c={c:g}, t1={t1:g}':<16}"
        for rtol in (1e-4, 1e-6):
            seconds, run = best_of(lambda rtol=rtol, c=c, t1=t1: slow(rtol, c, t1), options.repeats)
            seconds_of_base = base.setdefault(rtol, seconds)
            line += f"{seconds:10.3f}{run.stats['num_steps']:7d}{seconds / seconds_of_base:9.2f}"
            line += f"{run.metrics['l1'][0, -1]:9.4f} " if rtol == 1e-4 else ""
        print(line, flush=True)


if __name__ == "__main__":
    main()

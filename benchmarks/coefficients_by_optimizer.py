"""What one evaluation of drift, diffusion and state drift costs, by optimizer, on a two-layer network.

    python benchmarks/coefficients_by_optimizer.py [--widths 64 64 10] [--samples 16] [--repeats 40]

Label noise, float64, the kernel route. Compilation and the first call after it are listed apart. Then the optimizers
take turns. Ratios to Adam: of the best times, which other work on the machine disturbs least, and round by round with
quartiles. On a busy machine the threads of a call wait for one another: prefix `taskset -c 0` for one core.
"""

import argparse
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slowsde as ss
from manifolds.support.coordinates import Coordinates, ravel
from slowsde.dynamics.slow_sde import equilibrium

OPTIMIZERS = {
    "sgd": ss.sgd(),
    "adam": ss.adam(1.0, eps=1e-3),
    "adam_mini": ss.adam_mini(1.0, eps=1e-3),
    "adalayer": ss.adalayer(1.0, eps=1e-3),
    "shampoo": ss.shampoo(1.0, eps=1e-3),
}


def predict(p: Any, z: Any) -> Any:
    return p["out"] @ jnp.tanh(p["in"] @ z + p["b"]) + p["c"]


def network(widths: list[int], samples: int) -> tuple[ss.LeastSquares, Any]:
    """Random data, and weights moved to where they are interpolated."""
    inputs, hidden, outputs = widths
    rng = np.random.default_rng(0)
    problem = ss.LeastSquares(
        predict, rng.normal(size=(samples, inputs)), rng.normal(size=(samples, outputs)), ss.LabelNoise(1.0)
    )
    guess = {
        "in": rng.normal(size=(hidden, inputs)) / inputs**0.5,
        "b": np.zeros(hidden),
        "out": rng.normal(size=(outputs, hidden)) / hidden**0.5,
        "c": np.zeros(outputs),
    }
    return problem, ss.to_manifold(problem, guess)


def seconds(call: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def compiled(problem: ss.LeastSquares, optimizer: ss.AGM, params: Any) -> tuple[float, Any]:
    """Seconds of compilation, and a call of the coefficients at params with the state v = V(Σ)."""
    chart = Coordinates.of(params)
    v = equilibrium(ss.SlowSDE(problem, optimizer, problem.flat_loss(chart)), ravel(params))
    compute = jax.jit(lambda p, v: ss.coefficients(problem, optimizer, p, v, route="kernel"))
    spent, ready = seconds(lambda: compute.lower(params, v).compile())
    return spent, lambda: ready(params, v)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 64, 10], metavar=("IN", "HIDDEN", "OUT"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    with jax.enable_x64(True):
        problem, params = network(options.widths, options.samples)
        params = jax.tree.map(jnp.asarray, params)
        ready = {name: compiled(problem, optimizer, params) for name, optimizer in OPTIMIZERS.items()}
        first = {name: seconds(f)[0] for name, (_, f) in ready.items()}
        rounds = np.array([[seconds(f)[0] for _, f in ready.values()] for _ in range(options.repeats)])
    device = jax.devices()[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = options.samples * options.widths[2]
    cores = len(os.sched_getaffinity(0))
    print(
        f"{device.device_kind} ({device.platform}, {cores} cores), jax {jax.__version__}, float64, p={size}, "
        f"{rows} residuals, {options.repeats} rounds"
    )
    heads = {"compile s": 11, "first ms": 10, "best ms": 9, "median ms": 11, "best/adam": 11}
    heads |= {"by round": 10, "quartiles": 14}
    print(f"{'optimizer':<12}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    best = rounds.min(axis=0) / rounds[:, list(OPTIMIZERS).index("adam")].min()
    ratios = rounds / rounds[:, [list(OPTIMIZERS).index("adam")]]
    for column, name in enumerate(OPTIMIZERS):
        times, (low, middle, high) = 1e3 * rounds[:, column], np.quantile(ratios[:, column], [0.25, 0.5, 0.75])
        print(
            f"{name:<12}{ready[name][0]:11.2f}{1e3 * first[name]:10.1f}{times.min():9.1f}{np.median(times):11.1f}"
            f"{best[column]:11.2f}{middle:10.2f}{f'{low:.2f}-{high:.2f}':>14}"
        )


if __name__ == "__main__":
    main()

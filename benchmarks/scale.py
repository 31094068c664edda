"""Large problems: what a coefficient, a slow flow and its memory cost as parameters p and samples n grow.

    python benchmarks/scale.py [coefficients] [flows] [network] [--steps 20000] [--repeats 3] [--rtol 1e-3]

coefficients: the drift and dv of Adam under label noise on a diagonal network (p = 2d), compiled, by the matrix-free
    route, against its floor, the Gram matrix's n²p multiplications at the rate of this machine's matrix product and two
    gradients, and against one discrete step on one sample, timed in the same process. Exponents in p and n.
flows: the slow flow to t = 1 against one discrete run to the same time at η = 10⁻², 10⁻³, 10⁻⁴, of which `--steps`
    steps are timed and scaled; and how many such runs it takes until the standard error of their mean of Σ|θ| at t = ½
    is as small as the error of the flow, from the spread of `RUNS` runs at η = 10⁻², whose variance is ∝ η.
network: a dense network with p = 116 000 on 500 digits, to t = 1: time, memory, and its predictions on fresh digits
    beside those of discrete runs (half an hour).

Times are the best of `--repeats` warm calls; compilation is not counted. Memory is the peak of a process of its own.
"""

import argparse
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import slowsde as ss
from manifolds.precision import cast, working_precision
from slowsde.checks import on_flat_coordinates
from slowsde.slow_sde import equilibrium

LR, STD, C, EPS, NONZERO = 1e-3, 0.0707, 10.0, 1e-6, 50
OPTIMIZER = ss.adam(C, eps=EPS)
RUNS = 16


def best_of(call: Callable[[], Any], repeats: int) -> float:
    """The shortest time of warm calls."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def peak_memory() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def diagonal_network(d: int, n: int) -> tuple[ss.LeastSquares, dict[str, np.ndarray]]:
    """n random signs times d weights of which a few are 1, and weights u, v that fit them: on Γ."""
    rng = np.random.default_rng(0)
    inputs = rng.choice([-1.0, 1.0], (n, d))
    truth = np.zeros(d)
    truth[: min(NONZERO, d // 4)] = 1.0
    w = inputs.T @ np.linalg.solve(inputs @ inputs.T, inputs @ truth)  # of all exact fits the one of least norm
    start = {"u": np.sqrt(0.06 + np.maximum(w, 0)), "v": np.sqrt(0.06 + np.maximum(-w, 0))}
    noise = ss.LabelNoise(STD, batch_size=1)
    return ss.LeastSquares(lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, inputs @ truth, noise), start


def discrete_step(problem: Any, start: Any, steps: int, repeats: int, lr: float = LR) -> float:
    """Seconds of one step of `run_discrete` on one sample."""
    optimizer = OPTIMIZER if C * lr**2 <= 1 else ss.adam(1 / lr**2, eps=EPS)
    options: dict[str, Any] = {"lr": lr, "paths": 1, "save_at": 2, "project": False}
    run = lambda: ss.run_discrete(problem, optimizer, start, steps * lr**2, **options).params  # noqa: E731
    return best_of(run, repeats) / steps


def multiplications(repeats: int) -> float:
    """Double-precision multiplications and additions a second in a product like the Gram matrix's."""
    with jax.enable_x64(True):
        rows = jnp.asarray(np.random.default_rng(0).normal(size=(500, 20_000)))
        product = jax.jit(lambda a: a @ a.T)
        return 2 * rows.shape[0] ** 2 * rows.shape[1] / best_of(lambda: product(rows), repeats)


def coefficient(d: int, n: int, route: str, repeats: int) -> tuple[float, float]:
    """Seconds of drift and dv, and of the gradient of the loss, compiled."""
    problem, start = diagonal_network(d, n)
    with working_precision("float64") as precision:
        task, optimizer, params = cast((problem, OPTIMIZER, start), precision)
        sde, x = on_flat_coordinates(task, optimizer, params, route)
        v = equilibrium(sde, x)
        gradient = eqx.filter_jit(lambda loss, y: loss.gradient(y))
        return (
            best_of(lambda: drift_and_dv(sde, x, v), repeats),
            best_of(lambda: gradient(sde.loss, x), repeats),
        )


@eqx.filter_jit
def drift_and_dv(sde: Any, x: Any, v: Any) -> Any:
    """What `coefficients` evaluates under label noise, but for its check that x is on Γ."""
    return sde.drift(x, sde.frame(x, v), jnp.inf), sde.v_drift(x, v, jnp.inf)


def own_process(*arguments: Any) -> str:
    """What this script prints for these arguments in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def table_of_coefficients(steps: int, repeats: int) -> None:
    rate = multiplications(repeats)
    print(f"matrix product: {rate / 1e9:.0f} · 10⁹ operations a second, float64")
    print("       p     n   drift and dv   floor   of it   discrete step   steps in one    peak")
    times = {}
    for d, n in [(1000, 500), (10_000, 500), (50_000, 500), (10_000, 125), (10_000, 250), (10_000, 1000)]:
        drift, gradient, step, memory = (float(word) for word in own_process("--case", d, n, repeats).split())
        floor = 2 * n**2 * 2 * d / rate + 2 * gradient
        times[d, n] = drift
        print(
            f"{2 * d:8d} {n:5d} {1e3 * drift:9.1f} ms {1e3 * floor:9.1f} ms {drift / floor:6.2f} "
            f"{1e6 * step:10.0f} µs {drift / step:12.0f} {memory:9.1f} GiB",
            flush=True,
        )
    in_p = np.log(times[50_000, 500] / times[1000, 500]) / np.log(50)
    in_n = np.log(times[10_000, 1000] / times[10_000, 125]) / np.log(8)
    print(f"grows like p^{in_p:.2f} at n = 500 and n^{in_n:.2f} at p = 20000")
    kernel = coefficient(10_000, 500, "kernel", repeats)[0]
    print(f"p = 20000, n = 500 by the kernel route: {1e3 * kernel:.0f} ms")


def table_of_flows(steps: int, repeats: int) -> None:
    problem, start = diagonal_network(10_000, 500)
    flows = {}
    for rtol in (1e-2, 1e-3, 1e-4, 1e-6):
        found: list[ss.Trajectory] = []

        def flow(rtol: float = rtol, found: list[ss.Trajectory] = found) -> None:
            found.append(ss.simulate(problem, OPTIMIZER, start, 1.0, save_at=3, rtol=rtol))

        flows[rtol] = best_of(flow, 1), found[-1]
    best = flows.pop(1e-6)[1]
    for rtol, (seconds, run) in flows.items():
        error = np.max(np.abs(run.params["u"] - best.params["u"])[0, 1])
        print(
            f"rtol {rtol:g}: {seconds:6.1f} s, {run.stats['num_steps']} steps, Σ|θ| {sizes(run)[0].round(4)}, weights "
            f"at t = ½ off by {error:.1e}"
        )
    for lr in (1e-2, 1e-3, 1e-4):
        step = discrete_step(problem, start, steps, repeats, lr)
        ratios = ", ".join(f"{step / lr**2 / seconds:.1f} (rtol {rtol:g})" for rtol, (seconds, _) in flows.items())
        print(f"η = {lr:g}: one discrete run of {1 / lr**2:.0e} steps takes {step / lr**2:.3g} s: {ratios} flows")
    best_size, errors = sizes(best)[0, 1], {}
    for rtol, (_, run) in flows.items():
        errors[rtol] = abs(sizes(run)[0, 1] - best_size)
    runs = ss.run_discrete(problem, OPTIMIZER, start, 0.5, lr=1e-2, paths=RUNS, save_at=2, project=False)
    spread = np.std(sizes(runs)[:, -1], ddof=1)
    print(
        f"η = 0.01: Σ|θ| at t = ½ is {np.mean(sizes(runs)[:, -1]):.3f} ± {spread / RUNS**0.5:.3f}, spread {spread:.3f}"
    )
    for lr in (1e-2, 1e-3, 1e-4):
        needed = {rtol: spread**2 * lr / 1e-2 / error**2 for rtol, error in errors.items() if error > 0}
        print(f"η = {lr:g}: runs for the same error: " + ", ".join(f"{n:.2g} (rtol {r:g})" for r, n in needed.items()))
    print(f"peak {peak_memory():.1f} GiB")


def sizes(run: ss.Trajectory) -> np.ndarray:
    """Σ|θ|, (paths, T)."""
    return np.sum(np.abs(run.params["u"]) + np.abs(run.params["v"]), axis=-1)


def digits() -> tuple[ss.LeastSquares, dict[str, Any], Any]:
    """A network 64-256-384-1 (p = 115 713) that tells even digits from odd on 500 of them, and 300 fresh ones."""
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs, targets = data.data / 16.0, 2.0 * (data.target % 2) - 1.0
    rng = np.random.default_rng(0)
    sizes = (64, 256, 384, 1)
    start = {
        str(i): {"w": rng.normal(size=(b, a)) / np.sqrt(a), "b": np.zeros(b)}
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }
    noise = ss.LabelNoise(std=0.5, batch_size=16)
    return ss.LeastSquares(network, inputs[:500], targets[:500], noise), start, inputs[1000:1300]


def network(p: Any, z: Any) -> Any:
    for i in "01":
        z = jnp.tanh(p[i]["w"] @ z + p[i]["b"])
    return (p["2"]["w"] @ z + p["2"]["b"])[0]


def table_of_network(rtol: float) -> None:
    problem, start, fresh = digits()
    optimizer = ss.adam(10.0, eps=1e-2)
    begun = time.perf_counter()
    params = ss.to_manifold(problem, start)
    p = sum(leaf.size for leaf in jax.tree.leaves(start))
    print(f"p = {p}, n = 500: to Γ {time.perf_counter() - begun:.0f} s with compilation", flush=True)
    metrics = {f"digit {i}": lambda p, i=i: network(p, fresh[i]) for i in range(3)}
    metrics |= {"size": lambda p: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)))}
    begun = time.perf_counter()
    slow = ss.simulate(problem, optimizer, params, 1.0, save_at=5, rtol=rtol, metrics=metrics)
    seconds = time.perf_counter() - begun
    print(f"slow flow {seconds:.0f} s, {slow.stats['num_steps']} steps, peak {peak_memory():.1f} GiB")
    agreement(problem, optimizer, params, fresh, slow, metrics)


def agreement(problem: Any, optimizer: ss.AGM, params: Any, fresh: Any, slow: ss.Trajectory, metrics: Any) -> None:
    """Discrete runs beside the slow flow: the metrics, and predictions of all fresh digits at the end."""
    predict = jax.jit(jax.vmap(jax.vmap(network, (None, 0)), (0, None)))
    at_end = lambda run: np.asarray(predict(run.final_params, fresh))  # noqa: E731
    before = np.asarray(jax.vmap(network, (None, 0))(params, fresh))
    change = rms(at_end(slow)[0] - before)
    for lr in (0.02, 0.01, 0.005):
        begun = time.perf_counter()
        discrete = ss.run_discrete(
            problem, optimizer, params, 1.0, lr=lr, paths=4, save_at=5, metrics=metrics, project=False
        )
        print(f"\nη = {lr}: four discrete runs of {round(lr**-2)} steps in {time.perf_counter() - begun:.0f} s")
        print(ss.compare(slow, discrete).table(), flush=True)
        found = at_end(discrete)
        gap, noise = rms(at_end(slow)[0] - found.mean(0)), rms(found.std(0, ddof=1)) / len(found) ** 0.5
        signs = np.mean(np.sign(found) == np.sign(at_end(slow)))
        print(
            f"predictions of {len(fresh)} fresh digits (root mean square): change from the start {change:.3f}, gap of "
            f"the mean {gap:.3f}, its standard error {noise:.3f}; same sign {100 * signs:.1f} %",
            flush=True,
        )
    print(f"peak {peak_memory():.1f} GiB")


def rms(x: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(x**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="coefficients, flows, network; all by default")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rtol", type=float, default=1e-3, help="of the slow flow of the network")
    parser.add_argument("--case", type=int, nargs=3, metavar=("d", "n", "repeats"), help="one row of the first table")
    given = parser.parse_args()
    if given.case:
        d, n, repeats = given.case
        drift, gradient = coefficient(d, n, "matrix_free", repeats)
        memory = peak_memory()
        step = discrete_step(*diagonal_network(d, n), given.steps, repeats)
        print(drift, gradient, step, memory)
        return
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}, float64")
    parts = given.parts or ["coefficients", "flows", "network"]
    if "coefficients" in parts:
        table_of_coefficients(given.steps, given.repeats)
    if "flows" in parts:
        table_of_flows(given.steps, given.repeats)
    if "network" in parts:
        table_of_network(given.rtol)


if __name__ == "__main__":
    main()

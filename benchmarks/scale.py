"""Large problems: what a coefficient, a slow flow and its memory cost as parameters p and samples n grow.

    python benchmarks/scale.py [coefficients] [flows] [network] [--steps 20000] [--repeats 3] [--rtol 1e-3]

coefficients: the drift and dv of Adam under label noise on a diagonal network (p = 2d), compiled, by the matrix-free
    route, against its floor, the Gram matrix's n²p multiplications at the rate of this machine's matrix product and two
    gradients, and against one discrete step on one sample, timed in the same process. Exponents in p and n.
flows: the slow flow to t = 1 against one discrete run to the same time at η = 10⁻², 10⁻³, 10⁻⁴, of which `--steps`
    steps are timed and scaled, on one sample a step and, with the same α, on all; and on all samples how far such runs
    are from the flow in Σ|θ| at t = ½, and how many it takes until their standard error is the error of the flow.
network: a dense network with p = 116 000 on 500 digits: its predictions on fresh digits beside those of discrete runs
    to t = 0.03, and time and memory of the slow flow to t = 1 (half an hour).

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
from manifolds.support.precision import cast, working_precision
from slowsde.dynamics.checks import on_flat_coordinates
from slowsde.dynamics.slow_sde import equilibrium

LR, STD, C, EPS, NONZERO = 1e-3, 0.0707, 10.0, 1e-6, 50
OPTIMIZER = ss.adam(C, eps=EPS)
RUNS = 4
EARLY = 0.03  # slow time up to which discrete runs of a valid learning rate of the network can be had


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
    n = 500
    problem, start = diagonal_network(10_000, n)
    # Fresh noise on every label, of the same α and so with the same slow flow.
    full_batch = ss.LeastSquares(problem.predict, problem.inputs, problem.targets, ss.LabelNoise(STD * n**0.5))
    flows = {}
    for rtol in (1e-2, 1e-3, 1e-4, 1e-6):
        found: list[ss.Trajectory] = []

        def flow(rtol: float = rtol, found: list[ss.Trajectory] = found) -> None:
            found.append(ss.simulate(problem, OPTIMIZER, start, 1.0, save_at=3, rtol=rtol))

        flows[rtol] = best_of(flow, 1), found[-1]
    resolved = sizes(flows.pop(1e-6)[1])[0, 1]
    errors = {rtol: abs(sizes(run)[0, 1] - resolved) for rtol, (_, run) in flows.items()}
    for rtol, (seconds, run) in flows.items():
        print(
            f"rtol {rtol:g}: {seconds:6.1f} s, {run.stats['num_steps']} steps, Σ|θ| {sizes(run)[0].round(4)}, at t = ½ "
            f"off by {errors[rtol]:.1e}"
        )
    for name, task, count in (("one sample", problem, steps), ("full batch", full_batch, steps // 40)):
        for lr in (1e-2, 1e-3, 1e-4):
            step = discrete_step(task, start, count, repeats, lr)
            ratios = ", ".join(f"{step / lr**2 / seconds:.3g}" for seconds, _ in flows.values())
            print(f"{name}, η = {lr:g}: a run of {1 / lr**2:.0e} steps takes {step / lr**2:.3g} s: {ratios} flows")
    for lr in (2e-2, 1e-2):
        runs = ss.run_discrete(full_batch, OPTIMIZER, start, 0.5, lr=lr, paths=RUNS, save_at=2, project=False)
        mean, spread = np.mean(sizes(runs)[:, -1]), np.std(sizes(runs)[:, -1], ddof=1)
        print(
            f"full batch, η = {lr:g}: Σ|θ| at t = ½ {mean:.2f} ± {spread / RUNS**0.5:.2f}, gap {mean - resolved:.2f}, "
            f"spread {spread:.2f}"
        )
        needed = ", ".join(f"{(spread / error) ** 2:.2g} (rtol {rtol:g})" for rtol, error in errors.items())
        print(f"  runs until their standard error is that of the flow: {needed}")
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
    begun = time.perf_counter()
    params = ss.to_manifold(problem, start)
    p = sum(leaf.size for leaf in jax.tree.leaves(start))
    print(f"p = {p}, n = 500: to Γ {time.perf_counter() - begun:.0f} s with compilation", flush=True)
    optimizer = ss.adam(10.0, eps=1e-2)
    metrics = {f"digit {i}": lambda p, i=i: network(p, fresh[i]) for i in range(4)}

    def flow(t1: float, rtol: float) -> ss.Trajectory:
        begun = time.perf_counter()
        found = ss.simulate(problem, optimizer, params, t1, save_at=4, rtol=rtol, metrics=metrics)
        print(
            f"slow flow to t = {t1:g}, rtol {rtol:g}: {time.perf_counter() - begun:.0f} s with compilation, "
            f"{found.stats['num_steps']} steps, peak {peak_memory():.1f} GiB",
            flush=True,
        )
        return found

    slow = flow(EARLY, 1e-4)
    for lr in (2e-3, 1e-3, 5e-4):
        begun = time.perf_counter()
        discrete = ss.run_discrete(
            problem, optimizer, params, EARLY, lr=lr, paths=4, save_at=4, metrics=metrics, project=False
        )
        steps, seconds = round(EARLY / lr**2), time.perf_counter() - begun
        print(f"\nη = {lr:g}: four discrete runs of {steps} steps in {seconds:.0f} s")
        print(ss.compare(slow, discrete).table())
        agreement(params, fresh, slow, discrete)
    flow(1.0, rtol)


def agreement(params: Any, fresh: Any, slow: ss.Trajectory, discrete: ss.Trajectory) -> None:
    """Predictions of all fresh digits at the end of the slow flow beside those of the discrete runs."""
    predict = jax.jit(jax.vmap(jax.vmap(network, (None, 0)), (0, None)))
    before = np.asarray(jax.vmap(network, (None, 0))(params, fresh))
    flow, found = np.asarray(predict(slow.final_params, fresh))[0], np.asarray(predict(discrete.final_params, fresh))
    noise = rms(found.std(0, ddof=1)) / len(found) ** 0.5
    print(
        f"predictions of {len(fresh)} fresh digits (root mean square): change from the start {rms(flow - before):.4f}, "
        f"gap of the mean {rms(flow - found.mean(0)):.4f}, its standard error {noise:.4f}; same sign "
        f"{100 * np.mean(np.sign(found) == np.sign(flow)):.1f} %",
        flush=True,
    )


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

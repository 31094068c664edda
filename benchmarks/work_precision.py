"""Error against seconds of the solvers for slow flows, on two stiff problems, as a table and a figure.

    python benchmarks/work_precision.py [--repeats 2] [--output docs/work_precision.png]

Diagonal network: `sparse_network` of `problems.py`, Adam with c = 10, at ε = 10⁻⁶, where no explicit solver ends, and
explicit solvers at ε = 10⁻², where they do. Tanh network: `mlp`, p = 1377, Adam with c = 1 and ε = 10⁻², t ≤ 2.

Solvers: "implicit" with 2 to 5 stages, Tsit5 and the other embedded Runge–Kutta pairs of Diffrax, each returned to Γ
after every step, and "auto". The error is the largest relative one of tr Diag(H)^½ at the saved times (the start
apart), against a run at a tolerance tighter than any in the table, of the other kind of solver where that ends. Times
are the best of `--repeats` warm solves. Runs of more than `MAX_STEPS` steps are left out.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import diffrax as dfx
import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from problems import mlp, sparse_network

import slowsde as ss
from slowsde.dynamics import flow
from slowsde.dynamics.solvers.implicit import ExtrapolatedImplicit

METRIC, MAX_STEPS = "trace_sqrt_diag_hessian", 1500
TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
EXPLICIT = {"Tsit5": dfx.Tsit5, "Dopri5": dfx.Dopri5, "Bosh3": dfx.Bosh3, "Heun": dfx.Heun}
Point = tuple[float, float, float, int]  # rtol, error, seconds, steps


class Case:
    """A problem with its optimizer and saved times, and the resolved values there."""

    def __init__(self, problem: Any, start: Any, optimizer: ss.AGM, times: list[float], judge: tuple[str, float]):
        self.problem, self.start, self.optimizer, self.times = problem, start, optimizer, times
        self.resolved = self.run(*judge).metrics[METRIC][0]

    def run(self, solver: str, rtol: float, max_steps: int = 20_000) -> ss.Trajectory:
        return ss.simulate(
            self.problem,
            self.optimizer,
            self.start,
            self.times[-1],
            save_at=self.times,
            metrics=(METRIC,),
            solver=solver,
            rtol=rtol,
            max_steps=max_steps,
            throw=False,
        )

    def points(self, solver: str, tolerances: list[float], repeats: int) -> list[Point]:
        """What the solver reaches at each tolerance, if it ends."""
        jax.clear_caches()
        found: list[Point] = []
        for rtol in tolerances:
            result = self.run(solver, rtol, MAX_STEPS)  # compiles
            if result.result[0] != 0:
                continue
            seconds = []
            for _ in range(repeats):
                begun = time.perf_counter()
                self.run(solver, rtol, MAX_STEPS)
                seconds.append(time.perf_counter() - begun)
            error = np.max(np.abs(result.metrics[METRIC][0] / self.resolved - 1)[1:])
            found.append((rtol, float(error), min(seconds), result.stats["num_steps"]))
        return found


def with_solvers(explicit: Any, stages: int) -> None:
    """Let `simulate` use this Runge–Kutta pair for "tsit5", and so many stages for "implicit"."""
    dfx.Tsit5 = explicit
    flow.ExtrapolatedImplicit = partial(ExtrapolatedImplicit, stages=stages)  # pyright: ignore


def measure(
    case: Case, label: str, solvers: list[str], tolerances: list[float], repeats: int
) -> dict[str, list[Point]]:
    """name of solver -> points, printed on the way."""
    tsit5, default = dfx.Tsit5, ExtrapolatedImplicit.__dataclass_fields__["stages"].default
    found = {}
    for name in solvers:
        with_solvers(EXPLICIT.get(name, tsit5), int(name[-1]) if name.startswith("implicit") else default)
        kind = "auto" if name == "auto" else "implicit" if name.startswith("implicit") else "tsit5"
        found[name] = case.points(kind, tolerances, repeats)
        with_solvers(tsit5, default)
        for rtol, error, seconds, steps in found[name]:
            print(f"{label:<24}{name:<12}{rtol:7.0e}{error:11.1e}{seconds:9.3f}{steps:8d}", flush=True)
        for rtol in sorted(set(tolerances) - {point[0] for point in found[name]}, reverse=True):
            print(f"{label:<24}{name:<12}{rtol:7.0e}   more than {MAX_STEPS} steps", flush=True)
    return found


MARKS = {
    "implicit 2": ("o", "0.65", ":"),
    "implicit 3": ("s", "0.5", "--"),
    "implicit 4": ("o", "0.0", "-"),
    "implicit 5": ("^", "0.5", "-."),
    "auto": ("D", "tab:red", "-"),
    "Tsit5": ("v", "tab:blue", "-"),
    "Dopri5": ("x", "tab:blue", "--"),
    "Bosh3": ("+", "tab:blue", "-."),
    "Heun": ("1", "tab:blue", ":"),
}


def draw(panels: list[tuple[str, dict[str, list[Point]]]], path: Path) -> None:
    """Error against seconds, a panel for each problem."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(panels), figsize=(7.2, 3.4), layout="constrained")
    for ax, (title, lines) in zip(axes, panels, strict=True):
        for name, points in lines.items():
            if points:
                mark, colour, style = MARKS[name]
                _, errors, seconds, _ = zip(*points, strict=True)
                ax.plot(seconds, errors, mark, ls=style, color=colour, label=name, ms=4.5, lw=1.1, mfc="none")
        ax.set(xscale="log", yscale="log", xlabel="seconds")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(title, fontsize=9)
        ax.grid(which="major", lw=0.3, color="0.85")
    axes[0].set_ylabel("relative error of tr Diag$(H)^{1/2}$")
    handles = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [name for name in MARKS if name in handles]
    figure.legend([handles[n] for n in order], order, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/work_precision.png"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}, float64, best of {options.repeats}")
    print(f"{'problem':<24}{'solver':<12}{'rtol':>7}{'error':>11}{'seconds':>9}{'steps':>8}")
    times = [0.0, 0.05, 0.1, 0.2, 1.0]
    implicit = [f"implicit {stages}" for stages in (2, 3, 4, 5)]
    stiff = Case(*sparse_network(), ss.adam(10.0, eps=1e-6), times, ("implicit", 1e-9))
    sparse = measure(stiff, "diagonal, ε=1e-6", [*implicit, "auto"], TOLERANCES, options.repeats)
    measure(stiff, "diagonal, ε=1e-6", ["Tsit5"], [1e-4], 1)
    mild = Case(*sparse_network(), ss.adam(10.0, eps=1e-2), times, ("tsit5", 1e-10))
    gentle = measure(mild, "diagonal, ε=1e-2", ["implicit 4", "auto", *EXPLICIT], TOLERANCES, options.repeats)
    network = Case(*mlp(), ss.adam(1.0, eps=1e-2), list(np.linspace(0, 2, 11)), ("tsit5", 1e-9))
    tanh = measure(network, "tanh network", [*implicit, "auto", *EXPLICIT], TOLERANCES[:-2], options.repeats)
    titles = ("diagonal network, ε = $10^{-6}$", "diagonal network, ε = $10^{-2}$", "tanh network, p = 1377")
    draw(list(zip(titles, (sparse, gentle, tanh), strict=True)), options.output)


if __name__ == "__main__":
    main()

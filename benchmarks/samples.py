"""How many samples does each optimizer need? Slow flows of a diagonal network to rest, at the published size and below.

    python benchmarks/samples.py TABLE.csv --weights 1000 --sparsity 6 --samples 25 30 35 --truths 20 \
        --optimizers SGD Adam,c=1 AdamE,c=1,λ=0.75 pursuit [--start even|random] [--rtol 1e-3]

f(z) = ⟨z, u² − v²⟩ on n inputs in {±1}^d with clean labels ⟨z, w*⟩ of a truth of κ weights ±1, and fresh label noise at
every step. A start, all weights `--size` (even) or normal of that size (random), is taken to Γ by the gradient flow and
from there to rest by the slow flow of each optimizer. The clean test loss on inputs like these is ½|w − w*|². `pursuit`
is basis pursuit, min ‖w‖₁ among exact fits, by linear programming.

Every end is a row of TABLE.csv as soon as it is found. What is in the table already is not computed anew, so that a
study can be stopped, go on, and be spread over processes with tables of their own. Published: d = 10 000, κ = 50.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from problems import basis_pursuit

import slowsde as ss

KEYS = ("weights", "sparsity", "samples", "truth", "start", "size", "optimizer")
FOUND = ("test_loss", "norm_1", "norm_half", "support", "result", "seconds", "first")
EPS = 1e-4


def network(w: Any, z: Any) -> Any:
    return z @ (w["u"] ** 2 - w["v"] ** 2)


def task(weights: int, sparsity: int, samples: int, truth: int) -> tuple[ss.LeastSquares, np.ndarray]:
    """The problem and its truth, by number: samples of a larger number begin with those of a smaller one."""
    rng = np.random.default_rng(truth)
    w = np.zeros(weights)
    w[rng.choice(weights, sparsity, replace=False)] = rng.choice([-1.0, 1.0], sparsity)
    inputs = rng.choice([-1.0, 1.0], (samples, weights))
    return ss.LeastSquares(network, inputs, inputs @ w, noise=ss.LabelNoise(1.0)), w


def start(kind: str, size: float, weights: int, truth: int) -> dict[str, np.ndarray]:
    if kind == "even":
        return {name: np.full(weights, size) for name in "uv"}
    rng = np.random.default_rng([truth, 1])
    return {name: size * rng.normal(size=weights) for name in "uv"}


def optimizer(name: str) -> ss.AGM:
    """By names such as SGD, Adam,c=1 and AdamE,c=1,λ=0.25."""
    method, *numbers = name.split(",")
    known = {key: float(value) for key, value in (number.split("=") for number in numbers)}
    if method == "SGD":
        return ss.sgd()
    if method == "Adam":
        return ss.adam(known["c"], eps=EPS)
    return ss.adame(known["c"], known["λ"], eps=EPS)


def ends(args: argparse.Namespace, shared: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """The ends asked for on one set of data, from one point of Γ, as rows of the table, which have `shared` first."""
    problem, w_true = task(args.weights, args.sparsity, shared["samples"], shared["truth"])
    trained = None
    for name in names:
        begun = time.perf_counter()
        if name == "pursuit":
            w = basis_pursuit(np.asarray(problem.inputs), np.asarray(problem.targets))
            result, first = "SUCCESS", np.nan
        else:
            if trained is None:
                trained = ss.to_manifold(
                    problem, start(args.start, args.size, args.weights, shared["truth"]), rtol=1e-4
                )
            first = time.perf_counter() - begun
            end = ss.stationary_point(
                problem, optimizer(name), trained, rtol=args.rtol, tol=args.tol, max_steps=args.max_steps, throw=False
            )
            w = np.asarray(end.params["u"] ** 2 - end.params["v"] ** 2)
            result = ss.Result(int(np.ravel(end.trajectory.result)[0])).name
        yield shared | {
            "optimizer": name,
            "test_loss": f"{0.5 * np.sum((w - w_true) ** 2):.4g}",
            "norm_1": f"{np.sum(np.abs(w)):.6g}",
            "norm_half": f"{np.sum(np.sqrt(np.abs(w))):.6g}",
            "support": int(np.sum(np.abs(w) > 1e-4)),
            "result": result,
            "seconds": f"{time.perf_counter() - begun:.1f}",
            "first": f"{first:.1f}",
        }


def key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEYS)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--weights", type=int, default=1000)
    parser.add_argument("--sparsity", type=int, default=6)
    parser.add_argument("--samples", type=int, nargs="+", default=[25, 30, 35, 40, 50])
    parser.add_argument("--truths", type=int, default=4, help="how many, or with --truth-from up to which number")
    parser.add_argument("--truth-from", type=int, default=0)
    parser.add_argument("--optimizers", nargs="+", default=["SGD", "Adam,c=1"])
    parser.add_argument("--start", choices=["even", "random"], default="even")
    parser.add_argument("--size", type=float, default=0.1)
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--max-steps", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    fresh = not args.table.exists()
    done = set() if fresh else {key(row) for row in csv.DictReader(args.table.open(encoding="utf-8"))}
    with args.table.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, KEYS + FOUND)
        if fresh:
            table.writeheader()
        for samples in args.samples:
            for truth in range(args.truth_from, args.truths):
                shared = dict(
                    zip(KEYS, (args.weights, args.sparsity, samples, truth, args.start, args.size), strict=False)
                )
                left = [name for name in args.optimizers if key(shared | {"optimizer": name}) not in done]
                for row in ends(args, shared, left):
                    table.writerow(row)
                    file.flush()
                    print(*row.values(), flush=True)


if __name__ == "__main__":
    main()

"""Discrete runs against the slow flow, for every optimizer and every setting of one: the gap in tr H, falling with η.

    python benchmarks/weak_errors.py [--paths 256] [--markdown]

A tanh network 3-3-1 on four samples under label noise, from a point of Γ to t = 0.5. Each row gives the mean over the
paths of tr H minus that of the slow flow, ± one standard error, at falling learning rates; "moves" is how far the slow
flow takes tr H, and "differs" how far it ends from the slow flow without the setting (Adam; SGD for RMSProp and Adam).
"""

import argparse
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from problems import small_network

import slowsde as ss

T, RATES = 0.5, (0.1, 0.05, 0.025, 0.0125)
C, EPS = 3.0, 0.05
LABELS = {"W": "matrix", "b": "rest", "a": "rest"}


def cases() -> list[tuple[str, ss.AGM, ss.AGM]]:
    """(name, optimizer, what it is held against)."""
    adam, slow_memory = ss.adam(C, eps=EPS), ss.adam(0.1, eps=EPS)
    groups = {"matrix": ss.shampoo(C, eps=EPS), "rest": ss.adam(C, eps=2 * EPS)}
    return [
        ("SGD, β1 = .9", ss.sgd(b1=0.9), adam),
        ("RMSProp", ss.rmsprop(C, eps=EPS), ss.sgd()),
        ("Adam", adam, ss.sgd()),
        ("AdamE, λ = ¼", ss.adame(C, 0.25, eps=EPS), adam),
        ("Adam-mini", ss.adam_mini(C, eps=EPS), adam),
        ("Adalayer", ss.adalayer(C, eps=EPS), adam),
        ("Shampoo", ss.shampoo(C, eps=EPS), adam),
        ("Shampoo and Adam in groups", ss.grouped(groups, LABELS, learning_rates={"rest": 0.5}), adam),
        ("Adam, bias correction, c = 0.1", ss.adam(0.1, eps=EPS, bias_correction=True), slow_memory),
        ("Adam, weight decay ω = ½", ss.adam(C, eps=EPS, weight_decay=0.5), adam),
        ("Adam, schedule e^{−2t}", ss.adam(C, eps=EPS, schedule=lambda t: jnp.exp(-2 * t)), adam),
    ]


def measure(optimizer: ss.AGM, instead: ss.AGM, paths: int) -> tuple[float, float, list[tuple[float, float]]]:
    """How far the slow flow moves tr H, how much of it is due to the setting, and (gap, s.e.) at each rate."""
    problem, start = small_network()
    common: dict[str, Any] = {"metrics": ("trace_hessian",), "save_at": [0.0, T]}
    before, after = ss.simulate(problem, optimizer, start, T, **common).metrics["trace_hessian"][0]
    other = ss.simulate(problem, instead, start, T, **common).metrics["trace_hessian"][0, -1]
    gaps = []
    for lr in RATES:
        fast = ss.run_discrete(problem, optimizer, start, T, lr=lr, paths=paths, **common).metrics["trace_hessian"]
        gaps.append((fast[:, -1].mean() - after, fast[:, -1].std(ddof=1) / np.sqrt(paths)))
    return after - before, after - other, gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=256)
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/")
    arguments = parser.parse_args()
    started = time.perf_counter()
    heads = ["optimizer", "moves", "differs", *(f"η = {lr:g}" for lr in RATES)]
    row = "| {} |".format(" | ".join(["{}"] * len(heads))) if arguments.markdown else "{:<32}{:>9}{:>9}" + "{:>20}" * 4
    print(row.format(*heads))
    if arguments.markdown:
        print("|---" * len(heads) + "|")
    for name, optimizer, instead in cases():
        moves, setting, gaps = measure(optimizer, instead, arguments.paths)
        cells = [f"{gap:+.4f} ± {error:.4f}" for gap, error in gaps]
        print(row.format(name, f"{moves:+.3f}", f"{setting:+.3f}", *cells), flush=True)
    print(f"\n{arguments.paths} paths, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

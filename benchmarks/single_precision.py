"""What float32 costs in accuracy and saves in time: the same calls in both precisions.

    python benchmarks/single_precision.py [--repeats 3]

Relative differences |found − expected|/|expected| of the point Φ_S(x) that a start 5 % off Γ is taken to, of drift and
dv there, and of what a run to t1 does to the weights, |θ(t1) − θ(0)| its measure; and the time of a warm run in float64
over that in float32. Adam under label noise, on the small problems of `problems.py` and on the diagonal network of
`scale.py`, which takes the matrix-free route.
"""

import argparse
import os
import warnings
from typing import Any

import jax
import numpy as np
from problems import mlp, sparse_network
from scale import best_of, diagonal_network

import slowsde as ss


def flat(tree: Any) -> np.ndarray:
    """All entries in double precision."""
    return np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])


def difference(found: Any, expected: Any, scale: Any = None) -> float:
    """|found − expected| over |expected|, or over |scale|."""
    size = np.linalg.norm(flat(expected if scale is None else scale))
    return float(np.linalg.norm(flat(found) - flat(expected)) / size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    warnings.filterwarnings("ignore", message="Computing in float32")
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}")
    print(f"{'':<34}{'Φ_S':>9}{'drift':>9}{'dv':>9}{'run':>9}{'steps':>10}{'float64/float32':>17}")
    cases = {
        "diagonal, p = 200, ε = 1e-6": (*sparse_network(), ss.adam(10.0, eps=1e-6), 0.2),
        "diagonal, p = 200, ε = 1e-2": (*sparse_network(), ss.adam(10.0, eps=1e-2), 0.2),
        "tanh, p = 1377, ε = 1e-2": (*mlp(), ss.adam(1.0, eps=1e-2), 0.2),
        "diagonal, p = 20 000, matrix-free": (*diagonal_network(10_000, 500), ss.adam(10.0, eps=1e-6), 0.2),
    }
    for name, (problem, start, optimizer, t1) in cases.items():
        rng = np.random.default_rng(1)
        off = jax.tree.map(lambda leaf: leaf * (1 + 0.05 * rng.normal(size=leaf.shape)), start)  # noqa: B023
        points, found, runs, seconds = {}, {}, {}, {}
        for dtype in ("float64", "float32"):
            points[dtype] = ss.to_manifold(problem, off, dtype=dtype)
            here = points["float64"]
            v = jax.tree.map(lambda leaf: 0.01 * (1 + leaf**2), here)
            found[dtype] = ss.coefficients(problem, optimizer, here, v, dtype=dtype)

            def run(dtype: str = dtype, here: Any = here) -> ss.Trajectory:
                return ss.simulate(problem, optimizer, here, t1, save_at=2, rtol=1e-4, dtype=dtype)  # noqa: B023

            runs[dtype] = run()
            seconds[dtype] = best_of(lambda: run().params, repeats)
        exact, rough = runs["float64"], runs["float32"]
        moved = flat(exact.final_params) - flat(jax.tree.map(lambda leaf: leaf[:, 0], exact.params))
        print(
            f"{name:<34}{difference(points['float32'], points['float64']):9.0e}"
            f"{difference(found['float32'].drift, found['float64'].drift):9.0e}"
            f"{difference(found['float32'].v_drift, found['float64'].v_drift):9.0e}"
            f"{difference(rough.final_params, exact.final_params, moved):9.0e}"
            f"{exact.stats['num_steps']:5d}{rough.stats['num_steps']:5d}"
            f"{seconds['float64'] / seconds['float32']:17.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

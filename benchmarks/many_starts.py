"""Which minimizers, how often: 64 random starts of a diagonal network, followed to rest by SGD, Adam and AdamE-¾.

    python benchmarks/many_starts.py [--starts 64]

f(z) = ⟨z, u² − v²⟩ with d = 20, a truth of two weights seen through n = 10 signs, label noise of std 1; u and v uniform
in (0.1, 1). One call with stacked=True, beside one call for each start. A weight counts that is more than 10⁻³ of the
largest.
"""

import argparse
import time
from collections import Counter
from typing import Any

import numpy as np

import slowsde as ss

D, N = 20, 10


def predict(w: Any, z: Any) -> Any:
    return z @ (w["u"] ** 2 - w["v"] ** 2)


def problem(rng: np.random.Generator) -> ss.LeastSquares:
    inputs, truth = rng.choice([-1.0, 1.0], size=(N, D)), np.zeros(D)
    truth[:2] = 1.0, -1.0
    return ss.LeastSquares(predict, inputs, inputs @ truth, ss.LabelNoise(std=1.0))


def weights(found: ss.StationaryPoint) -> np.ndarray:
    return np.asarray(found.params["u"]) ** 2 - np.asarray(found.params["v"]) ** 2


def count(w: np.ndarray) -> np.ndarray:
    """‖w‖₀ of every start, −1 where there is none."""
    size = np.abs(w)
    there = np.isfinite(size).all(axis=1)
    return np.where(there, np.sum(size > 1e-3 * size.max(axis=1, keepdims=True), axis=1), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=64)
    starts = parser.parse_args().starts
    rng = np.random.default_rng(0)
    task = problem(rng)
    params0 = {name: rng.uniform(0.1, 1.0, (starts, D)) for name in "uv"}
    optimizers = {
        "SGD": ss.sgd(),
        "Adam": ss.adam(c=10.0, eps=1e-4),
        "AdamE-3/4": ss.adame(10.0, 0.75, eps=1e-4),
    }
    print(f"| {starts} starts | ‖w‖₀: how many | at rest | first call (s) | again (s) | one by one (s) |")
    print("|---|---|---|---|---|---|")
    for name, optimizer in optimizers.items():

        def together(optimizer: Any = optimizer) -> ss.StationaryPoint:
            return ss.stationary_point(task, optimizer, params0, stacked=True, throw=False)

        def alone(number: int, optimizer: Any = optimizer) -> ss.StationaryPoint:
            start = {key: leaf[number] for key, leaf in params0.items()}
            return ss.stationary_point(task, optimizer, start, throw=False)

        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            found = together()
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        ends = [alone(number) for number in range(starts)]
        apart = time.perf_counter() - began
        same = np.array_equal(weights(found), np.stack([weights(end) for end in ends]), equal_nan=True)
        assert same, "a start together with others ends elsewhere than alone"
        histogram = ", ".join(f"{k}: {n}" for k, n in sorted(Counter(count(weights(found)).tolist()).items()))
        rest = int(np.sum(found.trajectory.result == 0))
        print(f"| {name} | {histogram} | {rest} | {seconds[0]:.1f} | {seconds[1]:.1f} | {apart:.1f} |", flush=True)


if __name__ == "__main__":
    main()

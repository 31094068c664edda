"""`predict` against held runs: several optimizers on three networks, at a half and a quarter of the smallest rate run.

    python benchmarks/predict.py [--paths 256] [--truth 1024] [--only tanh diagonal digits] [--markdown]

Of every case the two largest rates r and 2r, r a power of √2 times 0.01, are taken at which `validity` does not say
"not valid"; η is r/2 and r/4. Gaps are root mean squares over 20 times, in % of what the slow flow moves the observable
by, less what the noise of the held runs contributes. "within" is the share of times at which the prediction lies within
twice all errors (its own two, and the standard error of the truth). "cost" is that of the runs of the prediction over
that of runs at η with the same standard error. On the digits, of 1210 weights, it is three optimizers with an eighth
of the paths, a sixteenth for the truth.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from problems import small_network

import slowsde as ss

NAMES = ("trace_hessian", "trace_sqrt_diag_hessian")
HEADS = ("problem, optimizer", "of r", "η", "observable", "slow", "predicted", "s.e.", "model", "within", "cost")
PLAIN = "{:<34}{:>5}{:>10.3g}  {:<24}{:>9}{:>10}{:>7}{:>7}{:>8}{:>7}"
MARKDOWN = "| {} | {} | {:.3g} | {} | {} | {} | {} | {} | {} | {} |"
Case = tuple[str, Any, ss.AGM]


def diagonal() -> tuple[Any, Any, float, float, float]:
    """The network of the README: 24 weights, 6 equations."""
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))
    targets = inputs[:, 0] - inputs[:, 1]
    problem = ss.LeastSquares(
        lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, targets, noise=ss.LabelNoise(std=1.0)
    )
    return problem, ss.to_manifold(problem, {"u": np.full(12, 0.7), "v": np.full(12, 0.5)}), 0.5, 2.0, 0.01


def tanh() -> tuple[Any, Any, float, float, float]:
    """A tanh network 3-3-1 on four samples."""
    return *small_network(), 0.5, 3.0, 0.05


def digits() -> tuple[Any, Any, float, float, float]:
    """One image of each of ten digits, a tanh network 64-16-10, four a step; labels are right with probability 0.55."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    first = [int(np.flatnonzero(found.target == digit)[0]) for digit in range(10)]
    # Of surer labels (0.91) the softmax is so flat that r is 0.0006, and a run at r/4 is millions of steps.
    targets = np.where(np.eye(10, dtype=bool), 0.55, 0.05)
    problem = ss.Classification(
        lambda p, z: p["A"] @ jnp.tanh(p["W"] @ z + p["b"]) + p["a"],
        found.data[first] / 16,
        targets,
        noise=ss.LabelNoise(batch_size=4),
    )
    rng = np.random.default_rng(1)
    weights = {"W": 0.3 * rng.normal(size=(16, 64)), "b": np.zeros(16), "A": rng.normal(size=(10, 16)) / 4}
    return problem, ss.to_manifold(problem, weights | {"a": np.zeros(10)}), 1.0, 10.0, 0.1


PROBLEMS = {"diagonal": diagonal, "tanh": tanh, "digits": digits}


def cases(c: float, eps: float, few: bool) -> Iterator[Case]:
    """(name, what predict is given, the AGM in the limit)."""
    corrected = ss.adam(c, eps=eps, bias_correction=True)
    own = {
        "SGD": ss.sgd(),
        "RMSProp": ss.rmsprop(c, eps=eps),
        "Adam": ss.adam(c, eps=eps),
        "Adam, bias correction": corrected,
        "AdamW, ω = ½": ss.adam(c, eps=eps, weight_decay=0.5),
        "Adam-mini": ss.adam_mini(c, eps=eps),
        "Shampoo": ss.shampoo(c, eps=eps),
    }
    for name in ("SGD", "RMSProp", "Adam") if few else own:
        yield name, own[name], own[name]
    if not few:
        yield "optax.adam", lambda lr: optax.adam(lr, b2=1 - c * lr**2, eps=eps), corrected


def smallest_rate(problem: Any, optimizer: ss.AGM, start: Any, t1: float) -> float:
    """r, the largest power of √2 times 0.01 of which the double is admissible."""
    slow = ss.simulate(problem, optimizer, start, t1, save_at=21)
    for rate in 0.01 * 2 ** (np.arange(8, -14, -1) / 2):
        possible = optimizer.c * (2 * rate) ** 2 <= 1 and t1 / (2 * rate) ** 2 > 40
        if possible and ss.validity(problem, optimizer, slow, 2 * rate).verdict != "not valid":
            return float(rate)
    raise ValueError("no rate is admissible")


def rows(problem: Any, start: Any, t1: float, case: Case, paths: int, truth: int, seed: int) -> Iterator[list[Any]]:
    name, given, limit = case
    near = smallest_rate(problem, limit, start, t1)
    like = {} if given is limit else {"like": limit}
    common: dict[str, Any] = {"metrics": NAMES, "save_at": 21} | like
    for share in (2, 4):
        lr = near / share
        found = ss.predict(
            problem, given, start, t1, lr=lr, rates=(near, 2 * near), paths=paths, key=jr.key(seed), **common
        )
        real = given if given is limit else given(lr)
        fast = ss.run_discrete(problem, real, start, t1, lr=lr, paths=truth, key=jr.key(1000 + seed), **common)
        for observable in NAMES:
            yield [name, share, lr, observable, *judged(found, fast, observable)]


def judged(found: ss.Prediction, fast: ss.Trajectory, name: str) -> list[float]:
    """Gap of the slow flow, of the prediction, both errors, the share within, cost at equal standard error."""
    values, slow = fast.metrics[name], found.slow_mean[name]
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
    moved = np.ptp(slow) / 100

    def size(gap: np.ndarray) -> float:
        return float(np.sqrt(max(np.mean(gap[1:] ** 2 - error[1:] ** 2), 0)) / moved)

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(values[1:] ** 2)) / moved)

    gap = found.mean[name] - mean
    within = np.abs(gap) <= 2 * np.hypot(found.error[name], error) + 1e-9
    # Runs at lr with the standard error of the prediction, by the spread that was measured.
    runs = np.median(values.std(axis=0, ddof=1)[1:] ** 2 / found.standard_error[name][1:] ** 2)
    errors = rms(found.standard_error[name]), rms(found.model_error[name])
    return [size(slow - mean), size(gap), *errors, float(within[1:].mean()), found.paths * found.cost / runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=256)
    parser.add_argument("--truth", type=int, default=1024)
    parser.add_argument("--only", nargs="+", default=["tanh", "diagonal"], choices=list(PROBLEMS))
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/")
    arguments = parser.parse_args()
    started, found = time.perf_counter(), []
    form = MARKDOWN if arguments.markdown else PLAIN
    print(form.replace(".3g", "").replace("{:}", "{}").format(*HEADS))
    for problem_name in arguments.only:
        problem, start, t1, c, eps = PROBLEMS[problem_name]()
        large = problem_name == "digits"
        paths, truth = (arguments.paths // 8, arguments.truth // 16) if large else (arguments.paths, arguments.truth)
        for seed, case in enumerate(cases(c, eps, few=large)):
            for row in rows(problem, start, t1, case, paths, truth, seed):
                found.append(row)
                name, share, lr, observable, *numbers = row
                cells = [f"{number:.2f}" for number in numbers]
                print(form.format(f"{problem_name}, {name}", f"1/{share}", lr, observable, *cells), flush=True)
    for share in (2, 4):
        numbers = np.array([row[4:] for row in found if row[1] == share])
        print(
            f"r/{share}: median gap {np.median(numbers[:, 0]):.2f} -> {np.median(numbers[:, 1]):.2f} %, "
            f"{np.mean(numbers[:, 4]):.3f} within twice the errors, median cost {np.median(numbers[:, 5]):.2f}"
        )
    print(f"{arguments.paths} paths, truth {arguments.truth}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

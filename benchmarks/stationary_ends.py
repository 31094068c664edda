"""Ends of slow flows of many kinds, at default settings: distance to an independent truth, stillness, steps, seconds.

    python benchmarks/stationary_ends.py

Truths: u = v = 1 for uv = 1 (u = v = w = 1 for uvw = 1); linear programming for SGD on diagonal networks (basis
pursuit, with ω/2α added to the weights of its norm under weight decay); for SGD on L factors of a d×d matrix of rank
one of which all entries are observed, the least tr H = L d^{2/L} ‖M‖_*^{2−2/L} / n; ‖w‖² = α tr H / 2ω for weights w
of no scale with weight decay. "-" where there is none.
Seconds are those of a second call, which compiles nothing.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import basis_pursuit

import slowsde as ss


def product(factors: Any) -> Any:
    """W_L ⋯ W_1."""
    found = factors[0]
    for factor in factors[1:]:
        found = factor @ found
    return found


def monomial(names: str) -> tuple[ss.LeastSquares, dict[str, Any], Any]:
    problem = ss.LeastSquares(
        lambda p, x: jnp.prod(jnp.stack([p[n] for n in names])) * x, np.ones(1), np.ones(1), ss.LabelNoise(1.0)
    )
    start = {n: np.array(value) for n, value in zip(names, (2.0, 0.5, 1.0), strict=False)}
    return problem, start, lambda p: max(abs(float(p[n]) - 1) for n in names)


def pursuit(seed: int, truth: bool, decay: float = 0.0) -> tuple[ss.LeastSquares, dict[str, Any], Any]:
    rng = np.random.default_rng(seed)
    inputs, w = rng.normal(size=(12, 30)), np.zeros(30)
    w[:3] = rng.normal(size=3)
    # ¼ α tr H + ½ ω|θ|² is α Σ_j (mean of z_j² + ω/2α)(u_j² + v_j²), of which |w_j| is the least; α = 1/n.
    scale = np.mean(inputs**2, axis=0) + decay * len(inputs) / 2
    best = basis_pursuit(inputs, inputs @ w, scale)
    problem = ss.LeastSquares(lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, inputs @ w, ss.LabelNoise(1.0))
    start = {"u": np.full(30, 0.3), "v": np.full(30, 0.3)}
    return problem, start, (lambda p: float(np.abs(p["u"] ** 2 - p["v"] ** 2 - best).max())) if truth else None


def factorization(depth: int, size: int, full: bool) -> tuple[ss.LeastSquares, Any, Any]:
    rng = np.random.default_rng(0)
    matrix = np.outer(rng.normal(size=size), rng.normal(size=size))
    matrix *= np.sqrt(size) / np.linalg.norm(matrix)
    inputs = np.eye(size * size).reshape(-1, size, size) if full else rng.normal(size=(3 * size, size, size))
    targets = np.einsum("nij,ij->n", inputs, matrix)
    problem = ss.LeastSquares(lambda p, a: jnp.sum(a * product(p)), inputs, targets, ss.LabelNoise(1.0))
    start = [rng.normal(size=(size, size)) / np.sqrt(size) for _ in range(depth)]
    trace = depth * size ** (2 / depth) * np.linalg.norm(matrix, "nuc") ** (2 - 2 / depth) / len(inputs)

    def off(params: Any) -> float:
        return abs(float(ss.metrics.trace_hessian(problem, params)) / trace - 1)

    return problem, start, off if full else None


def unit_sphere() -> tuple[ss.LeastSquares, Any, Any]:
    """Weights that enter by their direction alone, with weight decay 0.1: noise drives them out, decay back."""
    rng = np.random.default_rng(5)
    inputs, targets = rng.normal(size=(3, 6)), 0.2 * rng.normal(size=3)
    problem = ss.LeastSquares(lambda w, z: z @ w / jnp.linalg.norm(w), inputs, targets, ss.LabelNoise(1.0))

    def off(w: Any) -> float:
        return abs(2 * 0.1 * float(w @ w) * len(inputs) / float(ss.metrics.trace_hessian(problem, w)) - 1)

    return problem, rng.normal(size=6), off


def network() -> tuple[ss.LeastSquares, Any, Any]:
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(5, 3)), rng.normal(size=5)
    problem = ss.LeastSquares(lambda p, z: p["a"] @ jnp.tanh(p["W"] @ z), inputs, targets, ss.LabelNoise(1.0))
    return problem, {"a": rng.normal(size=6), "W": rng.normal(size=(6, 3))}, None


def classifier() -> tuple[ss.Classification, Any, Any]:
    rng = np.random.default_rng(4)
    labels = 0.8 * np.eye(3)[rng.integers(0, 3, 4)] + 0.2 / 3
    problem = ss.Classification(
        lambda p, z: p["B"] @ (p["A"] @ z), rng.normal(size=(4, 5)), labels, ss.LabelNoise(batch_size=1)
    )
    return problem, {"A": rng.normal(size=(4, 5)) / 2, "B": rng.normal(size=(3, 4)) / 2}, None


ENDS = {
    "uv = 1": (monomial("uv"), {"SGD": ss.sgd(), "Adam": ss.adam(c=2.0, eps=1e-2)}),
    "uvw = 1": (monomial("uvw"), {"SGD": ss.sgd(), "Adam": ss.adam(c=2.0, eps=1e-2)}),
    "pursuit 0": (pursuit(0, True), {"SGD": ss.sgd()}),
    "pursuit 1": (pursuit(1, True), {"SGD": ss.sgd()}),
    "pursuit 2": (pursuit(2, True), {"SGD": ss.sgd()}),
    "diagonal network": (
        pursuit(0, False),
        {
            "Adam": ss.adam(c=2.0, eps=1e-4),
            "AdamE, λ = ¼": ss.adame(c=2.0, lam=0.25, eps=1e-4),
            "AdamE, λ = ¾": ss.adame(c=2.0, lam=0.75, eps=1e-4),
        },
    ),
    "pursuit 0, decayed": (pursuit(0, True, 0.1), {"SGD, ω = 0.1": ss.sgd(weight_decay=0.1)}),
    "direction of w": (unit_sphere(), {"SGD, ω = 0.1": ss.sgd(weight_decay=0.1)}),
    "W1 W0, 6×6, all entries": (factorization(2, 6, True), {"SGD": ss.sgd()}),
    "W1 W0, 8×8, 24 of 64": (
        factorization(2, 8, False),
        {
            "Adam, c = 1, ε = 1e-4": ss.adam(c=1.0, eps=1e-4),
            "Adam, c = 1000, ε = 1e-8": ss.adam(c=1000.0, eps=1e-8),
            "Shampoo": ss.shampoo(c=1.0, eps=1e-3),
        },
    ),
    "five 4×4, all entries": (factorization(5, 4, True), {"SGD": ss.sgd(), "Adam, ε = 1e-4": ss.adam(c=1.0, eps=1e-4)}),
    "tanh network": (network(), {"SGD": ss.sgd(), "Adam": ss.adam(c=1.0, eps=1e-3)}),
    "classification": (classifier(), {"SGD": ss.sgd(), "Adam": ss.adam(c=1.0, eps=1e-2)}),
}


def main() -> None:
    print(f"device {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| problem | optimizer | result | off the truth | stillness | steps | warm seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, ((problem, start, off), optimizers) in ENDS.items():
        for label, optimizer in optimizers.items():
            for _ in range(2):
                begun = time.perf_counter()
                run = ss.simulate(problem, optimizer, start, np.inf, save_at=2, throw=False)
                seconds = time.perf_counter() - begun
            params = jax.tree.map(lambda leaf: leaf[0], run.final_params)
            truth = "-" if off is None else f"{off(params):.1g}"
            stats = run.stats
            print(
                f"| {name} | {label} | {ss.Result(int(run.result[0])).name} | {truth} | {stats['stillness']:.1g} "
                f"| {stats['num_steps']} | {seconds:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Where SGD, Adam and AdamE end up: runs of the slow flow to rest, and the gradient that is left there.

    python benchmarks/stationary.py

Diagonal networks f(z) = ⟨z, u² − v²⟩ under label noise, d weights on n samples. The slow flow of AdamE-λ comes to rest
where tr Diag(H)^{1−λ} is stationary on Γ (λ = 0 SGD, ½ Adam). The last columns check that in NumPy alone: with
diag H = 4θ² and J = 2[Z, −Z]Diag(θ)/√n, the gradient of the trace in the coordinates with H_ii > 10⁻¹², without its
part in the rows of J, in absolute terms and as a share of the gradient; and the same at the start.
"""

import os
import time
from typing import Any

import jax
import numpy as np

import slowsde as ss

OPTIMIZERS = {
    "SGD": (ss.sgd(), 0.0),
    "Adam": (ss.adam(10.0, eps=1e-6), 0.5),
    "AdamE, λ=¼": (ss.adame(10.0, 0.25, eps=1e-4), 0.25),
    "AdamE, λ=¾": (ss.adame(10.0, 0.75, eps=1e-4), 0.75),
}


def network(d: int, n: int) -> tuple[ss.LeastSquares, Any]:
    """Inputs ±1, a truth of five weights ±1, and a random start."""
    rng = np.random.default_rng(0)
    inputs, truth = rng.choice([-1.0, 1.0], size=(n, d)), np.zeros(d)
    truth[:5] = [1, -1, 1, -1, 1]
    problem = ss.LeastSquares(lambda p, z: z @ (p["u"] ** 2 - p["v"] ** 2), inputs, inputs @ truth, ss.LabelNoise(0.5))
    return problem, ss.to_manifold(problem, {k: 0.7 + 0.1 * rng.standard_normal(d) for k in ("u", "v")})


def projected_gradient(inputs: np.ndarray, params: Any, lam: float) -> tuple[float, float, int]:
    """|Q ∇ tr Diag(H)^{1−λ}|, its share of |∇ tr Diag(H)^{1−λ}|, and how many coordinates have not vanished."""
    theta = np.concatenate([params["u"], params["v"]])
    jacobian = 2 * np.concatenate([inputs, -inputs], axis=1) * theta / inputs.shape[0] ** 0.5
    kept = np.sum(jacobian**2, axis=0) > 1e-12
    theta, jacobian = theta[kept], jacobian[:, kept]
    gradient = (1 - lam) * (4 * theta**2) ** -lam * 8 * theta
    left = gradient - np.linalg.pinv(jacobian, rcond=1e-9) @ (jacobian @ gradient)
    return float(np.linalg.norm(left)), float(np.linalg.norm(left) / np.linalg.norm(gradient)), int(kept.sum())


def main() -> None:
    print(f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}, float64")
    print(
        f"{'d, n':<10}{'optimizer':<13}{'steps':>7}{'first s':>9}{'warm s':>8}{'t':>9}{'stillness':>11}{'support':>9}"
        f"{'gradient':>10}{'share':>9}{'at start':>10}"
    )
    for d, n in ((20, 10), (100, 50)):
        problem, start = network(d, n)
        for name, (optimizer, lam) in OPTIMIZERS.items():
            begun = time.perf_counter()
            ss.stationary_point(problem, optimizer, start)
            first = time.perf_counter() - begun
            begun = time.perf_counter()
            end = ss.stationary_point(problem, optimizer, start)
            warm = time.perf_counter() - begun
            size, share, support = projected_gradient(np.asarray(problem.inputs), end.params, lam)
            before = projected_gradient(np.asarray(problem.inputs), start, lam)[0]
            steps = end.trajectory.stats["num_steps"]
            print(
                f"{f'{d}, {n}':<10}{name:<13}{steps:7d}{first:9.2f}{warm:8.3f}{end.t:9.1e}{end.stillness:11.1e}"
                f"{support:9d}{size:10.1e}{share:9.1e}{before:10.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Ensembles whose numbers must not depend on devices or processes: python ensemble_runs.py out.npz [port count index]

The number of devices is that of XLA_FLAGS; with three more arguments the program is process `index` of `count`.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import slowsde as ss
from slowsde import discrete, ensemble

PATHS, FEW = 200, 37  # four blocks of 64, the last filled up; less than one block
VALLEY = ss.Problem(lambda x: 0.5 * jnp.exp(0.5 * x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(np.diag([0.8, 0.5])))
VALLEY_START, VALLEY_V0 = np.array([0.0, 1.0]), np.array([0.3, 0.6])
LINE = ss.LeastSquares(lambda w, z: z @ w**2, np.eye(3, 5) + 0.3, np.ones(3), ss.LabelNoise(std=1.0, batch_size=2))
LINE_START = np.array([0.9, 1.1, 0.6, 1.3, 0.8])


def slow(paths: int = PATHS, **kw: Any) -> ss.Trajectory:
    settings: dict[str, Any] = {"v0": VALLEY_V0, "save_at": 4, "dt": 1e-3, "metrics": "trace_hessian"} | kw
    return ss.simulate(VALLEY, ss.adam(c=2.0, eps=0.05), VALLEY_START, 0.03, paths=paths, **settings)


def fast(paths: int = PATHS, **kw: Any) -> ss.Trajectory:
    settings: dict[str, Any] = {"lr": 0.05, "save_at": 4, "project": False, "metrics": "trace_hessian"} | kw
    return ss.run_discrete(LINE, ss.adam(c=2.0, eps=0.05), LINE_START, 0.5, paths=paths, **settings)


def keyed_by_place(function: Any, shared: Any, index: Any, size: int, **kw: Any) -> Any:
    """A mutant of `map_paths`: every device counts its own paths."""
    each = -(-index.size // (size * len(jax.local_devices()))) * size
    return ensemble.map_paths(function, shared, index % each, size, **kw)


def orders() -> np.ndarray:
    """Whether every argument was mapped, once and in order, for many numbers of arguments."""
    right = []
    for count, size, depth in ((1, 1, 1), (1, 8, 2), (5, 1, 2), (7, 2, 1), (16, 2, 1), (33, 4, 3), (100, 8, 16)):
        points = np.arange(count, dtype=np.float32), np.ones((count, 2), np.float32)
        found = ensemble.map_paths(_affine, 3.0, points, size, depth=depth)
        right.append(np.array_equal(found["y"], 3 * points[0][:, None] + points[1]))
    return np.array(right)


def _affine(scale: Any, point: Any, shown: Any) -> dict[str, Any]:
    return {"y": scale * point[0] + point[1]}


def runs() -> dict[str, np.ndarray]:
    """Everything that is to be equal, by name, and the mutant that is not to be."""
    found = {"orders": orders()}
    for name, run in (("slow", slow), ("fast", fast)):
        whole = run()
        found |= {name: whole.params, f"{name} v": whole.v, f"{name} metric": whole.metrics["trace_hessian"]}
    original = discrete.map_paths
    discrete.map_paths = keyed_by_place
    found["mutant"] = fast().params
    discrete.map_paths = original
    return found


if __name__ == "__main__":
    if len(sys.argv) > 2:
        port, count, index = (int(word) for word in sys.argv[2:])
        jax.distributed.initialize(f"localhost:{port}", count, index)
    np.savez(sys.argv[1], devices=jax.device_count(), **runs())

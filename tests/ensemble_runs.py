"""Ensembles whose numbers must not depend on devices or processes.

    python ensemble_runs.py out.npz names [port count index]

`names` are some of RUNS and CHECKS, between commas. The number of devices is that of XLA_FLAGS; with three more
arguments the program is process `index` of `count`.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import slowsde as ss
from manifolds.support.precision import working_precision
from slowsde.dynamics import ensemble, marching
from slowsde.runs import discrete

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


def keyed_by_place(function: Any, shared: Any, states: Any, begin: int, stops: Any, size: int, *rest: Any) -> Any:
    """A mutant of `march_paths`: every device counts its own paths."""
    index, states = states
    each = -(-index.size // (size * len(jax.local_devices()))) * size
    return marching.march_paths(function, shared, (index % each, states), begin, stops, size, *rest)


def orders() -> np.ndarray:
    """Whether every argument was mapped, once and in order, for many numbers of arguments."""
    right = []
    for count, size, depth in ((1, 1, 1), (1, 8, 2), (5, 1, 2), (7, 2, 1), (16, 2, 1), (33, 4, 3), (100, 8, 16)):
        points = np.arange(count, dtype=np.float32), np.ones((count, 2), np.float32)
        found = ensemble.map_paths(_affine, 3.0, points, size, depth=depth)
        right.append(np.array_equal(found["y"], 3 * points[0][:, None] + points[1]))
    return np.array(right)


def _affine(scale: Any, point: Any) -> dict[str, Any]:
    return {"y": scale * point[0] + point[1]}


def factored() -> np.ndarray:
    """Whether eigenpairs and Cholesky factors of 100 rows, forty in turn on every device, are right (and come)."""
    a = np.random.default_rng(2).normal(size=(8, 100, 100)) / 10
    a = a @ a.transpose(0, 2, 1) + np.eye(100)
    with working_precision("float64"):
        found = ensemble.map_paths(_factored, None, a, 1)
    return np.isclose(found, 40 * (np.linalg.slogdet(a)[1] + np.linalg.eigvalsh(a)[:, -1]))


def _factored(_: Any, a: Any) -> Any:
    def turn(k: Any, total: Any) -> Any:
        again = a + 0 * total
        factor = jax.scipy.linalg.cho_factor(again)[0]
        return total + 2 * jnp.sum(jnp.log(jnp.diag(factor))) + jnp.linalg.eigh(again)[0][-1]

    return jax.lax.fori_loop(0, 40, turn, jnp.zeros((), a.dtype))


def mutant() -> ss.Trajectory:
    """`fast` keyed by the place of a path on its device."""
    original, discrete.march_paths = discrete.march_paths, keyed_by_place
    try:
        return fast()
    finally:
        discrete.march_paths = original


def many_rows(paths: int = 5) -> ss.Trajectory:
    """An SDE whose kernel has 100 rows: no such matrices are batched on a CPU, but devices factor theirs at once."""
    inputs = np.random.default_rng(1).normal(size=(100, 110)) / 10
    problem = ss.LeastSquares(lambda w, z: z @ (w + 0.1 * w**2), inputs, inputs @ np.ones(110), ss.GaussianNoise(0.1))
    settings: dict[str, Any] = {"save_at": 2, "dt": 1e-3, "metrics": "trace_hessian", "route": "kernel"}
    return ss.simulate(problem, ss.sgd(), np.full(110, 0.9), 0.03, paths=paths, **settings)


def conventional() -> ss.Trajectory:
    return ss.conventional_sde(LINE, ss.adam(c=2.0), LINE_START, 0.1, lr=0.05, paths=PATHS, metrics="trace_hessian")


def many_starts(run: Any, count: int) -> ss.Trajectory:
    starts = LINE_START * np.random.default_rng(3).uniform(0.8, 1.2, (count, 5))
    return run(LINE, ss.adam(c=2.0, eps=0.05), starts, 0.1, save_at=3, metrics="trace_hessian", stacked=True)


def flows() -> ss.Trajectory:
    return many_starts(ss.simulate, 5)


def fast_from_starts() -> ss.Trajectory:
    return many_starts(partial(ss.run_discrete, lr=0.05), 70)  # more than a block has paths


def sharded() -> np.ndarray:
    """Whether parameters that are spread over the devices, by either kind of axis, give what whole ones give."""
    w, inputs = np.linspace(0.5, 1.5, 16, dtype=np.float32), np.eye(2, 16, dtype=np.float32) + 0.25
    problem = ss.LeastSquares(lambda w, z: z @ w**2, inputs, np.ones(2), ss.LabelNoise(std=1.0))

    def end(start: Any) -> np.ndarray:
        return ss.run_discrete(problem, ss.adam(c=2.0), start, 0.1, lr=0.05, paths=2, save_at=2).params

    kinds = AxisType.Auto, AxisType.Explicit
    meshes = [jax.make_mesh((len(jax.devices()),), ("w",), axis_types=(kind,)) for kind in kinds]
    pieces = [jax.device_put(w, NamedSharding(mesh, P("w"))) for mesh in meshes]
    return np.array([np.array_equal(end(piece), end(w)) for piece in pieces])


CHECKS: dict[str, Any] = {"orders": orders, "factored": factored, "sharded": sharded}
RUNS: dict[str, Any] = {
    run.__name__: run for run in (slow, fast, mutant, many_rows, conventional, flows, fast_from_starts)
}


def arrays(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Paths, states and metrics of the runs, by name."""
    found = {name: CHECKS[name]() for name in names if name in CHECKS}
    for name in (name for name in names if name in RUNS):  # in one order: processes wait for each other in each
        run = RUNS[name]()
        found |= {name: run.params, f"{name} metric": run.metrics["trace_hessian"]}
        found |= {f"{name} v{i}": leaf for i, leaf in enumerate(jax.tree.leaves(run.v))}
    return found


if __name__ == "__main__":
    out, names, *process = sys.argv[1:]
    if process:
        port, count, index = (int(word) for word in process)
        jax.distributed.initialize(f"localhost:{port}", count, index)
    found: dict[str, Any] = arrays(names.split(","))
    np.savez(out, devices=jax.device_count(), **found)

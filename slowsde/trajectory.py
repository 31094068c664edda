"""What a run returns: saved points of Γ, optimizer states and metrics over slow time, for every path."""

import dataclasses
import enum
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from manifolds.coordinates import Coordinates


class Result(enum.IntEnum):
    """How a path ended."""

    SUCCESS = 0
    LEFT_MANIFOLD = 1  # the return to Γ did not converge
    RANK_LOST = 2  # a nonzero eigenvalue of H' became zero
    NON_FINITE = 3
    MAX_STEPS = 4  # too many steps: the flow is too stiff for the solver
    NOT_STATIONARY = 5  # with t1 = inf: max_steps came before the flow was stationary

    def explain(self) -> str:
        """What happened and what to do about it."""
        return {
            Result.SUCCESS: "successful",
            Result.LEFT_MANIFOLD: "the return to the manifold did not converge; use a smaller step (dt or rtol)",
            Result.RANK_LOST: "the rank of the Hessian drops and Γ is singular there, or the step is too long to tell: "
            "try a smaller dt, or a larger eps where v vanishes",
            Result.NON_FINITE: "the state became non-finite; use a smaller step (dt or lr)",
            Result.MAX_STEPS: "max_steps was reached; the flow is stiff there: raise eps or max_steps",
            Result.NOT_STATIONARY: "max_steps was reached and the flow still moves (there may be no stationary point): "
            "raise max_steps, or tol if stats['stillness'] is small enough for you, or give a finite t1",
        }[self]


class RunError(RuntimeError):
    """A run that went wrong; `trajectory` holds what it had until then."""

    def __init__(self, message: str, trajectory: "Trajectory"):
        super().__init__(message)
        self.trajectory = trajectory


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Paths of the slow SDE or of a discrete optimizer on the slow clock t = kη².

    Attributes:
        ts: (T,) slow times; times t = kη where `stats["clock"]` is "k·lr" (see `slowsde.on_slow_clock`).
        params: the params pytree with leaves (paths, T, ...); NaN after a path failed.
        v: the optimizer state with leaves (paths, T, ...).
        metrics: name -> (paths, T).
        stats: numbers about the run (steps, route, rank, residual on Γ, seconds).
        result: (paths,) `Result` codes; 0 is success.
        label: "slow" or "discrete", for legends and tables.
    """

    ts: np.ndarray
    params: PyTree
    v: PyTree
    metrics: dict[str, np.ndarray]
    stats: dict[str, Any]
    result: np.ndarray
    label: str = "slow"

    @property
    def paths(self) -> int:
        """The number of paths."""
        return self.result.shape[0]

    @property
    def final_params(self) -> PyTree:
        """params at the last saved time, leaves (paths, ...)."""
        return jax.tree.map(lambda leaf: leaf[:, -1] if _is_array(leaf) else leaf, self.params)

    def to_xarray(self) -> Any:
        """An xarray.Dataset: metrics (path, time), params and v leaves (path, time, ...). Needs the `files` extra."""
        try:
            import xarray
        except ImportError as error:
            raise ImportError('to_xarray needs xarray: pip install "slowsde[files]".') from error

        data: dict[str, Any] = {name: (("path", "time"), values) for name, values in self.metrics.items()}
        for group, tree in (("params", self.params), ("v", self.v)):
            for name, leaf in _named_leaves(tree):
                axes = tuple(f"{group}{name}_{axis}" for axis in range(leaf.ndim - 2))
                data[group + name] = (("path", "time", *axes), leaf)
        data["result"] = (("path",), self.result)
        return xarray.Dataset(data, coords={"time": self.ts, "path": np.arange(self.paths)}, attrs=_plain(self.stats))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` (a .npz file, no pickles), atomically; returns the path. Read it back with `load`."""
        target = Path(path)
        target = target if target.suffix == ".npz" else target.with_name(target.name + ".npz")
        arrays = {"ts": self.ts, "result": self.result}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        structure = {}
        for group, tree in (("params", self.params), ("v", self.v)):
            structure[group] = _describe(tree)
            arrays |= {f"{group}/{i}": leaf for i, (_, leaf) in enumerate(_named_leaves(tree))}
        header = {"structure": structure, "stats": _plain(self.stats), "label": self.label, "format": 1}
        arrays["header"] = np.array(json.dumps(header))
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez_compressed(file, allow_pickle=False, **arrays)
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
        return target


def repeated(trajectory: Trajectory, copies: int) -> Trajectory:
    """The trajectory with every path `copies` times: equal paths where nothing diffuses."""
    if copies == 1:
        return trajectory
    shape = (trajectory.paths, trajectory.ts.size)

    def repeat(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=0) if _is_array(leaf) else leaf, tree)

    stats = {name: repeat(value) if np.shape(value)[:2] == shape else value for name, value in trajectory.stats.items()}
    return dataclasses.replace(
        trajectory,
        params=repeat(trajectory.params),
        v=repeat(trajectory.v),
        metrics=repeat(trajectory.metrics),
        stats=stats,
        result=repeat(trajectory.result),
    )


def finish(trajectory: Trajectory, whens: np.ndarray, throw: bool) -> Trajectory:
    """The trajectory, or `RunError` naming how many paths failed, how and when."""
    failed = np.flatnonzero(trajectory.result != Result.SUCCESS)
    trajectory.stats["failed_at"] = np.where(trajectory.result != Result.SUCCESS, whens, np.nan)
    if throw and failed.size:
        first = failed[np.argmin(trajectory.stats["failed_at"][failed])]
        code = Result(int(trajectory.result[first]))
        when = "slow time" if trajectory.stats.get("clock", "k·lr²") == "k·lr²" else "time"
        raise RunError(
            f"{failed.size} of {trajectory.paths} paths failed, the first at {when} "
            f"{trajectory.stats['failed_at'][first]:.6g}: {code.name}, {code.explain()}. With throw=False you get what "
            "there was (also in the .trajectory of this error).",
            trajectory,
        )
    return trajectory


def load(path: str | os.PathLike[str], like: PyTree = None) -> Trajectory:
    """Read a `Trajectory` written by `Trajectory.save`.

    Dicts, lists, tuples and None are restored as they were; for other containers (an Equinox module) pass the params
    of the run as `like`, of which v is one too if it was in the run, or get {path: leaf} dicts.

    Example:
        >>> load(trajectory.save("run.npz")).metrics["loss"].shape
    """
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        metrics = {name.removeprefix("metrics/"): file[name] for name in file.files if name.startswith("metrics/")}
        trees, forms = {}, {}
        for group in ("params", "v"):
            leaves = [file[f"{group}/{i}"] for i in range(sum(name.startswith(group + "/") for name in file.files))]
            trees[group] = _rebuild(header["structure"][group], iter(leaves))
            forms[group] = header["structure"][group], [leaf.shape for leaf in leaves]
            if like is not None and forms[group] == forms["params"]:  # second moments are often like params
                # The leaves in the order of the file, which is that of `like`.
                flat = [leaf.reshape((*leaf.shape[:2], -1)) for leaf in leaves]
                trees[group] = Coordinates.of(like).unravel(np.concatenate(flat, axis=-1))
        return Trajectory(
            file["ts"], trees["params"], trees["v"], metrics, header["stats"], file["result"], header["label"]
        )


def _named_leaves(tree: PyTree) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves if _is_array(leaf)]


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def _describe(tree: PyTree) -> Any:
    """The container structure of `tree` as JSON; leaves are "*", foreign containers their named leaves."""
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _describe(tree[key]) for key in sorted(tree)}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_describe(item) for item in tree]}
    if tree is None or _is_array(tree):
        return None if tree is None else "*"
    return {"dict": {name: "*" for name, _ in _named_leaves(tree)}}


def _rebuild(structure: Any, leaves: Any) -> PyTree:
    if structure is None:
        return None
    if structure == "*":
        return next(leaves)
    ((kind, items),) = structure.items()
    if kind == "dict":
        return {key: _rebuild(item, leaves) for key, item in items.items()}
    return {"list": list, "tuple": tuple}[kind](_rebuild(item, leaves) for item in items)


def _plain(stats: dict[str, Any]) -> dict[str, Any]:
    """stats with NumPy arrays and numbers as plain lists and numbers, for headers."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in stats.items()}

"""What a run returns: saved points of Γ, optimizer states and metrics over slow time, for every path."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from manifolds.support.coordinates import Coordinates
from manifolds.support.user_functions import shown

from ..dynamics.result import Result
from ..plot.trajectories import plot_metric
from ..support.arguments import is_finite
from ..support.files import FORMAT, describe, is_array, named_leaves, plain, read_arrays, rebuild, write_arrays
from .summary import as_card, in_words


class RunError(RuntimeError):
    """A run that went wrong; `trajectory` holds what it had until then."""

    def __init__(self, message: str, trajectory: "Trajectory"):
        super().__init__(message)
        self.trajectory = trajectory


class Interrupted(KeyboardInterrupt):
    """A run that was stopped by Ctrl-C; `trajectory` holds what it had until then."""

    def __init__(self, message: str, trajectory: "Trajectory"):
        super().__init__(message)
        self.trajectory = trajectory


class Moment(NamedTuple):
    """A trajectory at one saved time t: params, v and metrics with leaves (paths, ...)."""

    t: float
    params: PyTree
    v: PyTree
    metrics: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, repr=False)
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
        end: of a discrete run the state that its iterates ended in, leaves (paths, ...), for `resume`: θ before it is
            returned to Γ, momentum, and the optimizer's own.

    Example:
        >>> slow["trace_hessian"].shape  # (paths, T)
        (1, 101)
        >>> slow.at(0.5).params.shape
        (1, 2)
        >>> slow.plot(name="trace_hessian")
    """

    ts: np.ndarray
    params: PyTree
    v: PyTree
    metrics: dict[str, np.ndarray]
    stats: dict[str, Any]
    result: np.ndarray
    label: str = "slow"
    end: tuple[np.ndarray, ...] | None = None

    @property
    def paths(self) -> int:
        """The number of paths."""
        return self.result.shape[0]

    @property
    def final_params(self) -> PyTree:
        """params at the last saved time, leaves (paths, ...)."""
        return jax.tree.map(lambda leaf: leaf[:, -1] if is_array(leaf) else leaf, self.params)

    def __len__(self) -> int:
        """The number of saved times."""
        return self.ts.size

    # Without it Python would try trajectory[0], trajectory[1], ...
    __iter__ = None

    def __contains__(self, name: object) -> bool:
        return name in self.metrics

    def __getitem__(self, name: str) -> np.ndarray:
        """(paths, T) of an observable: `trajectory["trace_hessian"]`; KeyError, with those there are, for another."""
        if name not in self.metrics:
            raise KeyError(f"{shown(name)} is not an observable of this trajectory; it has {sorted(self.metrics)}.")
        return self.metrics[name]

    def at(self, t: float) -> Moment:
        """params, v and metrics at the saved time nearest to t, with leaves (paths, ...); its `t` says which it is.

        Nothing is interpolated, as points between would lie off Γ. ValueError for t outside the run.
        """
        inside = is_finite(t) and self.ts[0] - 1e-9 <= t <= self.ts[-1] * (1 + 1e-9) + 1e-9
        if not inside:
            raise ValueError(f"t={shown(t)} is not within the run, t from {self.ts[0]:g} to {self.ts[-1]:g}.")
        row = int(np.argmin(np.abs(self.ts - t)))
        params, v = jax.tree.map(lambda leaf: leaf[:, row] if is_array(leaf) else leaf, (self.params, self.v))
        return Moment(float(self.ts[row]), params, v, {name: values[:, row] for name, values in self.metrics.items()})

    def plot(self, ax: Any = None, *, name: str | None = None, **kw: Any) -> Any:
        """The mean over paths of observable `name`, by default the first, with a band; see `plot.plot_metric`."""
        return plot_metric(self, ax=ax, name=name, **kw)

    def __repr__(self) -> str:
        return f"<Trajectory {in_words(self)}>"

    def _repr_html_(self) -> str:
        return as_card(self)

    def to_xarray(self) -> Any:
        """An xarray.Dataset: metrics (path, time), params and v leaves (path, time, ...), arrays among stats (stats.x).

        Its `to_netcdf` and `to_zarr` work as they are. Needs the `files` extra.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError('to_xarray needs xarray: pip install "slowsde[files]".') from error

        data: dict[str, Any] = {name: (("path", "time"), values) for name, values in self.metrics.items()}
        for group, tree in (("params", self.params), ("v", self.v)):
            for name, leaf in named_leaves(tree):
                axes = tuple(f"{group}{name}_{axis}" for axis in range(leaf.ndim - 2))
                data[group + name] = (("path", "time", *axes), leaf)
        data["result"] = (("path",), self.result)
        attributes = {}
        for name, value in self.stats.items():
            if np.ndim(value):
                data[f"stats.{name}"] = self._axes(name, np.asarray(value)), np.asarray(value)
            else:
                attributes[name] = _attribute(value)
        return xarray.Dataset(data, coords={"time": self.ts, "path": np.arange(self.paths)}, attrs=attributes)

    def _axes(self, name: str, array: np.ndarray) -> tuple[str, ...]:
        """Names of the axes of an array among the stats."""
        whole = (self.paths, self.ts.size)
        first = ("path", "time") if array.shape == whole else ("path",) if array.shape == whole[:1] else ()
        return (*first, *(f"stats.{name}_{axis}" for axis in range(array.ndim - len(first))))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to `path` (a .npz file, no pickles), atomically; returns the path. Read it back with `load`.

        A symbolic link is followed; OSError for a file that is read-only.
        """
        target = _with_suffix(path)
        arrays = {"ts": self.ts, "result": self.result}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        structure = {}
        for group, tree in (("params", self.params), ("v", self.v)):
            structure[group] = describe(tree)
            arrays |= {f"{group}/{i}": leaf for i, (_, leaf) in enumerate(named_leaves(tree))}
        arrays |= {f"end/{i}": leaf for i, leaf in enumerate(self.end or ())}
        header = {"structure": structure, "stats": plain(self.stats), "label": self.label, "format": FORMAT}
        write_arrays(target, arrays | {"header": np.array(json.dumps(header))})
        return target


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    return target if target.suffix == ".npz" else target.with_name(target.name + ".npz")


def _attribute(value: Any) -> Any:
    """A number or text for an attribute of NetCDF or Zarr, which know no bool, None or dict."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def repeated(trajectory: Trajectory, copies: int) -> Trajectory:
    """The trajectory with every path `copies` times: equal paths where nothing diffuses."""
    if copies == 1:
        return trajectory
    shape = (trajectory.paths, trajectory.ts.size)

    def repeat(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=0) if is_array(leaf) else leaf, tree)

    # What is (paths, T) is repeated, what belongs to the whole run is not.
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
    cut = int(np.sum(trajectory.result == Result.INTERRUPTED))
    trajectory.stats["failed_at"] = np.where(trajectory.result != Result.SUCCESS, whens, np.nan)
    if cut:
        raise Interrupted(
            f"{cut} of {trajectory.paths} paths were on their way (the .trajectory of this error has what there was): "
            f"{Result.INTERRUPTED.explain()}.",
            trajectory,
        )
    if throw and failed.size:
        # The path that failed first tells the most: later ones may have other reasons.
        first = failed[np.argmin(trajectory.stats["failed_at"][failed])]
        code = Result(int(trajectory.result[first]))
        why = trajectory.stats["kink"] if code == Result.KINK else code.explain(trajectory.label)
        when = "slow time" if trajectory.stats.get("clock", "k·lr²") == "k·lr²" else "time"
        raise RunError(
            f"{failed.size} of {trajectory.paths} paths failed, the first at {when} "
            f"{trajectory.stats['failed_at'][first]:.6g}: {code.name}, {why}. With throw=False you get what "
            "there was (also in the .trajectory of this error).",
            trajectory,
        )
    return trajectory


def load(path: str | os.PathLike[str], like: PyTree = None) -> Trajectory:
    """Read a `Trajectory` written by `Trajectory.save`.

    Dicts, lists, tuples and None are restored as they were; for other containers (an Equinox module) pass the params
    of the run as `like`, of which v is one too if it was in the run, or get {path: leaf} dicts. Files of older formats
    are read too.

    Raises ValueError for a file that is damaged, of a newer format, or none of `Trajectory.save`; OSError where there
    is none.

    Example:
        >>> load(slow.save("run.npz")).metrics["trace_hessian"].shape
        (1, 101)
    """
    target = Path(path)
    if not target.exists():  # the name that `save` was given
        target = _with_suffix(path)
    arrays = read_arrays(target)
    try:
        trajectory = _rebuilt(arrays, json.loads(str(arrays["header"])), like)
    except (KeyError, IndexError, TypeError, StopIteration, RuntimeError) as error:
        raise ValueError(f"{target} is no file of Trajectory.save: {error!r}.") from error
    _check_shapes(target, trajectory)
    return trajectory


def _rebuilt(arrays: dict[str, np.ndarray], header: dict[str, Any], like: PyTree) -> Trajectory:
    prefix = "metrics/"
    metrics = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    trees, forms = {}, {}
    for group in ("params", "v"):
        leaves = [arrays[f"{group}/{i}"] for i in range(sum(name.startswith(group + "/") for name in arrays))]
        trees[group] = rebuild(header["structure"][group], iter(leaves))
        forms[group] = header["structure"][group], [leaf.shape for leaf in leaves]
        if like is not None and forms[group] == forms["params"]:  # second moments are often like params
            # The leaves in the order of the file, which is that of `like`.
            flat = [leaf.reshape((*leaf.shape[:2], -1)) for leaf in leaves]
            trees[group] = Coordinates.of(like).unravel(np.concatenate(flat, axis=-1))
    end = tuple(arrays[f"end/{i}"] for i in range(sum(name.startswith("end/") for name in arrays))) or None
    ts, result = arrays["ts"], arrays["result"]
    return Trajectory(ts, trees["params"], trees["v"], metrics, header["stats"], result, header["label"], end)


def _check_shapes(target: Path, trajectory: Trajectory) -> None:
    """ValueError unless all arrays of a file have as many paths and times."""
    ts, result = trajectory.ts, trajectory.result
    leaves = [("params" + name, leaf) for name, leaf in named_leaves(trajectory.params)]
    leaves += [("v" + name, leaf) for name, leaf in named_leaves(trajectory.v)] + list(trajectory.metrics.items())
    shapes = {name: leaf.shape for name, leaf in leaves}
    if ts.ndim != 1 or result.ndim != 1 or any(s[:2] != (result.size, ts.size) for s in shapes.values()):
        raise ValueError(
            f"{target} holds {result.shape} paths and {ts.shape} times, but arrays of shapes {shapes}: they disagree."
        )

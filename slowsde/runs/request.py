"""What a run is asked, and what its solve found."""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ..dynamics.slow_sde import SlowSDE
from ..metrics.metric import Metric
from ..metrics.named import as_metrics
from ..problems.route import Route, as_route
from ..support import arguments
from ..support.files import is_array
from ..support.pieces import EVERY, Pieces, as_checkpoint


@dataclass(frozen=True)
class Request:
    """What any run is asked, checked: which paths, times and metrics, and how it is computed and told."""

    name: str  # of the call, for its messages and its progress line
    t0: float
    t1: float  # inf for a run to rest
    times: np.ndarray  # (T,) those to be saved; of a run to rest as if it ended at t0 + 1
    paths: int
    key: PRNGKeyArray
    metrics: dict[str, Metric]
    route: str | Route
    rank: int | None
    dtype: Any
    throw: bool
    progress: bool | None
    memory: float | None  # bytes that the run may take; None for those of this machine
    stacked: bool  # whether there are many starts, and one path from each
    pieces: Pieces
    started: float  # seconds, on the clock of `time.perf_counter`

    @property
    def endless(self) -> bool:
        """Whether the run is to go on until it rests."""
        return self.t1 == np.inf


def request(
    name: str,
    given: tuple[Any, ...],
    *,
    t1: Any,
    save_at: Any,
    metrics: Any,
    t0: Any = 0.0,
    paths: Any = 1,
    key: Any = None,
    route: str | Route = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
    memory: float | None = None,
    checkpoint: Any = None,
    checkpoint_every: Any = EVERY,
    stacked: Any = False,
    may_rest: bool = False,
) -> Request:
    """The `Request`; ValueError on what no run can be asked. `given` are the other arguments whose values must be
    known, params0 the third of them; `may_rest` says whether t1 may be infinite."""
    started = time.perf_counter()
    # First of all, as every other check looks at values.
    arguments.check_concrete(name, *given, t0, t1)
    endless = may_rest and arguments.is_number(t1) and t1 == np.inf
    if endless and np.ndim(save_at) > 0:
        raise ValueError(f"save_at={save_at}: a run to t1=inf has no end that is known before; pass a number of times.")
    progress = None if progress is None else arguments.flag("progress", progress)
    if arguments.flag("stacked", stacked):
        paths = number_of_starts(given[2])
    return Request(
        name=name,
        t0=t0,
        t1=t1,
        times=arguments.save_times(save_at, t0, t0 + 1 if endless else t1),
        paths=arguments.positive_integer("paths", paths),
        key=arguments.check_key(key),
        metrics=as_metrics(metrics),
        route=as_route(route),
        rank=arguments.as_given_rank(rank),
        dtype=dtype,
        throw=arguments.flag("throw", throw),
        progress=progress,
        memory=None if memory is None else arguments.number("memory", memory, "bytes.", above=0, infinite=True),
        stacked=stacked,
        pieces=Pieces(name, progress, as_checkpoint(checkpoint, checkpoint_every)),
        started=started,
    )


def key_stats(key: Any) -> dict[str, Any]:
    """A random key as numbers, which files can hold, and the name of its implementation if it is a typed one."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return {"key": np.asarray(jr.key_data(key))} | ({"key_kind": str(jr.key_impl(key))} if typed else {})


def number_of_starts(params0: PyTree) -> int:
    """The length of the leading axis that all arrays of params0 have; ValueError where they have not."""
    leaves = jax.tree_util.tree_flatten_with_path(params0)[0]
    shapes = {jax.tree_util.keystr(path) or "params0": np.shape(leaf) for path, leaf in leaves if is_array(leaf)}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"stacked=True: the arrays of params0 have shapes {shapes}; all need the same leading axis, that of the "
            "starts, as jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts) makes it."
        )
    return lengths.pop()[0]


class Outcome(NamedTuple):
    """What a solve found: the saved points of every path, and how each path ended."""

    sde: SlowSDE  # in which metrics are evaluated, at the rank of Γ
    ts: np.ndarray  # (T,)
    xs: Any  # (paths, T, p)
    vs: PyTree  # leaves (paths, T, ...)
    good: np.ndarray  # (paths, T) whether the path had not failed by then
    result: np.ndarray  # (paths,) `Result` codes
    ended: np.ndarray  # (paths,) when a path that failed did so
    stats: dict[str, Any]
    end: tuple[np.ndarray, ...] | None = None  # the state that a discrete run ended in, leaves (paths, ...)

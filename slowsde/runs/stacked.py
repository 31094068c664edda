"""Many starts in one run: params0 with a leading axis of them, and one path from each."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree

from manifolds.support.coordinates import ravel

from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..support.files import is_array
from .request import Outcome

Begun = TypeVar("Begun")


class Failure(NamedTuple):
    """Why nothing came of a start."""

    message: str


def start_of(params0: PyTree, number: int) -> PyTree:
    """One of the starts."""
    return jax.tree.map(lambda leaf: leaf[number] if is_array(leaf) else leaf, params0)


def flat_starts(params0: PyTree, count: int, like: Array) -> Array:
    """(starts, p) on flat coordinates, in the precision of one of them."""
    return jax.device_put(np.stack([np.asarray(ravel(start_of(params0, i)), like.dtype) for i in range(count)]))


def stack_leaves(trees: Sequence[PyTree]) -> PyTree:
    """Pytrees of one form as one, with a leading axis of them, of NumPy."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def attempted(begin: Callable[[Array], Begun], starts: Array) -> list[Begun | Failure]:
    """begin(start) of every start, or why it failed."""

    def attempt(start: Array) -> Begun | Failure:
        try:
            return begin(start)
        except ValueError as error:
            return Failure(str(error))

    return [attempt(start) for start in starts]


def merged(sde: SlowSDE, found: Sequence[Outcome | Failure], times: np.ndarray, t0: float) -> Outcome:
    """The outcome of all starts, one path each, from those of the single ones.

    Numbers among their stats that are not alike come as arrays of one for each start."""
    good = [one for one in found if isinstance(one, Outcome)]
    form = jax.eval_shape(lambda x: (x, sde.state_shapes()), jax.ShapeDtypeStruct((sde.chart.size,), float))
    every = [one if isinstance(one, Outcome) else _nothing(form, times, t0) for one in found]
    ts = max((one.ts for one in every), key=lambda ts: ts[-1])
    xs, vs, reached, result, ended = (
        jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)
        for parts in zip(*((one.xs, one.vs, one.good, one.result, one.ended) for one in every), strict=True)
    )
    messages = {number: one.message for number, one in enumerate(found) if isinstance(one, Failure)}
    stats = _merged_stats([one.stats for one in every], [one.stats for one in good], times.size)
    stats |= {"messages": messages, "times": np.stack([one.ts for one in every])}
    return Outcome(sde, ts, xs, vs, reached, result, ended, stats)


def scattered(found: Outcome, numbers: np.ndarray, begun: Sequence[Any]) -> Outcome:
    """The outcome of all starts, from that of those with these `numbers`; the others are among `begun` as failures."""

    def spread(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        nothing = np.nan if np.issubdtype(leaf.dtype, np.floating) else 0
        whole = np.full((len(begun), *leaf.shape[1:]), nothing, leaf.dtype)
        whole[numbers] = leaf
        return whole

    along = {name: value for name, value in found.stats.items() if np.shape(value)[:2] == found.good.shape}
    failed = {number: one.message for number, one in enumerate(begun) if isinstance(one, Failure)}
    result = spread(found.result)
    result[list(failed)] = Result.NO_MANIFOLD
    stats = found.stats | jax.tree.map(spread, along) | {"messages": failed}
    xs, vs, good, ended, end = jax.tree.map(spread, (found.xs, found.vs, found.good, found.ended, found.end))
    return found._replace(xs=xs, vs=vs, good=good, result=result, ended=ended, end=end, stats=stats)


def _nothing(form: tuple[Any, PyTree], times: np.ndarray, t0: float) -> Outcome:
    xs, vs = jax.tree.map(lambda leaf: np.full((1, times.size, *leaf.shape), np.nan, leaf.dtype), form)
    none = np.zeros((1, times.size), bool)
    return Outcome(None, times, xs, vs, none, np.array([Result.NO_MANIFOLD]), np.array([t0]), {})  # pyright: ignore


def _merged_stats(every: list[dict[str, Any]], good: list[dict[str, Any]], count: int) -> dict[str, Any]:
    names = dict.fromkeys(name for stats in good for name in stats)
    return {name: _together([stats.get(name) for stats in every], count) for name in names}


def _together(values: list[Any], count: int) -> Any:
    """One value for all, or an array over the starts, NaN where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    shapes = {np.shape(value) for value in known}
    if shapes == {(1, count)}:  # along the run
        nothing = np.full((1, count), np.nan)
        return np.concatenate([nothing if value is None else np.asarray(value) for value in values])
    if shapes == {()} and all(isinstance(value, (int, float, np.number)) for value in known):
        return (
            known[0]
            if len(set(known)) == 1
            else np.array([np.nan if value is None else float(value) for value in values])
        )
    alike = all(_equal(value, known[0]) for value in known)
    return known[0] if alike else [value.tolist() if is_array(value) else value for value in values]


def _equal(one: Any, other: Any) -> bool:
    if is_array(one) or is_array(other):
        return np.array_equal(one, other)
    return one == other


def tell(messages: dict[int, str], count: int) -> None:
    """A warning where starts have failed."""
    if messages:
        first = min(messages)
        warnings.warn(
            f"{len(messages)} of {count} starts lead to no run (result NO_MANIFOLD; stats['messages'] says why), the "
            f"first of them number {first}: {messages[first]}",
            UserWarning,
            stacklevel=5,  # the call of the run
        )

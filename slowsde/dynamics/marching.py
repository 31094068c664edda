"""Many paths of numbered steps, in windows of a few stops each, between which a run can be shown, kept and stopped."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from manifolds.support.arrays import filled

from ..support.pieces import Pieces
from .ensemble import AXIS, blocks_of_process, devices_here, gathered, paths_on_devices, spread

MOST = 64  # stops in a window: what is saved at them is on the device at once


class Window(NamedTuple):
    """A part of a march: the first `count` of the `stops` are to be reached, the rest is not looked at."""

    begin: Any  # the number of steps at which it begins
    stops: Any  # (n,) numbers of steps
    count: Any


class Marched(NamedTuple):
    """What a march found, NumPy arrays of the paths of all processes."""

    saved: PyTree  # leaves (paths, T, ...), infinite where the stop was not reached
    states: PyTree  # at the end, leaves (paths, ...)
    reached: np.ndarray  # (paths, T): all are, unless the run was interrupted


def march_paths(
    function: Callable[[Any, Any], tuple[PyTree, PyTree]],
    shared: PyTree,
    states: PyTree,
    begin: int,
    stops: np.ndarray,
    size: int,
    pieces: Pieces,
    stage: str = "paths",
) -> Marched:
    """Paths of numbered steps, as many blocks at once as there are devices, window after window.

    Args:
        function: ((shared, window), state) -> (state at the end of the `Window`, what is saved at each of its
            stops), of one path; hashable, as for `map_paths`.
        states: of every path at step `begin`, NumPy arrays with leaves (paths, ...).
        stops: (T,) ascending numbers of steps, at which something is saved.
        size: paths in a block, see `block_size`.
    """
    form, flat = jax.tree.structure(states), jax.tree.leaves(states)
    index = _places(flat[0].shape[0], size)
    rounds, places = index.shape[:2]
    mesh, shared = spread(shared, devices_here()[:places])
    all_active = np.ones(places, np.int32)
    forms = {}

    def compute(window: Window, now: list[Any]) -> tuple[list[Any], list[np.ndarray]]:
        # As it comes from the device, or the first window would be a program of its own.
        now = jax.tree.unflatten(form, jax.device_put(now, NamedSharding(mesh, P(AXIS))))
        now, saved = paths_on_devices(function, (shared, window), now, all_active, mesh)
        forms["saved"] = jax.tree.structure(saved)
        return jax.tree.leaves(now), [np.asarray(leaf)[:, 0] for leaf in jax.tree.leaves(saved)]

    def unreached(found: list[np.ndarray]) -> list[np.ndarray]:
        return [np.full((*index.shape, stops.size, *leaf.shape[3:]), np.inf, leaf.dtype) for leaf in found]

    def begun(number: int) -> dict[str, Any]:
        """The state of a round at its start."""
        now = [leaf[index[number]][:, None] for leaf in flat] if number < rounds else []
        return {"round": np.asarray(number), "k": np.asarray(begin), "row": np.asarray(0), "now": now}

    def piece(at: dict[str, Any], steps: int) -> tuple[dict[str, Any], bool, float]:
        number, k, row = (int(at[name]) for name in ("round", "k", "row"))
        if number == rounds:  # from a file
            return at, True, 1.0
        window, due = window_from(stops, k, row, steps)
        now, found = compute(window, at["now"])
        saved = at["saved"] or unreached(found)
        for whole, rows in zip(saved, found, strict=True):
            whole[number, :, :, row : row + due] = rows[:, :, :due]
        k, row = int(window.stops[-1]), row + due
        at = at | {"k": np.asarray(k), "row": np.asarray(row), "now": now, "saved": saved}
        if row == stops.size:
            for ends, leaf in zip(at["ends"], now, strict=True):
                ends[number] = np.asarray(leaf)[:, 0]
            number, k = number + 1, begin
            at |= begun(number)
        return at, number == rounds, (number + (k - begin) / max(1, stops[-1] - begin)) / rounds

    first = begun(0) | {"saved": [], "ends": [leaf[index] for leaf in flat]}
    end = pieces.carry_out(stage, first, piece)
    if not forms:  # of a run from a file, or interrupted at once
        _, found = compute(
            Window(np.asarray(begin), window_from(stops, begin, 0, 0)[0].stops, np.asarray(0)), first["now"]
        )
        end["saved"] = end["saved"] or unreached(found)
    number = np.arange(rounds)[:, None, None, None]
    reached = (number < end["round"]) | ((number == end["round"]) & (np.arange(stops.size) < end["row"]))
    found = Marched(
        jax.tree.unflatten(forms["saved"], end["saved"]),
        jax.tree.unflatten(form, end["ends"]),
        np.broadcast_to(reached, (*index.shape, stops.size)),
    )
    here = blocks_of_process(-(-flat[0].shape[0] // size)).size * size
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:])[:here], found)
    return gathered(found, flat[0].shape[0])


def _places(count: int, size: int) -> np.ndarray:
    """(rounds, devices, size) the paths that this process computes."""
    mine = blocks_of_process(-(-count // size))
    places = min(len(devices_here()), mine.size)
    # What is beyond the last block computes it once more: its device would have nothing to do.
    blocks = mine[np.minimum(np.arange(-(-mine.size // places) * places), mine.size - 1)].reshape(-1, places)
    # A block that is not whole is filled up with its last path: a shorter one would be another program.
    return np.minimum(blocks[..., None] * size + np.arange(size), count - 1)


def stepped(
    window: Window, step: Callable[[Any, PyTree], PyTree], state: PyTree, kept: Callable[[PyTree], PyTree]
) -> tuple[PyTree, PyTree]:
    """The state of one path at the end of a window, by step(k, state) from step k to the next; and `kept` of it at
    every stop."""

    def to_stop(carry: tuple[Any, PyTree], stop: Any) -> tuple[tuple[Any, PyTree], PyTree]:
        k, state = carry
        state = jax.lax.fori_loop(k, stop, step, state)
        return (jnp.maximum(k, stop), state), kept(state)

    # Beyond those that count there is nothing to do.
    stops = jnp.where(jnp.arange(window.stops.size) < window.count, window.stops, window.begin)
    (_, state), rows = jax.lax.scan(to_stop, (window.begin, state), stops)
    return state, rows


def window_from(stops: np.ndarray, k: int, row: int, steps: int) -> tuple[Window, int]:
    """The window of so many steps after step k at most, where stop number `row` is the next; and how many of the stops
    are reached in it: where none is, it ends at a stop of its own.

    Example:
        >>> window_from(np.array([0, 10, 20]), 0, 0, 15)
        (Window(begin=array(0), stops=array([ 0, 10, 10, 10]), count=array(2)), 2)
    """
    size = min(filled(stops).size, MOST)
    due = stops[row : row + size]
    due = due[due <= k + steps]
    ends = due if due.size else np.array([k + steps])
    ends = np.concatenate([ends, np.repeat(ends[-1:], size - ends.size)])
    return Window(np.asarray(k), ends, np.asarray(max(due.size, 1))), due.size

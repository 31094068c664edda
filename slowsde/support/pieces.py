"""A long computation in pieces: between them it tells how far it is, hears Ctrl-C, and keeps what it has in a file.

A piece is one call of a compiled program that takes a bounded number of steps: its state goes in and comes out. Where
pieces end changes no bit of what is computed.
"""

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from . import arguments
from .files import FORMAT, check_writable, describe, read_arrays, rebuild, write_arrays
from .progress import Line

LENGTH = 1.0  # seconds that a piece is to last: so long Ctrl-C waits
FIRST, GROWTH = 8, 8  # steps in the first piece, of which nobody knows how long they take, and how fast they get more
MOST = 2**40  # steps of a piece: where there are but a few, as in each of many blocks, no piece ever lasts a second
SHARE = 0.02  # of its time that a run may spend on writing
EVERY = 60.0  # seconds between two writes at most
State = TypeVar("State")
Piece = Callable[[State, int], tuple[State, bool, float | str]]


class Checkpoint:
    """The file that a run keeps its state in: that of each of its stages, as plain containers of arrays.

    `belongs` says what a state belongs to; a file that belongs to something else is refused (ValueError) with what
    differs. Each process of a program has a file of its own.
    """

    def __init__(self, path: str | os.PathLike[str], every: float = EVERY):
        number = jax.process_index()
        self.path = Path(path) if number == 0 else Path(f"{os.fspath(path)}.{number}")
        self.every, self.belongs = every, {}
        self.stages: dict[str, PyTree] = {}
        self.stats: dict[str, Any] = {}
        self._written, self._cost, self._told = time.monotonic(), 0.0, False

    def open(self, belongs: dict[str, Any]) -> None:
        """What there is in the file, if it is there; ValueError if it is no checkpoint, damaged, or another run's,
        OSError if it cannot be written."""
        self.belongs, self._written = belongs, time.monotonic()
        check_writable(self.path)
        if not self.path.exists():
            return
        arrays = read_arrays(self.path, "checkpoint")
        header = json.loads(str(arrays["header"]))
        if "belongs" not in header:
            raise ValueError(f"checkpoint={os.fspath(self.path)!r} is a file, but no checkpoint: pass another name.")
        others = [
            f"{name} ({_short(header['belongs'].get(name))} there, {_short(value)} here)"
            for name, value in belongs.items()
            if header["belongs"].get(name) != value
        ]
        if others:
            raise ValueError(
                f"checkpoint={os.fspath(self.path)!r} belongs to another run; what differs: {', '.join(others)}. Pass "
                "another file, or remove this one."
            )
        for name, structure in header["stages"].items():
            count = sum(key.startswith(f"{name}/") for key in arrays)
            self.stages[name] = rebuild(structure, iter([arrays[f"{name}/{i}"] for i in range(count)]))
        self.stats = header["stats"]

    def keep(self, stage: str, state: PyTree, *, now: bool = False) -> None:
        """Write `state` as that of a stage, if `now` or if it is time; the state that was written last stays until the
        new one is whole."""
        elapsed = time.monotonic() - self._written
        if not now and elapsed < min(self.every, self._cost / SHARE):
            return
        began = time.monotonic()
        self.stages[stage] = _plain(state)
        try:
            self.write()
        except OSError as error:
            # A full disk is no reason to lose the run: there may be room again at the next time.
            if not self._told:
                warnings.warn(
                    f"checkpoint={os.fspath(self.path)!r} could not be written ({error}): the run goes on, and tries "
                    "again. What was written before is still there.",
                    UserWarning,
                    stacklevel=2,
                )
            self._told = True
        self._written = time.monotonic()
        self._cost = self._written - began

    def write(self) -> None:
        """All stages, to the file."""
        arrays, structures = {}, {}
        for name, tree in self.stages.items():
            structures[name] = describe(tree)
            arrays |= {f"{name}/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
        header = {"belongs": self.belongs, "stages": structures, "stats": self.stats, "format": FORMAT}
        write_arrays(self.path, arrays | {"header": np.array(json.dumps(header))}, compressed=False)


def as_checkpoint(path: Any, every: Any = EVERY) -> Checkpoint | None:
    """The `Checkpoint` of a run that was asked for by path; None for none. ValueError if it cannot be a file."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"checkpoint={path!r} must be the name of a file.")
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise ValueError(f"checkpoint={os.fspath(path)!r} must be a file in a folder that is there.")
    return Checkpoint(path, arguments.number("checkpoint_every", every, "seconds.", above=0, infinite=True))


class Pieces:
    """The pieces of one run. After Ctrl-C `interrupted` is true, and every stage ends where it is."""

    def __init__(self, name: str, progress: bool | None = None, checkpoint: Checkpoint | None = None):
        self.line, self.checkpoint, self.interrupted = Line(name, progress), checkpoint, False

    def carry_out(self, stage: str, first: State, piece: Piece[State]) -> State:
        """The state that piece(state, steps) -> (state, finished, how far) leads to from `first`, or from the state
        of this stage that the file has."""
        state, steps = self._begun(stage, first), FIRST
        while not self.interrupted:
            began = time.monotonic()
            try:
                state, finished, done = piece(state, steps)
                self.line.show(done)
                if self.checkpoint is not None:
                    self.checkpoint.keep(stage, state)
            except KeyboardInterrupt:
                # The state before this piece, or after it, is what there is.
                self.interrupted = True
                break
            if finished:
                return state
            took = time.monotonic() - began
            steps = int(np.clip(steps * LENGTH / max(took, 1e-9), 1, min(GROWTH * steps, MOST)))
        if self.checkpoint is not None:
            self.checkpoint.keep(stage, state, now=True)
        return state

    def _begun(self, stage: str, first: State) -> State:
        if self.checkpoint is None or stage not in self.checkpoint.stages:
            return first
        kept = self.checkpoint.stages[stage]
        # A state of arrays only is kept as the list of its leaves, whatever holds them.
        return kept if isinstance(first, dict) else jax.tree.unflatten(jax.tree.structure(first), kept)


def _plain(state: PyTree) -> PyTree:
    leaves = state if isinstance(state, dict) else jax.tree.leaves(state)
    return jax.tree.map(np.asarray, leaves)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."

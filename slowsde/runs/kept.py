"""Runs in a checkpoint: what one belongs to, and what it found once it is finished."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from ..dynamics.digest import arrays_digest
from ..dynamics.ensemble import devices_here
from ..dynamics.slow_sde import SlowSDE
from ..support.files import describe, is_array, plain, rebuild
from ..support.pieces import Checkpoint
from .request import Outcome, Request

STAGE = "found"
VERSION = 1  # of what a state means: a file of another one is refused


def belonging(asked: Request, sde: SlowSDE, x0: Array, v0: PyTree, settings: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of all that decides about a single bit of a run, for a `Checkpoint`."""
    known = {
        "call": asked.name,
        "t0": float(asked.t0),
        "t1": float(asked.t1),
        "save_at": arrays_digest(asked.times),
        "paths": asked.paths,
        "key": arrays_digest(jax.random.key_data(asked.key)),
        "dtype": str(np.dtype(asked.dtype)),
        "route": sde.loss.route,
        "rank": None if asked.rank is None else int(asked.rank),
        "params0": arrays_digest(x0),
        "v0": arrays_digest(v0),
        "b1": float(sde.optimizer.b1),
        "devices": f"{len(devices_here())} {jax.default_backend()}, {jax.process_count()} processes",
        "checkpoint": VERSION,
    }
    # By their names where a digest is of parts: "loss", "noise", "optimizer", and the version of JAX.
    return known | plain(settings)


def keep_finished(checkpoint: Checkpoint, found: Outcome) -> None:
    """What a run found, in its checkpoint, in place of the states of its stages."""
    arrays = {name: np.asarray(value) for name, value in found.stats.items() if is_array(value)}
    checkpoint.stats = plain({name: value for name, value in found.stats.items() if name not in arrays})
    checkpoint.stages.clear()
    kept = {
        "arrays": arrays,
        "end": [] if found.end is None else list(found.end),
        "outcome": [found.ts, found.xs, found.good, found.result, found.ended],
        "rank": [] if found.sde.rank is None else [found.sde.rank],
        "v": jax.tree.leaves(found.vs),
    }
    checkpoint.stats[STAGE] = {"v": describe(found.vs) if not kept["v"] else None, "end": found.end is not None}
    checkpoint.keep(STAGE, kept, now=True)


def finished(checkpoint: Checkpoint, sde: SlowSDE) -> Outcome | None:
    """What `keep_finished` kept, None if the run was not at its end."""
    there = STAGE in checkpoint.stages
    if jax.process_count() > 1:
        # One may have been killed before it wrote its end: then all of them compute it, as they wait for each other.
        there = bool(np.all(multihost_utils.process_allgather(np.asarray(there))))
    if not there:
        return None
    kept, stats = checkpoint.stages[STAGE], dict(checkpoint.stats)
    about = stats.pop(STAGE)
    if kept["rank"]:
        sde = sde.at_rank(jnp.asarray(kept["rank"][0]))
    form = jax.tree.structure(sde.state_shapes())
    vs = jax.tree.unflatten(form, kept["v"]) if kept["v"] else rebuild(about["v"], iter(()))
    ts, xs, good, result, ended = kept["outcome"]
    end = tuple(kept["end"]) if about["end"] else None
    return Outcome(sde, ts, xs, vs, good, result, ended, stats | kept["arrays"], end)

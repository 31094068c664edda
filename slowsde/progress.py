"""A progress line on stderr for runs that last longer than a moment."""

import sys
import time
from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array

PATIENCE = 2.0  # seconds before anything is shown
STEP = 0.01  # the fraction of a run between reports
_started: dict[str, float] = {}


class ProgressMeter(dfx.AbstractProgressMeter[Array]):
    """Shows "name  42 %  12 s" once a run has lasted `PATIENCE` seconds; nothing for shorter runs."""

    name: str = eqx.field(static=True)

    def init(self) -> Array:
        def start() -> np.ndarray:
            _started[self.name] = time.monotonic()
            return np.zeros((), np.float32)

        return eqxi.nonbatchable(io_callback(start, jax.ShapeDtypeStruct((), jnp.float32)))

    def step(self, state: Array, progress: Any) -> Array:
        # Under vmap every path has its own progress: the slowest counts. A pure callback, because JAX allows no other
        # kind inside a batched condition; its value is the state, so that it is not dropped.
        slowest = -eqxi.unvmap_max(-jnp.asarray(progress, jnp.float32))

        def report(now: Any, before: np.ndarray) -> np.ndarray:
            self._show(float(np.min(now)))
            return np.full_like(before, np.min(now))

        return jax.lax.cond(
            eqxi.nonbatchable(eqxi.unvmap_all(slowest - state > STEP)),
            lambda before: jax.pure_callback(report, before, slowest, before, vmap_method="expand_dims"),
            lambda before: before,
            state,
        )

    def close(self, state: Array) -> None:
        io_callback(lambda _: self._show(1.0), None, eqxi.unvmap_max(state))

    def _show(self, fraction: float) -> None:
        seconds = time.monotonic() - _started.get(self.name, time.monotonic())
        if seconds > PATIENCE:
            end = "\n" if fraction >= 1 else ""
            print(f"\r{self.name} {100 * fraction:4.0f} %  {seconds:5.0f} s", end=end, file=sys.stderr, flush=True)


def meter(name: str, progress: bool | None) -> dfx.AbstractProgressMeter[Any]:
    """The meter of a run; `progress=None` shows it when stderr is a terminal."""
    show = sys.stderr.isatty() if progress is None else progress
    return ProgressMeter(name) if show else dfx.NoProgressMeter()

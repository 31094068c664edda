"""A progress line on stderr for runs that last longer than a moment."""

import sys
import time
from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jaxtyping import Array

PATIENCE = 2.0  # seconds before anything is shown
_starts: dict[str, float] = {}


class ProgressMeter(dfx.AbstractProgressMeter[Array]):
    """Shows "name  42 %  12 s" once a run has lasted `PATIENCE` seconds; nothing for shorter runs."""

    name: str = eqx.field(static=True)

    def init(self) -> Array:
        return _call(self.name, jnp.asarray(0.0))

    def step(self, state: Array, progress: Any) -> Array:
        # Under vmap every path has its own progress: report the slowest, once it has gained a percent.
        advanced = eqxi.unvmap_all(progress - state > 0.01)
        return jax.lax.cond(
            eqxi.nonbatchable(advanced),
            lambda done: _call(self.name, done),
            lambda done: state.astype(done.dtype),
            jnp.asarray(progress, state.dtype),
        )

    def close(self, state: Array) -> None:
        _call(self.name, jnp.ones_like(state))


def meter(name: str, progress: bool | None) -> dfx.AbstractProgressMeter[Any]:
    """The meter of a run; `progress=None` shows it when stderr is a terminal."""
    show = sys.stderr.isatty() if progress is None else progress
    return ProgressMeter(name) if show else dfx.NoProgressMeter()


def _call(name: str, done: Array) -> Array:
    def report(value: Any) -> Any:
        fraction = float(value)
        if fraction == 0 or name not in _starts:
            _starts[name] = time.monotonic()
        seconds = time.monotonic() - _starts[name]
        if seconds > PATIENCE:
            end = "\n" if fraction >= 1 else ""
            print(f"\r{name} {100 * fraction:4.0f} %  {seconds:5.0f} s", end=end, file=sys.stderr, flush=True)
        return value

    return io_callback(report, jax.ShapeDtypeStruct((), done.dtype), eqxi.unvmap_max(done), ordered=False)

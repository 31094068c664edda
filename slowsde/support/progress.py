"""Progress of runs that last longer than a moment: a line on stderr in a terminal, a bar in a notebook."""

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

from .compilation import caches_compilations

PATIENCE = 2.0  # seconds before anything is shown
COUNTED = 50  # steps between reports of a run that counts them
_started: dict[str, float] = {}
_bars: dict[str, Any] = {}  # the display of a run in a notebook


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which shows HTML. IPython is not imported to find out."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _tell(name: str, text: str, fraction: float | None, ended: bool) -> None:
    if not in_notebook():
        print(f"\r{name} {text}", end="\n" if ended else "", file=sys.stderr, flush=True)
        return
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    shown = HTML(progress_bar(name, text, 1.0 if ended else fraction))
    if name in _bars:
        _bars[name].update(shown)
    else:
        _bars[name] = display(shown, display_id=True)


def progress_bar(name: str, text: str, fraction: float | None) -> str:
    """A bar in HTML; one that only moves where the share done is not known (None)."""
    value = "" if fraction is None else f' value="{fraction:.3f}"'
    return f'<div class="slowsde-progress"><progress{value} style="width:16em"></progress> {name} {text}</div>'


class Line:
    """Shows "name  42 %  12 s", or a text for how far it is, once a run that starts now has lasted `PATIENCE` seconds.

    `progress` None is for a notebook, or when stderr is a terminal; of several processes the first alone shows it.
    """

    def __init__(self, name: str, progress: bool | None):
        self.name, self.started = name, time.monotonic()
        seen = sys.stderr.isatty() or in_notebook()
        self.shown = (seen if progress is None else progress) and jax.process_index() == 0
        _bars.pop(name, None)

    def show(self, done: float | str) -> None:
        """Tell how far the run is: a share of it, or in words."""
        seconds = time.monotonic() - self.started
        if not self.shown or seconds < PATIENCE:
            return
        share = None if isinstance(done, str) else done
        text = done if isinstance(done, str) else f"{100 * done:4.0f} %"
        _tell(self.name, f"{text}  {seconds:5.0f} s", share, share is not None and share >= 1)


class StepMeter(dfx.AbstractProgressMeter[Array]):
    """Shows "name  1200 of at most 10000 steps  12 s": for a flow to t = ∞, whose share done is not known."""

    name: str = eqx.field(static=True)
    most: int = eqx.field(static=True)

    def init(self) -> Array:
        return jnp.zeros((), jnp.int32)  # a callback runs without the flag of the run: int64 would come back as int32

    def step(self, state: Array, progress: Any) -> Array:
        count = eqxi.unvmap_max(state) + jnp.int32(1)

        def report(count: Any) -> np.ndarray:
            self._show(int(np.max(count)))
            return np.asarray(count)

        return jax.lax.cond(
            eqxi.nonbatchable(count % COUNTED == 0),
            lambda count: jax.pure_callback(report, count, count, vmap_method="expand_dims"),
            lambda count: count,
            count,
        )

    def close(self, state: Array) -> None:
        io_callback(lambda count: self._show(int(np.max(count)), True), None, eqxi.unvmap_max(state))

    def _show(self, count: int, ended: bool = False) -> None:
        seconds = time.monotonic() - _started.get(self.name, time.monotonic())
        if seconds > PATIENCE:
            _tell(self.name, f"{count} of at most {self.most} steps  {seconds:5.0f} s", None, ended)


def step_meter(name: str, progress: bool | None, most: int) -> dfx.AbstractProgressMeter[Any]:
    """The meter of a flow to t = ∞ of at most so many steps, which starts now; `progress=None` shows it in a notebook
    or when stderr is a terminal, where programs are not kept.

    In a program of several processes the first alone shows it.
    """
    # A meter calls Python, and JAX keeps no program on disk that does.
    seen = sys.stderr.isatty() or in_notebook()
    show = seen and not caches_compilations() if progress is None else progress
    if not show or jax.process_index() > 0:
        return dfx.NoProgressMeter()
    _started[name] = time.monotonic()
    _bars.pop(name, None)
    return StepMeter(name, most)

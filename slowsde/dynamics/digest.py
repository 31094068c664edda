"""What a run belongs to, as digests: of the loss with its data, of the noise, of the optimizer.

Equal digests mean the same slow SDE: functions are known by what JAX traces of them and by the arrays that they hold,
not by their names or where they stand, so that a file from another process has the same ones. β1 is left out, on which
the slow SDE does not depend, as is how noise of a given Σ is drawn.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from manifolds.support.coordinates import Coordinates
from manifolds.support.precision import cast

from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from .slow_sde import SlowSDE, slow_sde

ADDRESS = re.compile(r"0x[0-9a-f]+")
PARTS = {"loss": "another loss or other data", "noise": "another noise", "optimizer": "another optimizer or settings"}


def digests(problem: AbstractProblem, optimizer: AGM, params: PyTree, *, known: bool = True) -> dict[str, str]:
    """{part: digest} of loss, noise and optimizer (without it if it is not `known`), and the version of JAX.

    By tracing alone: nothing is computed. Always in float64, whatever the precision of the run.
    """
    with jax.enable_x64(True):
        problem, optimizer = cast((problem, optimizer), np.float64)
        chart = Coordinates.of(params)
        sde = slow_sde(problem, optimizer, chart)
        x = jax.ShapeDtypeStruct((chart.size,), np.float64)
        found = {
            "loss": _digest(lambda sde, x: sde.loss.value(x), sde, x),
            "noise": _digest(lambda sde, x: sde.factor(x), sde, x),
        }
        if known:
            found["optimizer"] = _digest(_moves, sde, x)
    return found | {"jax": jax.__version__}


def drawn_digest(sde: SlowSDE, x: Any) -> str:
    """A digest of how stochastic gradients are drawn, which the slow SDE does not tell."""
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    return traced_digest(sde.stochastic_gradient, jax.ShapeDtypeStruct(x.shape, x.dtype), key)


def arrays_digest(arrays: PyTree) -> str:
    """A digest of the bytes of arrays."""
    return _hashed("", jax.tree.leaves(arrays))


def differences(one: Any, other: Any) -> list[str]:
    """In which parts two runs differ, in words; none where digests are missing, or are of other versions of JAX."""
    if not (isinstance(one, dict) and isinstance(other, dict)) or one.get("jax") != other.get("jax"):
        return []
    return [words for part, words in PARTS.items() if part in one and part in other and one[part] != other[part]]


def _moves(sde: SlowSDE, x: Any) -> Any:
    """All that an optimizer brings to the slow SDE: V, S, the rates of its state, its pace and its decay."""
    optimizer, chart = sde.optimizer, sde.chart
    v = optimizer.V(chart.unravel_arrays(x))
    t = jnp.sum(x)  # any number
    decay = optimizer.decay(chart) if optimizer.decays else 0.0
    return v, optimizer.metric(v, chart)(x), optimizer.rate(t), optimizer.pace(t), decay


def _digest(function: Callable[[SlowSDE, Any], Any], sde: SlowSDE, x: Any) -> str:
    # Numbers of no consequence here must not be among its arrays.
    sde = eqx.tree_at(lambda s: s.optimizer.b1, sde, 0.0)
    return traced_digest(lambda x: function(sde, x), x)


def traced_digest(function: Callable[..., Any], *shapes: Any) -> str:
    """A digest of what JAX traces of a function, and of the arrays that it holds."""
    closed = jax.make_jaxpr(function)(*shapes)
    return _hashed(ADDRESS.sub("", str(closed.jaxpr)), closed.consts)


def _hashed(text: str, arrays: Iterable[Any]) -> str:
    found = hashlib.sha256(text.encode())
    for array in arrays:
        known = np.asarray(array)
        found.update(f"{known.dtype}{known.shape}".encode() + known.tobytes())
    return found.hexdigest()[:16]

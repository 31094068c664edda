"""One step of a discrete optimizer on flat coordinates: an AGM's own, or that of an Optax transformation."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from manifolds.support.coordinates import ravel

from ..dynamics.checks import check_state
from ..dynamics.slow_sde import SlowSDE, equilibrium
from ..dynamics.start import initial_state
from ..optimizers.agm import AGM
from ..optimizers.optax_fit import before_step, check_accumulated
from ..optimizers.optax_state import from_optax_state, map_moments, steps_counted

Vector = Float[Array, " p"]
State = tuple[Vector, PyTree, PyTree]  # θ, what else the optimizer remembers, v


def is_transformation(optimizer: Any) -> bool:
    """Whether `optimizer` is an `optax.GradientTransformation`, known by its two functions."""
    return not isinstance(optimizer, AGM) and all(
        callable(getattr(optimizer, name, None)) for name in ("init", "update")
    )


class AGMStep(eqx.Module):
    """m ← β1 m + (1−β1) g, v ← β2 v + (1−β2) V(g gᵀ), θ ← θ − η S(v) m, as `run_discrete` tells."""

    lr: Array
    b2: Array

    every: ClassVar[int] = 1  # gradients a step

    def __call__(self, sde: SlowSDE, k: Array, state: State, g: Vector) -> State:
        """Step number k + 1, along the stochastic gradient g; m is all that is remembered besides v."""
        optimizer, chart, lr, b2 = sde.optimizer, sde.chart, self.lr, self.b2
        theta, m, v = state
        # k counts from slow time 0, also in a run that starts at t0.
        rate = lr * optimizer.pace(k * lr**2)
        m = optimizer.b1 * m + (1 - optimizer.b1) * g
        # A corrected v is the mean of V(g gᵀ) with weights β2^(k−j), j ≤ k, so that step k adds (1−β2)/(1−β2^k) of it.
        # All of the first, and no more by rounding: v must not turn negative.
        new = jnp.minimum((1 - b2) / -jnp.expm1((k + 1) * jnp.log(b2)), 1) if optimizer.bias_correction else 1 - b2
        # v before it is used, as the optimizers of libraries do; the corrected v itself is the state, so that S(v)
        # needs no k.
        v = jax.tree.map(lambda old, add: old + new * (add - old), v, optimizer.V(chart.unravel_arrays(g)))
        heading = m / (1 - optimizer.b1 ** (k + 1)) if optimizer.bias_correction else m
        move = rate * sde.metric(v)(heading)
        return theta - (move + rate * lr * optimizer.decay(chart) * theta if optimizer.decays else move), m, v


class OptaxStep(eqx.Module):
    """θ ← θ + update(g, state, θ); v is read from the state, where the AGM that is like the transformation has one.

    Where gradients are accumulated this is a micro-step, of which `every` make a step."""

    transformation: Any
    b2: Array | None  # to correct v with
    has_state: bool = eqx.field(static=True)
    keys: tuple[Any, ...] = eqx.field(static=True)  # of each leaf of its memory the kind of random key that it is
    every: int = eqx.field(static=True)

    def __call__(self, sde: SlowSDE, k: Array, state: State, g: Vector) -> State:
        """One step along the stochastic gradient g."""
        chart, (theta, memory, v) = sde.chart, state
        memory = _typed(memory, self.keys)
        updates, memory = self.transformation.update(chart.unravel_arrays(g), memory, chart.unravel_arrays(theta))
        # Not `optax.apply_updates`: Optax is not imported, and its updates may be of another precision.
        theta = theta + ravel(updates).astype(theta.dtype)
        return theta, _as_numbers(memory), _state_of(sde, memory, self.b2) if self.has_state else v


def _kinds_of_keys(memory: PyTree) -> tuple[Any, ...]:
    leaves = jax.tree.leaves(memory)
    return tuple(str(jr.key_impl(leaf)) if _is_key(leaf) else None for leaf in leaves)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _as_numbers(memory: PyTree) -> PyTree:
    """What an optimizer remembers with its random keys as numbers, which NumPy and files can hold."""
    return jax.tree.map(lambda leaf: jr.key_data(leaf) if _is_key(leaf) else leaf, memory)


def _typed(memory: PyTree, kinds: tuple[Any, ...]) -> PyTree:
    leaves, form = jax.tree.flatten(memory)
    typed = [
        leaf if kind is None else jr.wrap_key_data(leaf, impl=kind) for leaf, kind in zip(leaves, kinds, strict=True)
    ]
    return jax.tree.unflatten(form, typed)


def agm_run(sde: SlowSDE, x0: Vector, v0: PyTree, t0: float, lr: float, b2: float) -> tuple[AGMStep, State]:
    """The step of `sde.optimizer` and its state at x0, without momentum."""
    step = AGMStep(jnp.asarray(lr, x0.dtype), jnp.asarray(b2, x0.dtype))
    return step, (x0, jnp.zeros_like(x0), initial_state(sde, x0, v0, t0))


def optax_run(
    sde: SlowSDE, transformation: Any, x0: Vector, state0: PyTree, lr: float, every: int = 1
) -> tuple[OptaxStep, State, float | None]:
    """The step of an Optax transformation that is like `sde.optimizer`, its state at x0, and its β2 if it has one.

    It steps once in `every` updates. A fresh state for state0 = None. ValueError if state0 is none of its states, or if
    v is not that of `sde.optimizer`.
    """
    params = sde.chart.unravel_arrays(x0)
    fresh = transformation.init(params)
    try:
        expected = jax.eval_shape(transformation.update, params, fresh, params)[1]
    except TypeError as error:
        raise ValueError(
            "A discrete run calls optimizer.update(gradient, state, params), which this transformation refuses (line "
            f"searches need the loss as well): {error}"
        ) from error
    # Compared by shapes with what `update` returns, not `init`: some transformations change the types of their state.
    memory = fresh if state0 is None else state0
    if jax.tree.map(jnp.shape, memory) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise ValueError(
            "v0 is no state of this transformation: pass what its init or update returned for params like these, or "
            "None for a fresh start."
        )
    memory = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), memory, expected)
    check_accumulated(memory)
    keys, numbers = _kinds_of_keys(memory), _as_numbers(memory)
    if not jax.tree.leaves(sde.state_shapes()):
        return OptaxStep(transformation, None, False, keys, every), (x0, numbers, None), None
    b2 = _second_momentum(transformation, before_step(fresh, every), params)
    _check_rate(sde.optimizer, b2, lr, x0.dtype)
    corrected = sde.optimizer.bias_correction
    # 0/0 of a fresh state: its expectation after one step takes the place.
    if corrected and steps_counted(memory) == 0:
        # That of one gradient, on average, or of the mean of several.
        v = jax.tree.map(lambda leaf: leaf / every, equilibrium(sde, x0))
    else:
        v = _state_of(sde, memory, b2 if corrected else None)
    check_state(sde, v, "the second moment of this transformation")
    step = OptaxStep(transformation, jnp.asarray(b2, x0.dtype) if corrected else None, True, keys, every)
    return step, (x0, numbers, v), b2


def _state_of(sde: SlowSDE, memory: PyTree, b2: Any) -> PyTree:
    """v of `sde.optimizer` in what a transformation remembers; ValueError where it asks for more."""
    v = from_optax_state(memory, b2, partly=True)
    arranged = sde.arranged(v)
    # Groups that keep no second moment need none.
    if jax.tree.structure(arranged) != jax.tree.structure(sde.state_shapes()):
        from_optax_state(memory, partly=False)  # which says for which parameters there is none
    return arranged


def _second_momentum(transformation: Any, state: PyTree, params: PyTree) -> float:
    """β2: what a step of zero gradient leaves of a second moment of ones."""
    nothing = jax.tree.map(jnp.zeros_like, params)
    # Optax does not let its settings be read back, but β2 can be measured.
    _, after = transformation.update(nothing, map_moments(jnp.ones_like, state), params)
    left = np.asarray(ravel(from_optax_state(after, partly=True)))
    if np.ptp(left) > 1e-6 * (1 - left.min()):
        raise ValueError(
            f"The transformation has several β2, from {left.min()} to {left.max()}, and like has one c. Leave out like."
        )
    return float(left[0])


def _check_rate(like: AGM, b2: float, lr: float, dtype: Any) -> None:
    c = (1 - b2) / lr**2
    # 1 − β2 of a measured β2 has lost digits: relative to it, eps/(1−β2).
    rounding = 1e-3 + 10 * float(jnp.finfo(dtype).eps) / max(1 - b2, 1e-300)
    if not like.quasi_static and abs(float(like.c) - c) > rounding * c:
        raise ValueError(
            f"like.c={float(like.c):g}, but the transformation has β2={b2:.8g}, which at lr={lr:g} is c=(1−β2)/lr²="
            f"{c:g}. Pass like with c=slow_rate(lr, b2), or the transformation with b2=1−c·lr²."
        )

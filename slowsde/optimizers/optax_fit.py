"""What an Optax transformation makes of gradients besides its second moment: it may accumulate several of them for a
step (`optax.MultiSteps`), and leave some parameters to others (`optax.masked`).

Optax is not imported: the types of its states are known by their names.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .optax_state import misfit

MOST_COUNTS = 1000  # steps at which a schedule of K is looked at


def accumulation(transformation: Any, params: PyTree, steps: int) -> int:
    """K, how many gradients a step takes: 1, or that of `optax.MultiSteps`.

    ValueError if K changes within the first `steps` steps, if gradients are added up or may be skipped, or if only some
    parameters wait for them.
    """
    state = transformation.init(params)
    waiting = [node for node in jax.tree.leaves(state, is_leaf=_is_waiting) if _is_waiting(node)]
    if not waiting:
        return 1
    if len(waiting) > 1 or len(jax.tree.leaves(waiting[0].acc_grads)) != len(jax.tree.leaves(params)):
        raise ValueError(
            "MultiSteps accumulates the gradients of some parameters only, and slow time t = k·lr² needs one step for "
            "all: put MultiSteps around the whole transformation."
        )
    # An integer of −2 counts on to −1, which is K − 1 modulo K.
    counts = np.unique(np.linspace(0, max(steps - 1, 0), MOST_COUNTS).astype(np.int32))
    found = 1 + np.asarray(_after(transformation, params, state, -2, counts, lambda node: node.mini_step))
    if np.ptp(found):
        raise ValueError(
            f"MultiSteps takes from {found.min()} to {found.max()} gradients a step (every_k_schedule), and the noise "
            "of a slow SDE is that of one number: pass a number."
        )
    _check_mean(waiting[0], transformation, params, state, int(found[0]))
    return int(found[0])


def _check_mean(waiting: Any, transformation: Any, params: PyTree, state: PyTree, every: int) -> None:
    skipped = waiting.skip_state
    if jax.tree.leaves(skipped) and not (isinstance(skipped, dict) and "num_not_finite" in skipped):
        raise ValueError(
            "MultiSteps skips gradients (should_skip_update_fn), which changes their noise and the clock: leave it out."
        )
    # Of gradients of one, a mean by Welford at a count of −3 makes −½, and a sum 1.
    kept = _after(
        transformation, params, state, -3, np.zeros(1, np.int32), lambda node: jax.tree.leaves(node.acc_grads)[0]
    )
    if every > 1 and np.any(np.asarray(kept) > 0):
        raise ValueError(
            f"MultiSteps adds up gradients (use_grad_mean=False), so that v and the rate are those of {every} times "
            f"the gradient: leave it at True (which for SGD takes {every} times the rate, for Adam ε/{every})."
        )


def _after(
    transformation: Any, params: PyTree, state: PyTree, count: int, steps: np.ndarray, of: Callable[[Any], Any]
) -> Any:
    """What is read of the waiting state after a gradient of ones, from a micro-step of this number in these steps."""
    ones = jax.tree.map(jnp.ones_like, params)

    def one(step: Any) -> Any:
        before = _map_waiting(
            lambda node: node._replace(mini_step=node.mini_step * 0 + count, gradient_step=step), state
        )
        after = transformation.update(ones, before, params)[1]
        return of(next(node for node in jax.tree.leaves(after, is_leaf=_is_waiting) if _is_waiting(node)))

    # One by one: with large parameters a thousand at once might not fit into memory.
    return jax.jit(lambda steps: jax.lax.map(one, steps))(steps)


def before_step(state: PyTree, every: int) -> PyTree:
    """`state` as if the next gradient were the last of a step."""
    return _map_waiting(lambda node: node._replace(mini_step=node.mini_step * 0 + every - 1), state)


def check_accumulated(state: PyTree) -> None:
    """ValueError if `state` is in the middle of a step."""
    for node in jax.tree.leaves(state, is_leaf=_is_waiting):
        if _is_waiting(node) and int(node.mini_step) != 0:
            raise ValueError(
                f"v0 is the state of a MultiSteps in the middle of a step, after {int(node.mini_step)} gradients of it:"
                " hand over the state, and the parameters, after its last (MultiSteps.has_updated tells)."
            )


def check_updates(transformation: Any, params: PyTree, every: int, alike: bool) -> None:
    """ValueError if `transformation` goes up a gradient or, where it is said to be like an AGM, if it is unlike any."""
    state = transformation.init(params)
    if alike and (why := misfit(state)):
        raise ValueError(f"like: {why}. Leave out like: the run itself needs none.")
    if not any(map(_is_masked, jax.tree.leaves(state, is_leaf=_is_masked))):
        return
    ones = jax.tree.map(jnp.ones_like, params)
    moves = jax.jit(transformation.update)(ones, before_step(state, every), params)[0]
    names = {name: [] for name in (0.0, 1.0)}
    for path, move in jtu.tree_flatten_with_path(moves)[0]:
        for kind, found in names.items():
            if np.all(np.asarray(move) == kind):
                found.append("params" + jtu.keystr(path))
    if names[1.0]:
        raise ValueError(
            f"optimizer returns the gradient of {', '.join(names[1.0])} as the update, which goes uphill: optax.masked "
            "hands on what it does not transform. Pass optax.multi_transform({'a': ..., 'b': optax.sgd(lr)}, labels)."
        )
    if names[0.0] and alike:
        raise ValueError(
            f"optimizer does not move {', '.join(names[0.0])}, and like moves every parameter. Leave what is frozen "
            "out of params: close over it in the loss."
        )


def check_injected_rate(state: PyTree, lr: float) -> None:
    """ValueError if the state of `optax.inject_hyperparams`, which tells the rate of an optimizer, has another."""
    node = state.inner_opt_state if _is_waiting(state) else state
    settings = getattr(node, "hyperparams", {})
    # A schedule has a state of its own; gradients that are added up have an lr that is not the rate.
    if "learning_rate" not in settings or "momentum" in settings or "learning_rate" in node.hyperparams_states:
        return
    rate = float(settings["learning_rate"])
    if not np.isclose(rate, lr, rtol=1e-3):
        raise ValueError(
            f"lr={lr:g}, but the state of this transformation (inject_hyperparams) has learning_rate={rate:g}: pass "
            "that as lr, with c=slow_rate(lr, b2) in like, or a state with the other rate."
        )


def _map_waiting(function: Callable[[Any], Any], state: PyTree) -> PyTree:
    return jax.tree.map(lambda node: function(node) if _is_waiting(node) else node, state, is_leaf=_is_waiting)


def _is_waiting(node: Any) -> bool:
    return type(node).__name__ == "MultiStepsState"


def _is_masked(node: Any) -> bool:
    return type(node).__name__ == "MaskedNode"

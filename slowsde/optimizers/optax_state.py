"""The second moment in the state of an Optax optimizer, where the slow SDE can take over from a training run.

Optax is not imported: the types of its states are known by their names.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from manifolds.support.precision import is_traced

# States by the names of their types, with the optimizers that a message can name.
MOMENTS = {
    "ScaleByAdamState": "adam, adamw, nadam, radam, lamb",
    "ScaleByRmsState": "rmsprop",
    "ScaleByRmsWithCountState": "rmsprop with bias_correction",
    "ScaleByRStdDevState": "rmsprop with centered",
    "ScaleByRStdDevWithCountState": "rmsprop with centered and bias_correction",
    "ScaleByBeliefState": "adabelief",
    "ScaleByAdemamixState": "ademamix",
}
# Those with something like a second moment that does not relax at a rate c: a message says why.
OTHERS = {
    "ScaleByAmsgradState": "AMSGrad divides by the largest second moment so far, which never relaxes",
    "ScaleByRssState": "Adagrad divides by the sum of all squares so far, which never relaxes",
    "FactoredState": "Adafactor keeps means over rows and columns, with no rate c (1 − β2 = k^−0.8): see adafactor",
    "ScaleByNovogradState": "NovoGrad averages gradients after it has divided them",
    "ScaleByAdaDeltaState": "Adadelta also divides by the size of its own steps",
    "ScaleByLionState": "Lion moves by the sign of a mean of gradients, which is no S(v) times it and forgets its size",
    "MuonState": "Muon moves by the nearest orthogonal matrix, a function of the mean of gradients m and not S(v) m",
    "ScaleBySM3State": "SM3 keeps maxima over rows and columns only",
}


def from_optax_state(state: PyTree, b2: Any = None, partly: bool = False) -> PyTree:
    """The second moment v of an Optax optimizer: the `v0` with which `simulate` goes on from a training run.

        v = ν,  or with b2   v = ν/(1−β2^k),   ν ← β2 ν + (1−β2) g²  after k steps from ν = 0

    Adam corrects ν so, and what it divides by is what the slow SDE goes on from: pass b2 unless the run was long
    against 1/(1−β2) steps. That v belongs to an AGM with `bias_correction=True` at slow time t0 = kη², whose v is
    quicker than c to forget as long as ct0 is small; pass t0 as well.

    `state` is any pytree that holds the state of one optimizer with a second moment: nested in `optax.chain`,
    `inject_hyperparams`, `MultiSteps`, or divided by `optax.masked` and `multi_transform` among groups of parameters,
    which are put together. Adam and its kin, RMSProp, AdaBelief and AdEMAMix have one; of centered RMSProp v is the
    variance ν − μ²; of AdaBelief it is that of g − m, near Γ 2β1²/(1+β1) times the one of g. (Adamax and Yogi keep
    something else in a state of Adam's type, which nothing there tells.)

    Args:
        state: as `optimizer.init` and `optimizer.update` return it, of any precision.
        b2: β2 of the optimizer, to correct for the start ν = 0; None to leave ν as it is.
        partly: whether some parameters may be without one, as where SGD acts on a group of them; they have None there,
            which is the v0 of `grouped` with `sgd` for that group.

    Returns: a pytree like params.
    Raises: ValueError if state holds no second moment, several, or one for some parameters only; with b2, if it is not
        in [0, 1), or if state does not count its steps or has counted none.

    Example:
        >>> import optax
        >>> optimizer, gradient = optax.adam(0.01), jax.grad(problem.loss)
        >>> params, state = params0, optimizer.init(params0)
        >>> for _ in range(10):  # a training run …
        ...     updates, state = optimizer.update(gradient(params), state)
        ...     params = optax.apply_updates(params, updates)
        >>> v0 = from_optax_state(state, b2=0.999)  # … stopped near a minimum: where is it heading?
        >>> real = adam(c=slow_rate(0.01, 0.999), bias_correction=True)
        >>> slow = simulate(problem, real, params, t0=slow_time(10, 0.01), t1=1.0, v0=v0)
    """
    if b2 is not None and not is_traced(b2) and not 0 <= float(b2) < 1:
        raise ValueError(f"b2={b2} must lie in [0, 1), or be None to leave the second moment as it is.")
    # Several, each masked where the others are not, belong to groups of parameters and make one tree together.
    found = _moment_states(state)
    v = _read(found[0], b2)
    for other in found[1:]:
        v = _merge(v, _read(other, b2), "")
    missing = [path for path, leaf in jtu.tree_flatten_with_path(v, is_leaf=_is_masked)[0] if _is_masked(leaf)]
    if missing and not partly:
        names = ", ".join("params" + jtu.keystr(path) for path in missing)
        raise ValueError(
            f"state has no second moment for {names}: {misfit(state) or 'another transformation acts there (or none)'}."
            " Where SGD acts on them the AGM is grouped({'a': adam(...), 'b': sgd()}, labels), whose v needs none "
            "there (from_optax_state(..., partly=True)); parameters that are frozen do not belong into params: close "
            "over them in the loss."
        )
    return jax.tree.map(lambda leaf: None if _is_masked(leaf) else leaf, v, is_leaf=_is_masked)


def misfit(state: PyTree) -> str:
    """Why a transformation with this state is no AGM, in words; "" if nothing there tells."""
    nodes = jax.tree.leaves(state, is_leaf=_is_other)
    return next((OTHERS[type(node).__name__] for node in nodes if _is_other(node)), "")


def _is_other(node: Any) -> bool:
    # Muon's is there for vectors too, where it does nothing.
    return type(node).__name__ in OTHERS and bool(jax.tree.leaves(getattr(node, "mu", True)))


def map_moments(function: Any, state: PyTree) -> PyTree:
    """`state` with `function` applied to every leaf of its second moments."""

    def one(node: Any) -> Any:
        return node._replace(nu=jax.tree.map(function, node.nu)) if _is_moment(node) else node

    return jax.tree.map(one, state, is_leaf=_is_moment)


def steps_counted(state: PyTree) -> Array:
    """The number k of steps that the second moment in `state` has seen; ValueError if it does not count."""
    return min(
        (_count(node) for node in _moment_states(state)), key=lambda count: 0 if is_traced(count) else int(count)
    )


def _moment_states(state: PyTree) -> list[Any]:
    """The states with a second moment in `state`; ValueError if there are none."""
    found = [node for node in jax.tree.leaves(state, is_leaf=_is_moment) if _is_moment(node)]
    if not found:
        raise ValueError(
            f"state has no second moment ({misfit(state) or f'it is a {type(state).__name__}'}). In Optax "
            f"{_known()} keep one; SGD needs no v0."
        )
    return found


def _known() -> str:
    return ", ".join(MOMENTS.values())


def _is_moment(node: Any) -> bool:
    return type(node).__name__ in MOMENTS


def _is_masked(node: Any) -> bool:
    return type(node).__name__ == "MaskedNode"


def _count(node: Any) -> Array:
    if "count" not in node._fields:
        raise ValueError(
            f"b2 is for a second moment that starts from 0 and counts its steps, but a {type(node).__name__} "
            f"({MOMENTS[type(node).__name__]}) does not count: Optax does not correct it. Leave b2=None."
        )
    return node.count


def _read(node: Any, b2: Any) -> PyTree:
    """v of one state: corrected for its start, and less the squared mean if centered."""
    share: Any = 1.0
    if b2 is not None:
        count = _count(node)
        if not is_traced(count) and int(count) == 0:
            raise ValueError(
                "state has counted no step: its second moment is still 0. Leave v0=None for a fresh start."
            )
        # 1 − β2^k = −expm1(k log β2), without cancellation where β2 is close to 1.
        share = -jnp.expm1(count * jnp.log(b2))
    corrected = jax.tree.map(lambda leaf: leaf / jnp.asarray(share, leaf.dtype), node.nu)
    if "StdDev" not in type(node).__name__:
        return corrected
    # Centered RMSProp divides by the variance. (Both moments are corrected before they are combined.)
    return jax.tree.map(lambda nu, mu: nu - (mu / jnp.asarray(share, mu.dtype)) ** 2, corrected, node.mu)


def _merge(a: PyTree, b: PyTree, path: str) -> PyTree:
    """One tree from two that are masked where the other is not; ValueError if neither is."""
    if _is_masked(a) or _is_masked(b):
        return b if _is_masked(a) else a
    (parts, treedef), (others, other_treedef) = eqx.tree_flatten_one_level(a), eqx.tree_flatten_one_level(b)
    if (parts and parts[0] is a) or treedef != other_treedef:
        raise ValueError(
            f"state has several second moments{' for params' + path if path else ''}. Pass the part of it that belongs "
            "to the one the parameters are divided by."
        )
    names = [jtu.keystr(p) for p, _ in jtu.tree_flatten_with_path(a, is_leaf=lambda node: node is not a)[0]]
    merged = [_merge(x, y, path + name) for x, y, name in zip(parts, others, names, strict=True)]
    return jtu.tree_unflatten(treedef, merged)

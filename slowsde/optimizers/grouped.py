"""Different settings for different groups of parameters: one optimizer a group, side by side."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import is_traced
from manifolds.support.user_functions import shown

from ..support.arguments import is_finite, mapping
from .agm import AGM, flat_decay
from .sgd import no_state


def grouped(optimizers: Mapping[str, AGM], labels: PyTree, *, learning_rates: Mapping[str, float] | None = None) -> AGM:
    """One optimizer for each group of parameters: another ε for the embeddings, no weight decay on the biases.

    The metric is block diagonal, S(v) = diag(ρ_g S_g(v_g)), and v is {name: state of that group}.

    Args:
        optimizers: {name: AGM}. They share c, b1, bias correction and schedule (but c of `sgd`, which has no state, is
            free); metric, state and weight decay are each group's own.
        labels: which group each leaf of params belongs to: a pytree of names like params, or a prefix of it, where one
            name stands for all that is below it (as in `optax.multi_transform`).
        learning_rates: ρ_g, the learning rate of a group over η, for those in which it is not 1.

    Raises ValueError for a label without an optimizer, an optimizer without a label, learning rates that are not
    positive, settings that must agree and do not and, when the optimizer meets params, labels that do not fit them.

    Example:
        >>> grouped({"table": adam(c=1.0, eps=1e-4), "rest": adam(c=1.0)}, {"embedding": "table", "mlp": "rest"})
    """
    mapping("optimizers", optimizers, "{name: AGM}")
    rates = {} if learning_rates is None else mapping("learning_rates", learning_rates, "{name: rate}")
    return Grouped(optimizers, labels, rates)


class Grouped(AGM):
    """Several AGMs, each on its own leaves of params; see `grouped`."""

    labels: PyTree
    rates: dict[str, Any]

    def __init__(self, optimizers: Mapping[str, AGM], labels: PyTree, rates: Mapping[str, float]):
        first = _first_of_agreeing(optimizers)
        _check_names(optimizers, labels, rates)
        super().__init__(
            V=GroupStates({name: optimizer.V for name, optimizer in optimizers.items()}, labels),
            S=GroupMetrics({name: optimizer.S for name, optimizer in optimizers.items()}),
            c=first.c,
            b1=first.b1,
            bias_correction=first.bias_correction,
            weight_decay={name: optimizer.weight_decay for name, optimizer in optimizers.items()},
            schedule=first.schedule,
        )
        self.labels = labels
        # As arrays: other rates compile nothing anew.
        self.rates = {name: np.asarray(rates.get(name, 1.0), float) for name in optimizers}

    def metric(self, v: PyTree, chart: Coordinates) -> mf.AbstractMetric:
        """diag(ρ_g S_g(v_g)) on the flat coordinates of `chart`."""
        metrics, parts = self.S(v), _parts(self.labels, chart, self.rates)
        blocks = [mf.as_metric(part.expand(metrics[name]), part.size) for name, part in parts.items()]
        # ρ_g η S_g m = η (ρ_g S_g) m: a learning rate of a group is a factor of its metric, in the slow SDE as in the
        # step.
        scaled = [mf.Scaled(block, self.rates[name]) for name, block in zip(parts, blocks, strict=True)]
        return mf.Reordered(mf.BlockDiagonal(scaled, [part.size for part in parts.values()]), _order(chart, parts))

    def arranged(self, v: PyTree) -> dict[str, PyTree]:
        """{name: state} from one second moment like params, as Optax's `multi_transform` of Adams has it."""
        assert isinstance(self.V, GroupStates)
        parts = self.V.parts(v)
        return {name: None if V is no_state else parts[name] for name, V in self.V.V.items()}

    def decay(self, chart: Coordinates) -> Float[Array, " p"]:
        """ρ_g ω_g, one for each parameter."""
        parts = _parts(self.labels, chart, self.rates)
        decays = [
            self.rates[name] * jnp.broadcast_to(flat_decay(self.weight_decay[name], part), part.size)
            for name, part in parts.items()
        ]
        # From the order of the groups, one after the other, back to that of params. The order is known, so that sorting
        # it costs nothing in a step.
        return jnp.concatenate(decays)[np.argsort(_order(chart, parts))]


class GroupStates(eqx.Module):
    """V: gradient ↦ {name: V_g of the leaves in that group, None in the place of the others}."""

    V: dict[str, Callable[[PyTree], PyTree]]
    labels: PyTree

    def __call__(self, gradient: PyTree) -> dict[str, PyTree]:
        return {name: self.V[name](part) for name, part in self.parts(gradient).items()}

    def parts(self, tree: PyTree) -> dict[str, PyTree]:
        """{name: the leaves of a params-like tree in that group, None in the place of the others}."""
        leaves, treedef = jax.tree.flatten(tree)
        of_leaf = _label_of_leaves(self.labels, tree)
        return {
            name: treedef.unflatten([leaf if at == name else None for leaf, at in zip(leaves, of_leaf, strict=True)])
            for name in self.V
        }


class GroupMetrics(eqx.Module):
    """S: {name: v_g} ↦ {name: S_g(v_g)}."""

    S: dict[str, Callable[[PyTree], Any]]

    def __call__(self, v: dict[str, PyTree]) -> dict[str, Any]:
        return {name: S(v[name]) for name, S in self.S.items()}


def _parts(labels: PyTree, chart: Coordinates, names: Mapping[str, Any]) -> dict[str, Coordinates]:
    """The chart of each group."""
    # The labels are matched to a tree of placeholders, as the arrays themselves are not at hand here.
    numbers = iter(range(len(chart.shapes)))
    like = chart.treedef.unflatten([None if shape is None else next(numbers) for shape in chart.shapes])
    of_array = iter(_label_of_leaves(labels, like))
    of_leaf = [None if shape is None else next(of_array) for shape in chart.shapes]
    return {name: chart.part([label == name for label in of_leaf]) for name in names}


def _order(chart: Coordinates, parts: dict[str, Coordinates]) -> np.ndarray:
    """The coordinates of every group, one after the other."""
    indices = chart.treedef.flatten_up_to(chart.unravel(np.arange(chart.size)))
    chosen = [
        [i for i, shape in zip(indices, part.shapes, strict=True) if shape is not None] for part in parts.values()
    ]
    return np.concatenate([ravel(group) for group in chosen])


def _label_of_leaves(labels: PyTree, params: PyTree) -> list[str]:
    try:
        named = jax.tree.map(lambda label, below: jax.tree.map(lambda _: label, below), labels, params)
    except ValueError as error:
        raise ValueError(
            f"labels={shown(labels)} do not fit params: give a pytree of names like params, or a prefix of it "
            f"({error})."
        ) from error
    return jax.tree.leaves(named)


def _first_of_agreeing(optimizers: Mapping[str, AGM]) -> AGM:
    """An optimizer of the groups, one with a state if there is any, once they are known to agree."""
    for name, optimizer in optimizers.items():
        if not isinstance(optimizer, AGM):
            raise ValueError(f"optimizers[{name!r}]={shown(optimizer)} must be an AGM, such as adam(c=1.0).")
    # c of SGD means nothing: a group with a state speaks for all.
    ranked = sorted(optimizers.values(), key=lambda optimizer: optimizer.V is no_state)
    if not ranked:
        raise ValueError("optimizers={} names no group: pass {name: adam(c=1.0), ...}.")
    first = ranked[0]
    for name, optimizer in optimizers.items():
        for setting in ("c", "b1", "bias_correction", "schedule"):
            mine, other = getattr(first, setting), getattr(optimizer, setting)
            if setting == "c" and optimizer.V is no_state:
                continue
            # The same object may be traced; different traced ones cannot be compared, and count as different.
            if mine is not other and not (not is_traced(mine, other) and mine == other):
                raise ValueError(
                    f"optimizers[{name!r}] has {setting}={other}, another group {mine}: the groups must agree in it. "
                    "Groups may differ in metric, state and weight decay, and in learning_rates."
                )
    return first


def _check_names(optimizers: Mapping[str, AGM], labels: PyTree, rates: Mapping[str, float]) -> None:
    if not all(isinstance(label, str) for label in jax.tree.leaves(labels)):
        raise ValueError(f"labels={shown(labels)} must be a pytree of names, like params or a prefix of it.")
    used = set(jax.tree.leaves(labels))
    if used != set(optimizers):
        raise ValueError(
            f"labels name the groups {sorted(map(str, used))}, optimizers has {sorted(optimizers)}: every label needs "
            "an optimizer, and every optimizer a label."
        )
    for name, rate in rates.items():
        if name not in optimizers or not (is_finite(rate) and rate > 0):
            raise ValueError(
                f"learning_rates[{name!r}]={shown(rate)} must be a positive number for one of {sorted(optimizers)}. To "
                "freeze a group leave it out of params: close over it in the loss."
            )

"""What an optimizer is: a pair (V, S) with its settings, and what they make of a state over slow time.

    m ← β1 m + (1−β1) g,    v ← β2 v + (1−β2) V(g gᵀ),    θ ← θ − η S(v) m

V is linear in g gᵀ, so it is given as a function of g that is quadratic; S maps the state v to a metric. The rate
c = (1−β2)/η² is held fixed as η → 0 and β1 drops out of the slow dynamics (Li, Wen and Lyu 2025).
"""

from collections.abc import Callable
from typing import Any, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.support.arrays import generic
from manifolds.support.compilation import compiled_once
from manifolds.support.coordinates import Coordinates
from manifolds.support.precision import is_traced
from manifolds.support.user_functions import check_signature, form_of, shown

from ..support.arguments import flag, function, is_symbolic, number


class Settings(TypedDict, total=False):
    """What people add to an optimizer: keywords of `AGM` that every optimizer here takes and passes on."""

    bias_correction: bool
    weight_decay: Any
    schedule: Callable[[Any], Any] | None
    mask: Any
    mask: Any


class AGM(eqx.Module):
    """An adaptive gradient method.

    Args:
        V: gradient (params-like) -> state increment (any pytree), quadratic: V(sg) = s² V(g).
        S: state -> metric (`manifolds.AbstractMetric`, or anything `manifolds.as_metric` understands; a params-like
            diagonal may lack trailing axes, which is one value a row, or one a leaf).
        c: (1−β2)/η², the rate at which the state relaxes per unit of slow time t = kη²; `jnp.inf` for the
            quasi-static limit v = V(Σ(ζ)).
        b1: the momentum β1 of the discrete method.
        bias_correction: what real Adam does, m/(1−β1^k) and v/(1−β2^k) after k steps from m = v = 0. States v below
            are then the corrected ones, those that S acts on, v̂ = v/(1−e^{−ct}), with dv̂ = c (V(Σ)−v̂)/(1−e^{−ct}) dt.
        weight_decay: decoupled, ω ≥ 0: θ ← θ − η²ω θ besides (AdamW's coefficient is ηω), a drift −Π ω ζ. A number, or
            a pytree of numbers or arrays like params, or a prefix of it.
        schedule: s(t) > 0, the learning rate at slow time t is η s(t): diffusion × s, drift × s², weight decay × s.
            None for 1.
        mask: which parameters decay, as in Optax: a pytree of True and False like params, or a prefix of it, or a
            function of params that returns one. None for all.

    Raises ValueError for c ≤ 0, b1 outside [0, 1), a negative weight decay, or a schedule that is no function of time.

    Example:
        >>> clipped = AGM(V=lambda g: jax.tree.map(jnp.square, g),
        ...               S=lambda v: jax.tree.map(lambda x: jnp.minimum(1 / (jnp.sqrt(x) + 1e-8), 10.0), v), c=1.0)
    """

    V: Callable[[PyTree], PyTree]
    S: Callable[[PyTree], Any]
    c: Any
    b1: Any
    bias_correction: bool = eqx.field(static=True)
    weight_decay: Any
    schedule: Callable[[Any], Any] | None

    def __init__(
        self,
        V: Callable[[PyTree], PyTree],
        S: Callable[[PyTree], Any],
        c: Any,
        b1: Any = 0.0,
        *,
        bias_correction: bool = False,
        weight_decay: Any = 0.0,
        schedule: Callable[[Any], Any] | None = None,
        mask: Any = None,
    ):
        if not is_traced(c):
            c = number("c", c, "c = (1 − β2)/η², see slow_rate(lr, b2); jnp.inf is allowed.", above=0, infinite=True)
        if not is_traced(b1):
            b1 = number("b1", b1, least=0, below=1)
        self.V, self.S = function("V", V, "gradient -> state increment"), function("S", S, "state -> metric")
        self.c, self.b1 = c, b1
        self.bias_correction = flag("bias_correction", bias_correction)
        self.weight_decay = checked_decay(weight_decay, mask)
        self.schedule = checked_schedule(schedule)

    @property
    def quasi_static(self) -> bool:
        """Whether v follows ζ at once, v = V(Σ(ζ))."""
        return not (is_traced(self.c) or is_symbolic(self.c)) and bool(np.isinf(float(self.c)))

    @property
    def autonomous(self) -> bool:
        """Whether the slow SDE has no explicit time in it."""
        return not self.bias_correction and self.schedule is None

    def pace(self, t: Any) -> Array:
        """s(t), the learning rate at slow time t over η."""
        return jnp.asarray(1.0) if self.schedule is None else jnp.asarray(self.schedule(t))

    def rate(self, t: Any) -> Array:
        """The rate at which v relaxes to V(Σ): c, or c/(1−e^{−ct}) for a bias-corrected v."""
        if not self.bias_correction or self.quasi_static:
            return jnp.asarray(self.c)
        # At t = 0, where v = V(Σ) already, 0/0 is avoided.
        return self.c / -jnp.expm1(-jnp.maximum(self.c * t, jnp.finfo(jnp.result_type(t)).eps ** 0.5))

    def relaxed(self, v: PyTree, target: PyTree, t: Any, h: Any) -> PyTree:
        """v at t + h from v at t, exactly, if its target V(Σ) stays: v + (V(Σ) − v)(1−e^{−ch}).

        For a corrected v the share that has come since t is (1−e^{−ch})/(1−e^{−c(t+h)}).
        """
        # 1 − e^{−ch} by subtraction is off by a tenth at ch = 1e-16; it stopped starts from v = 0, whose first steps
        # are as short.
        share = -jnp.expm1(-self.c * h)  # exact for short h, in which a v that starts at 0 must grow
        renewed = share / -jnp.expm1(-self.c * (t + h)) if self.bias_correction else share
        return jax.tree.map(lambda end, now: now + renewed * (end - now), target, v)

    @property
    def decays(self) -> bool:
        """Whether there is any weight decay."""
        leaves = jax.tree.leaves(self.weight_decay)
        return any(is_traced(leaf) or bool(np.any(np.asarray(leaf) != 0)) for leaf in leaves)

    def decay(self, chart: Coordinates) -> Array:
        """ω, one for each parameter (p,) or one for all ()."""
        return flat_decay(self.weight_decay, chart)

    def metric(self, v: PyTree, chart: Coordinates) -> mf.AbstractMetric:
        """S(v) on the flat coordinates of `chart`."""
        # Expanded first: Adam-mini and Adalayer give one value a row or a leaf.
        return mf.as_metric(chart.expand(self._of_state(v)), chart.size)

    def _of_state(self, v: PyTree) -> Any:
        """S(v), as a user gives it."""
        if is_traced(v) or is_symbolic(v):
            return self.S(v)
        form = eqx.filter_eval_shape(self.S, v)
        if isinstance(form, mf.AbstractMetric) and not isinstance(form, mf.Diagonal):
            return self.S(v)  # it looks at its numbers itself
        # One program, not one for each of its operations; `as_metric` looks at the numbers.
        return _compiled_S(self.S, v)

    def state_of_factor(self, factor: Float[Array, "p r"], chart: Coordinates) -> PyTree:
        """V(Σ) = Σ_j V(b_j b_jᵀ) over the columns of B, Σ = B Bᵀ."""
        # V is linear in g gᵀ, so that V of a sum over columns is the sum: no p×p matrix.
        columns = jax.vmap(lambda b: self.V(chart.unravel_arrays(b)))(factor.T)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), columns)

    def arranged(self, v: PyTree) -> PyTree:
        """A state that is given as one second moment like params, in the form of the states of V."""
        return v

    def check(self, chart: Coordinates, x: Float[Array, " p"]) -> None:
        """ValueError unless V is quadratic on gradients like x and S gives a metric of the right size."""
        once, quadratic = _probed(self, chart, x)
        # V(g) = |g| or g would run without an error, and make V(Σ) a sum over columns that means nothing.
        if not quadratic:
            raise ValueError("optimizer.V must be quadratic in the gradient, V(2g) = 4 V(g) (such as g ** 2).")
        self.metric(once, chart)


@compiled_once
def _compiled_S(S: Callable[[PyTree], Any], v: PyTree) -> Any:
    return S(v)


@compiled_once
def _probed(optimizer: AGM, chart: Coordinates, x: Float[Array, " p"]) -> tuple[PyTree, Array]:
    """V of a gradient like x, and whether that of its double is four times as large."""
    g = 2 * generic(x.size, x.dtype)
    once, twice = optimizer.V(chart.unravel_arrays(g)), optimizer.V(chart.unravel_arrays(2 * g))
    if jax.tree.structure(once) != jax.tree.structure(twice):
        raise ValueError("optimizer.V returns pytrees of different structure for different gradients.")
    close = jax.tree.map(lambda a, b: jnp.allclose(4 * a, b, rtol=1e-4), once, twice)
    return once, jnp.all(jnp.asarray(jax.tree.leaves(close), bool))


class Masked(eqx.Module):
    """A weight decay ω of some parameters only."""

    rate: PyTree
    mask: Any = eqx.field(static=True)  # a function of params, or (treedef, leaves) of a pytree of booleans

    def kept(self, chart: Coordinates) -> Array:
        """(p,) 1 for a parameter that decays, 0 for another."""
        if callable(self.mask):
            params = chart.unravel(np.zeros(chart.size))
            mask = self.mask(params)
            _check_booleans(mask, "what mask returns for params")
        else:
            treedef, leaves = self.mask
            mask = jax.tree.unflatten(treedef, leaves)
        return chart.spread(jax.tree.map(np.float64, mask), "mask").astype(float)


def checked_decay(weight_decay: Any, mask: Any) -> Any:
    """The weight decay that an optimizer keeps, `Masked` with a mask; ValueError for what is no weight decay."""
    weight_decay = 0.0 if weight_decay is None else weight_decay
    leaves = jax.tree.leaves(weight_decay)
    if callable(weight_decay) or any(callable(leaf) or np.asarray(leaf).dtype.kind == "b" for leaf in _known(leaves)):
        # A mask of booleans once passed for ω = 1, and changed a drift by a quarter.
        raise ValueError(
            f"weight_decay={shown(weight_decay)} must be a number, or a pytree of numbers: which parameters decay goes "
            "into mask=, a pytree of True and False or a function of params, as in Optax."
        )
    for leaf in _known(leaves):
        array = np.asarray(leaf)
        if array.dtype.kind not in "iuf" or not np.all((array >= 0) & np.isfinite(array)):
            raise ValueError(f"weight_decay={shown(weight_decay)} must not be negative, and finite numbers throughout.")
    if mask is None:
        return weight_decay
    if callable(mask):
        return Masked(weight_decay, mask)
    _check_booleans(mask, "mask")
    leaves, treedef = jax.tree.flatten(mask)
    return Masked(weight_decay, (treedef, tuple(bool(leaf) for leaf in leaves)))


def _known(leaves: list[Any]) -> list[Any]:
    return [leaf for leaf in leaves if not (is_traced(leaf) or is_symbolic(leaf))]


def _check_booleans(mask: Any, name: str) -> None:
    leaves = jax.tree.leaves(mask)
    if not leaves or not all(np.ndim(leaf) == 0 and np.asarray(leaf).dtype.kind == "b" for leaf in leaves):
        raise ValueError(f"{name}={shown(mask)} must be a pytree of True and False like params, or a function of them.")


def checked_schedule(schedule: Any) -> Any:
    """The schedule; ValueError unless it is a function from a time to one real number."""
    if schedule is None:
        return None
    function("schedule", schedule, "s(t) of slow time, or None for a constant one")
    check_signature(schedule, "schedule(t)", 1)
    found = form_of(schedule, "schedule(t)", jax.ShapeDtypeStruct((), jnp.result_type(float)))
    if getattr(found, "shape", None) != () or found.dtype.kind not in "iuf":
        raise ValueError(f"schedule must return a real scalar; schedule(t) returns {found}.")
    return schedule


def flat_decay(weight_decay: PyTree, chart: Coordinates) -> Array:
    """ω on the flat coordinates of `chart`, () for a number."""
    if isinstance(weight_decay, Masked):
        return weight_decay.kept(chart) * flat_decay(weight_decay.rate, chart)
    # One number stays one: a (p,) of it would be carried through every step.
    if jax.tree.structure(weight_decay) == jax.tree.structure(0.0) and jnp.ndim(weight_decay) == 0:
        return jnp.asarray(weight_decay)
    return chart.spread(weight_decay, "weight_decay")


def slow_rate(lr: float, b2: float) -> float:
    """c = (1 − β2)/η² of a real optimizer's settings.

    Example:
        >>> round(slow_rate(lr=1e-3, b2=0.999))
        1000
    """
    lr = number("lr", lr, "the learning rate η.", above=0)
    return (1 - number("b2", b2, "β2 of a second moment.", least=0, below=1)) / lr**2

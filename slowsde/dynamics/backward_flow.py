"""The backward-error ODE of Adam, RMSProp, heavy ball: the flow that iterates follow to O(h²) over O(1/h) steps.

A method of step size h = η is the map θ_{n+1} = θ_n − h m̂_n/√(v̂_n + ε), with ε inside the root, on gradients of E_k in
step k. Backward error analysis finds a flow θ̇ = f_n + h f¹_n on [nh, (n+1)h) with θ(nh) = θ_n + O(h²). With weights
a_nk = β^{n−k}(1−β)/(1−β^{n+1}), b_nk the same in ρ, k = 0..n, and all functions at the present θ,

    M_n = Σ_k a_nk ∇E_k,    R_n² = Σ_k b_nk (∇E_k)² + ε,    u_n = M_n/R_n,    f_n = −u_n,
    f¹_n = −{ M'_n/R_n − M_n P_n/R_n³ + ½ ∂u_n[u_n] },
    M'_n = Σ_k a_nk ∇²E_k Σ_{l=k}^{n−1} u_l,      P_n = Σ_k b_nk ∇E_k ∇²E_k Σ_{l=k}^{n−1} u_l:

past gradients were taken at θ_k = θ_n + h Σ u_l, which makes the first two terms, and the flow itself bends within a
step, which makes the third. With one loss E the inner sums are (n−k)u, and with r² = (∂E)² + ε this is

    θ̇_j = −(1/r_j){ ∂_jE + h [(c_β+½) − (c_ρ+½)(1−ε/r_j²)] ∂_j‖∇E‖_{1,ε} },    ‖g‖_{1,ε} = Σ_i √(g_i²+ε),
    c_b(n) = Σ_k (n−k) b^{n−k}(1−b)/(1−b^{n+1}) = b/(1−b) − (n+1)b^{n+1}/(1−b^{n+1}).

(Cattaneo, Klusowski and Shigida, On the Implicit Bias of Adam, 2024; RMSProp is β = 0.) R = 1 is heavy ball, and with
β = 0 gradient descent, θ̇ = −∇E − ½h ∇²E ∇E.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from manifolds.support.arrays import extent
from manifolds.support.compilation import compiled
from manifolds.support.coordinates import Coordinates, ravel

from ..problems.abstract import AbstractProblem
from ..support import arguments

# Where one step of the optimizer needs more, the flow is too stiff for an expansion in h to mean anything.
MAX_STEPS = 1000  # of the solver, within one step of the optimizer
Vector = Float[Array, " p"]


class BatchLosses(eqx.Module):
    """The K batch losses on flat coordinates: a tuple of functions, or one function of (params, batch number)."""

    functions: tuple[Callable[..., Any], ...] | Callable[..., Any]
    count: int = eqx.field(static=True)
    chart: Coordinates = eqx.field(static=True)

    @classmethod
    def of(cls, loss: Any, batches: int | None, chart: Coordinates) -> "BatchLosses":
        if isinstance(loss, Sequence) and not isinstance(loss, str):
            if batches is not None and batches != len(loss):
                raise ValueError(f"batches={batches}, but loss is a sequence of {len(loss)}: leave batches=None.")
            functions = tuple(_function(one) for one in loss)
            if not functions:
                raise ValueError("loss is an empty sequence: give one function for each batch.")
            return cls(functions, len(functions), chart)
        if batches is None:
            return cls((_function(loss),), 1, chart)
        if not arguments.is_integer(batches) or batches < 1:
            raise ValueError(f"batches={batches!r} must be a positive integer.")
        return cls(_function(loss), int(batches), chart)

    def each(self, operate: Callable[..., Array], *arrays: Float[Array, "K p"]) -> Array:
        """operate(E_b, arrays[b]...) of every batch, stacked: E_b is a function of x."""
        if isinstance(self.functions, tuple):
            # Functions of their own are traced one after the other; a function of the batch number is vectorized over
            # batches.
            parts = [
                operate(lambda x, f=f: f(self.chart.unravel(x)), *(a[i] for a in arrays))
                for i, f in enumerate(self.functions)
            ]
            return jnp.stack(parts)
        function = self.functions

        def one(i: Array, *rows: Array) -> Array:
            return operate(lambda x: function(self.chart.unravel(x), i), *rows)

        return jax.vmap(one)(jnp.arange(self.count), *arrays)

    def gradients(self, x: Vector) -> Float[Array, "K p"]:
        """∇E_b(x)."""
        return self.each(lambda loss: jax.grad(loss)(x))

    def products(self, x: Vector, w: Float[Array, "K p"]) -> Float[Array, "K p"]:
        """∇²E_b(x) w_b."""
        # Forward over reverse: no Hessian is formed.
        return self.each(lambda loss, row: jax.jvp(jax.grad(loss), (x,), (row,))[1], w)

    def mean(self, params: PyTree) -> Array:
        """The mean loss, of params as they are."""
        return self.mean_at(ravel(params))

    def mean_at(self, x: Vector) -> Array:
        """The mean loss."""
        return jnp.mean(self.each(lambda loss: loss(x)))

    def defined(self, x: Vector) -> Array:
        """Whether all losses and their gradients are finite."""
        return jnp.isfinite(self.mean_at(x)) & jnp.all(jnp.isfinite(self.gradients(x)))

    def check(self, x: Vector) -> None:
        """ValueError unless every loss is a finite real scalar with a finite gradient at the start."""

        def scalar(loss: Callable[[Vector], Any]) -> Array:
            value = loss(x)
            if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                raise ValueError(
                    f"loss returns shape {jnp.shape(value)} and dtype {jnp.result_type(value)}; it must return one "
                    "real number."
                )
            return jnp.asarray(value)

        values = self.each(scalar)
        if not bool(jnp.all(jnp.isfinite(values)) & jnp.all(jnp.isfinite(self.gradients(x)))):
            raise ValueError("loss or its gradient is not finite at params0.")


def _function(loss: Any) -> Callable[..., Any]:
    if isinstance(loss, AbstractProblem):
        return loss.loss  # pyright: ignore[reportAttributeAccessIssue]
    if not callable(loss):
        raise ValueError(f"loss={loss!r} must be a function of params, a Problem, or a sequence of them.")
    return loss


class Memory(eqx.Module):
    """What a step knows of the past, for weights β^{n−k}: of batch b the sums over the steps k ≤ n that visited it.

    Of steps before the run, whose gradients are known by their sum alone, that sum and no more: they do not move.
    """

    weight: Float[Array, " K"]  # Σ_k β^{n−k}
    lag: Float[Array, "K p"]  # Σ_k β^{n−k} Σ_{l=k}^{n−1} u_l
    given: Vector  # Σ_k β^{n−k} ∇E_k, or of its squares, over the steps before the run
    total: Array  # Σ_k β^{n−k} over all steps, of whatever batch

    @classmethod
    def of(cls, count: int, b: Any, moment: Vector, step: Any) -> "Memory":
        """That of a moment (1−β) Σ_k β^{step−1−k} ∇E_k before step number `step`."""
        before = (1 - b**step) / (1 - b)
        none = jnp.zeros(count, moment.dtype)
        return cls(none, jnp.zeros((count, moment.size), moment.dtype), moment / (1 - b), before)

    def next(self, b: Any, u: Vector, batch: Array) -> "Memory":
        """The sums one step later, after a step −h u, when `batch` is visited."""
        # Every age grows by a step −h u: Σ_k β^{n+1−k} Σ_{l=k}^{n} u_l = β (lag + weight·u), and the gradient of step
        # n + 1 enters with age 0.
        visited = jax.nn.one_hot(batch, self.weight.shape[0], dtype=u.dtype)
        lag = b * (self.lag + self.weight[:, None] * u)
        return Memory(b * self.weight + visited, lag, b * self.given, b * self.total + 1)

    def scaled(self, scale: Any) -> "Memory":
        """All sums times `scale`."""
        return jax.tree.map(lambda leaf: scale * leaf, self)


class BackwardFlow(eqx.Module):
    """The field f_n + h f¹_n of a method."""

    losses: BatchLosses
    h: Array
    b1: Array
    b2: Array
    eps: Array
    rtol: Array
    corrected: bool = eqx.field(static=True)
    normalized: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)  # False for R = 1: gradient descent and heavy ball
    continues: bool = eqx.field(static=True)  # from moments of steps before the run

    @property
    def closed(self) -> bool:
        """Whether the sums over the past are those of the full batch, in closed form."""
        return self.losses.count == 1 and self.normalized and not self.continues

    def scaled(self, b: Array, memory: Memory) -> Memory:
        """The memory with the weights (1−b)b^{n−k}/(1−b^{n+1}), or (1−b)b^{n−k}."""
        # Σ_k β^{n−k} = (1−β^{n+1})/(1−β), so that dividing by it is Adam's correction.
        return memory.scaled(1 / memory.total if self.normalized else 1 - b)

    def heading(self, x: Vector, first: Memory, second: Memory) -> tuple[Vector, Vector, Array]:
        """M, R and the gradients (K, p)."""
        gradients = self.losses.gradients(x)
        m = first.given + first.weight @ gradients
        if not self.adaptive:
            return m, jnp.ones_like(x), gradients
        return m, jnp.sqrt(second.given + second.weight @ gradients**2 + self.eps), gradients

    def field(self, n: Array, x: Vector, first: Memory, second: Memory) -> Vector:
        """θ̇ on [nh, (n+1)h), from scaled memories."""
        u, correction = self.terms(n, x, first, second)
        return -u - correction

    def terms(self, n: Array, x: Vector, first: Memory, second: Memory) -> tuple[Vector, Vector]:
        """u_n and −h f¹_n."""
        m, r, gradients = self.heading(x, first, second)
        u = m / r
        if not self.corrected:
            return u, jnp.zeros_like(u)
        # With one loss the inner sums are (n−k)u, at the present u: no past u_l enters, and the sum is c_β(n), c_ρ(n)
        # times u.
        if self.closed:
            lag_m, lag_v = mean_lag(self.b1, n) * u[None], mean_lag(self.b2, n) * u[None]
        else:
            lag_m, lag_v = first.lag, second.lag

        def direction(y: Vector) -> Vector:
            mean, root, _ = self.heading(y, first, second)
            return mean / root

        # M'_n and P_n.
        m_change = jnp.sum(self.losses.products(x, lag_m), axis=0)
        # ∂u_n[u_n], with the weights of this step held fixed: the flow bends within a step, the method does not.
        # Without the half the error is of order one in h.
        bend = jax.jvp(direction, (x,), (u,))[1]
        if not self.adaptive:
            return u, self.h * (m_change + 0.5 * bend)
        v_change = jnp.sum(gradients * self.losses.products(x, lag_v), axis=0)
        # ∂(1/R) = −P/R³ as R² = Σ b g² + ε. With the bracket slopes of the error are 1.91 to 2.02, without it .96 to
        # 1.00.
        return u, self.h * (m_change / r - m * v_change / r**3 + 0.5 * bend)

    def expansion(self, n: Array, x: Vector, first: Memory, second: Memory) -> Array:
        """|h f¹_n|/|f_n|, the first correction against what it corrects; 0 at rest."""
        u, correction = (jnp.linalg.norm(part) for part in self.terms(n, x, first, second))
        return jnp.where(u > 0, correction / jnp.where(u > 0, u, 1), 0)


def mean_lag(b: Any, n: Any) -> Array:
    """c_b(n) = Σ_{k≤n} (n−k) b^{n−k}(1−b)/(1−b^{n+1}) = b/(1−b) − (n+1)b^{n+1}/(1−b^{n+1}), the mean age of a gradient.

    Example:
        >>> float(mean_lag(0.5, 1))  # ages 0 and 1 with weights 2/3 and 1/3
        0.3333333333333333
    """
    # The transient counts: with the limit b/(1−b) from the first step on the order is lost.
    b, k = jnp.asarray(b), n + 1
    return b / (1 - b) - k * b**k / (1 - b**k)


class Followed(NamedTuple):
    """A flow at its saved times, T of them."""

    xs: Float[Array, "1 T p"]
    vs: Float[Array, "1 T p"]  # R_n² − ε
    losses: Float[Array, " T"]  # the mean loss
    good: Bool[Array, " T"]  # whether the solver got so far
    defined: Bool[Array, ""]  # whether the loss is, a memory of the method beyond where the solver failed
    expansion: Float[Array, " T"]  # the largest |h f¹|/|f| since the time before
    tries: Array  # steps of the solver


@compiled
def follow(
    model: BackwardFlow, x0: Vector, moments: tuple[Vector, Vector], visits: Int[Array, " n"], steps: Int[Array, " T1"]
) -> Followed:
    """The flow from step number steps[0], before which the method had the `moments` m and v, at steps[1:]."""
    count, begin, size = model.losses.count, steps[0], extent(x0, jnp.inf)

    def memories(n: Array, state: Any) -> tuple[Memory, Memory]:
        """With the weights that step n has."""
        _, first, second, u, *_ = state
        batch = visits[(n - begin) % visits.size]
        return first.next(model.b1, u, batch), second.next(model.b2, u, batch)

    def piece(n: Array, state: Any) -> Any:
        x, _, _, _, good, tries, defined, worst = state
        first, second = memories(n, state)
        scaled = model.scaled(model.b1, first), model.scaled(model.b2, second)
        m, r, _ = model.heading(x, *scaled)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: model.field(n, y, *args)),
            # A solve for each step of the optimizer, as the field jumps with n at every nh.
            dfx.Tsit5(),
            jnp.zeros_like(model.h),
            model.h,
            model.h,
            x,
            args=scaled,
            stepsize_controller=dfx.PIDController(rtol=model.rtol, atol=model.rtol * size),
            saveat=dfx.SaveAt(t1=True),
            adjoint=dfx.ForwardMode(),
            max_steps=MAX_STEPS,
            throw=False,
        )
        assert solution.ys is not None
        good, tries = good & (solution.result == dfx.RESULTS.successful), tries + solution.stats["num_steps"]
        # A domain that ends within the memory of the method, over which the expansion looks, is stiff to the solver.
        memory = 1 + mean_lag(model.b1, n) + mean_lag(model.b2, n)
        defined = defined & (good | model.losses.defined(x - model.h * memory * m / r))
        worst = jnp.maximum(worst, model.expansion(n, x, *scaled))
        return solution.ys[0], first, second, m / r, good, tries, defined, worst

    def step(n: Array, state: Any) -> Any:
        # A path that failed is carried along as it is: an adaptive solver would spend MAX_STEPS on every step that is
        # left.
        return jax.lax.cond(state[4] & jnp.all(jnp.isfinite(state[0])), lambda s: piece(n, s), lambda s: s, state)

    def to_next_save(state: Any, bounds: tuple[Array, Array]) -> tuple[Any, Any]:
        start, stop = bounds
        state = jax.lax.fori_loop(start, stop, step, state)
        first, second = memories(stop, state)
        # R_n² − ε of the step that starts here.
        _, r, _ = model.heading(state[0], model.scaled(model.b1, first), model.scaled(model.b2, second))
        saved = state[0], r**2 - model.eps, model.losses.mean_at(state[0]), state[4], state[-1]
        return (*state[:-1], jnp.zeros_like(model.h)), saved

    past = (Memory.of(count, b, moment, begin) for b, moment in zip((model.b1, model.b2), moments, strict=True))
    yes, no_steps = jnp.asarray(True), jnp.asarray(0)
    state0 = (x0, *past, jnp.zeros_like(x0), yes, no_steps, yes, jnp.zeros_like(model.h))
    state, (xs, vs, losses, good, worst) = jax.lax.scan(to_next_save, state0, (steps[:-1], steps[1:]))
    return Followed(xs[None], vs[None], losses, good, state[6], worst, state[5])

"""The backward-error ODE of Adam and RMSProp: the flow that their iterates follow to O(h²) over O(1/h) steps.

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

(Cattaneo, Klusowski and Shigida, On the Implicit Bias of Adam, 2024; RMSProp is β = 0.)
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

import manifolds as mf
from manifolds.coordinates import Coordinates, check_parameters, ravel
from manifolds.precision import cast, is_traced, to_numpy, working_precision

from . import checks
from .clocks import ODE, check_lr
from .metrics import as_metrics, check_metrics, evaluate
from .optimizers import AGM, square
from .problems import AbstractProblem, Problem
from .slow_sde import SlowSDE
from .trajectory import Result, Trajectory, finish

METHODS = ("adam", "rmsprop")
MAX_STEPS = 1000  # of the solver, within one step of the optimizer

Vector = Float[Array, " p"]


class _RootMetric(eqx.Module):
    eps: Any

    def __call__(self, v: PyTree) -> mf.Diagonal:
        return mf.Diagonal(jax.tree.map(lambda leaf: 1 / jnp.sqrt(leaf + self.eps), v))


def adam_eps_inside(c: Any, b1: float = 0.9, eps: float = 1e-8, bias_correction: bool = True) -> AGM:
    """Adam with ε inside the root, S = Diag(1/√(v+ε)): the method that `backward_error` describes. RMSProp for b1 = 0.

    Example:
        >>> still = Problem(loss, GaussianNoise(0.0))  # full batch
        >>> optimizer = adam_eps_inside(slow_rate(lr=0.01, b2=0.95), eps=1e-2)
        >>> run_discrete(still, optimizer, params0, slow_time(100, 0.01), lr=0.01, paths=1, project=False)
    """
    if not is_traced(eps) and not float(eps) >= 0:
        raise ValueError(f"eps={eps} must not be negative.")
    return AGM(
        square, _RootMetric(eps if is_traced(eps) else np.asarray(eps, float)), c, b1, bias_correction=bias_correction
    )


def backward_error(
    loss: Any,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    method: str = "adam",
    corrected: bool = True,
    bias_correction: bool = True,
    batches: int | None = None,
    order: Any = None,
    save_at: Any = 101,
    metrics: Any = (),
    rtol: float = 1e-10,
    dtype: Any = "float64",
    throw: bool = True,
) -> Trajectory:
    """The flow that Adam or RMSProp without gradient noise follows to O(η²) over O(1/η) steps, in time t = kη.

        θ̇_j = −(1/r_j){ ∂_jE + η [(c_β+½) − (c_ρ+½)(1−ε/r_j²)] ∂_j‖∇E‖_{1,ε} },    r_j² = (∂_jE)² + ε,
        c_b(n) = b/(1−b) − (n+1)b^{n+1}/(1−b^{n+1})  on [nη, (n+1)η),    ‖g‖_{1,ε} = Σ_i √(g_i²+ε)

    (Cattaneo, Klusowski and Shigida 2024), with β = `b1`, ρ = `b2`. It is accurate where ∇E hardly changes within
    the memory of the method, 1/(1−ρ) steps, η|∇²E u|/(1−ρ) ≪ r: a small `eps` fails near a minimum.

    For mini-batches the sums over past steps are those of the module's heading, exactly so in M and R; within f¹ the
    past u_l are taken where the flow was at step l, which makes them recursive and changes θ by O(η²) only.

    Args:
        loss: function of params, or a `Problem`, for the full batch. For mini-batches a sequence of such functions, or
            loss(params, i) with i < `batches`.
        params0: the start, where the optimizer starts.
        t1: time kη, rounded to whole steps.
        lr: η, the step size h of the paper.
        b1, b2, eps: β, ρ and ε (inside the root, see `adam_eps_inside`).
        method: "adam", or "rmsprop", which has no momentum: `b1` is not used.
        corrected: False leaves out the term in η: θ̇ = −M_n/R_n, accurate to O(η).
        bias_correction: as Adam has it. False for m and v that start at zero and are used as they are, as in the usual
            RMSProp: weights a_nk = β^{n−k}(1−β).
        batches: their number, if `loss` takes the batch as its second argument.
        order: the batch of every step, (n,) with n at least their number; None for 0, 1, 2, ... in turn.
        save_at: a number of equally spaced times, or the times, rounded to whole steps.
        metrics: as in `simulate`, of the mean loss over the batches.
        rtol: tolerance of the ODE solver in one step of the optimizer, relative to each parameter and to 1.
        dtype, throw: as in `simulate`.

    Returns: `Trajectory` with one path, leaves (1, T, ...), on the clock t = kη (`stats["clock"]` "k·lr", see
        `on_slow_clock`); v is R_n² − ε, the squares that the step from there divides by, to leading order. `stats`
        holds lr, num_steps, solver_steps, batches and seconds.
    Raises: ValueError on bad input; `RunError` with the time at which the flow became too stiff or not finite.

    Example:
        >>> ode = backward_error(lambda w: 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2, w0, 4.0, lr=0.01, b2=0.95, eps=1e-2)
        >>> ode.final_params.shape
        (1, 2)
    """
    started = time.perf_counter()
    checks.check_concrete("backward_error", loss, params0, t1, lr, b1, b2, eps)
    lr = check_lr(lr)
    b1 = _check_numbers(method, b1, b2, eps)
    steps = _saved_steps(save_at, t1, lr)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        params0 = cast(params0, precision)
        chart, x0 = Coordinates.of(params0), ravel(params0)
        losses = _Losses.of(loss, batches, chart)
        visits = _visits(order, losses.count, int(steps[-1]))
        optimizer = adam_eps_inside((1 - b2) / lr**2, b1, eps, bias_correction)
        problem = Problem(losses.mean)
        sde = SlowSDE(problem, optimizer, problem.flat_loss(chart))
        losses.check(x0)
        check_metrics(named, sde, x0, optimizer.V(chart.unravel_arrays(x0)))
        model = _Model(
            losses,
            *(jnp.asarray(number, precision) for number in (lr, b1, b2, eps, max(rtol, 4 * jnp.finfo(precision).eps))),
            corrected=bool(corrected),
            normalized=bool(bias_correction),
        )
        xs, vs, good, tries = _run(model, x0, jnp.asarray(visits), jnp.asarray(steps))
        vs = chart.unravel_arrays(vs)
        found = evaluate(named, sde, xs, vs)
        xs, vs, found, good, tries = to_numpy((xs, vs, found, good, tries))
    finite = np.all(np.isfinite(xs))
    codes = Result.SUCCESS if good.all() and finite else Result.MAX_STEPS if not good.all() else Result.NON_FINITE
    reached = good & np.isfinite(xs[0]).all(axis=1)
    ts = steps * lr
    trajectory = Trajectory(
        ts=ts,
        params=chart.unravel(np.where(reached[:, None], xs, np.nan)),
        v=vs,
        metrics={name: np.where(reached, found[name], np.nan) for name in named},
        stats={
            "clock": ODE,
            "lr": lr,
            "num_steps": int(steps[-1]),
            "solver_steps": int(tries),
            "batches": losses.count,
            "seconds": time.perf_counter() - started,
        },
        result=np.array([codes]),
        label="backward error",
    )
    return finish(trajectory, ts[[np.argmin(reached)]], throw)


def _check_numbers(method: str, b1: float, b2: float, eps: float) -> float:
    """β, which is 0 for RMSProp; ValueError for numbers that make no method."""
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not one of {METHODS}.")
    for name, value in (("b1", b1), ("b2", b2)):
        if not (checks.is_finite(value) and 0 <= value < 1):
            raise ValueError(f"{name}={value!r} must lie in [0, 1).")
    if not (checks.is_finite(eps) and eps > 0):
        raise ValueError(f"eps={eps!r} must be positive: the flow divides by √((∂E)² + eps).")
    return float(b1) if method == "adam" else 0.0


def _saved_steps(save_at: Any, t1: float, lr: float) -> np.ndarray:
    """The step numbers of the saved times, strictly increasing."""
    times = checks.save_times(save_at, 0.0, t1)
    steps = np.unique(np.rint(times / lr).astype(int))
    if steps[-1] == 0:
        raise ValueError(f"t1={t1} is less than one step of lr={lr}. Time here is t = k·lr, not k·lr².")
    if np.ndim(save_at) > 0 and steps.size < times.size:
        raise ValueError(f"save_at asks for {times.size} times, but there are fewer than that many steps of lr={lr}.")
    return steps


def _visits(order: Any, count: int, steps: int) -> np.ndarray:
    """The batch of every step, or a cycle of them: step n visits the entry n modulo their number."""
    if order is None:
        return np.arange(count)
    visits = np.asarray(order)
    if visits.ndim != 1 or visits.dtype.kind not in "iu" or visits.size < steps:
        raise ValueError(
            f"order has shape {visits.shape} and dtype {visits.dtype}; it must be a batch number for each of the "
            f"{steps} steps, or None for all batches in turn."
        )
    if not (np.all(visits >= 0) and np.all(visits < count)):
        raise ValueError(
            f"order has batch numbers from {visits.min()} to {visits.max()}, but there are {count} batches."
        )
    return visits


class _Losses(eqx.Module):
    """The K batch losses on flat coordinates: a tuple of functions, or one function of (params, batch number)."""

    functions: tuple[Callable[..., Any], ...] | Callable[..., Any]
    count: int = eqx.field(static=True)
    chart: Coordinates = eqx.field(static=True)

    @classmethod
    def of(cls, loss: Any, batches: int | None, chart: Coordinates) -> "_Losses":
        if isinstance(loss, Sequence) and not isinstance(loss, str):
            if batches is not None and batches != len(loss):
                raise ValueError(f"batches={batches}, but loss is a sequence of {len(loss)}: leave batches=None.")
            functions = tuple(_function(one) for one in loss)
            if not functions:
                raise ValueError("loss is an empty sequence: give one function for each batch.")
            return cls(functions, len(functions), chart)
        if batches is None:
            return cls((_function(loss),), 1, chart)
        if not isinstance(batches, (int, np.integer)) or isinstance(batches, bool) or batches < 1:
            raise ValueError(f"batches={batches!r} must be a positive integer.")
        return cls(_function(loss), int(batches), chart)

    def each(self, operate: Callable[..., Array], *arrays: Float[Array, "K p"]) -> Array:
        """operate(E_b, arrays[b]...) of every batch, stacked: E_b is a function of x."""
        if isinstance(self.functions, tuple):
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
        return self.each(lambda loss, row: jax.jvp(jax.grad(loss), (x,), (row,))[1], w)

    def mean(self, params: PyTree) -> Array:
        """The mean loss, of params as they are."""
        x = ravel(params)
        return jnp.mean(self.each(lambda loss: loss(x)))

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


class _Memory(eqx.Module):
    """What a step knows of the past, for weights β^{n−k}: of batch b the sums over the steps k ≤ n that visited it."""

    weight: Float[Array, " K"]  # Σ_k β^{n−k}
    lag: Float[Array, "K p"]  # Σ_k β^{n−k} Σ_{l=k}^{n−1} u_l

    def next(self, b: Any, u: Vector, batch: Array) -> "_Memory":
        """The sums one step later, after a step −h u, when `batch` is visited."""
        visited = jax.nn.one_hot(batch, self.weight.shape[0], dtype=u.dtype)
        return _Memory(b * self.weight + visited, b * (self.lag + self.weight[:, None] * u))


class _Model(eqx.Module):
    """The field f_n + h f¹_n."""

    losses: _Losses
    h: Array
    b1: Array
    b2: Array
    eps: Array
    rtol: Array
    corrected: bool = eqx.field(static=True)
    normalized: bool = eqx.field(static=True)

    @property
    def closed(self) -> bool:
        """Whether the sums over the past are those of the full batch, in closed form."""
        return self.losses.count == 1 and self.normalized

    def scaled(self, b: Array, memory: _Memory) -> _Memory:
        """The memory with the weights (1−b)b^{n−k}/(1−b^{n+1}), or (1−b)b^{n−k}."""
        scale = 1 / jnp.sum(memory.weight) if self.normalized else 1 - b
        return _Memory(scale * memory.weight, scale * memory.lag)

    def heading(self, x: Vector, a: Float[Array, " K"], b: Float[Array, " K"]) -> tuple[Vector, Vector, Array]:
        """M, R and the gradients (K, p)."""
        gradients = self.losses.gradients(x)
        return a @ gradients, jnp.sqrt(b @ gradients**2 + self.eps), gradients

    def field(self, n: Array, x: Vector, first: _Memory, second: _Memory) -> Vector:
        """θ̇ on [nh, (n+1)h), from scaled memories."""
        m, r, gradients = self.heading(x, first.weight, second.weight)
        u = m / r
        if not self.corrected:
            return -u
        if self.closed:
            lag_m, lag_v = mean_lag(self.b1, n) * u[None], mean_lag(self.b2, n) * u[None]
        else:
            lag_m, lag_v = first.lag, second.lag

        def direction(y: Vector) -> Vector:
            mean, root, _ = self.heading(y, first.weight, second.weight)
            return mean / root

        m_change = jnp.sum(self.losses.products(x, lag_m), axis=0)
        v_change = jnp.sum(gradients * self.losses.products(x, lag_v), axis=0)
        bend = jax.jvp(direction, (x,), (u,))[1]
        return -u - self.h * (m_change / r - m * v_change / r**3 + 0.5 * bend)


def mean_lag(b: Any, n: Any) -> Array:
    """c_b(n) = Σ_{k≤n} (n−k) b^{n−k}(1−b)/(1−b^{n+1}) = b/(1−b) − (n+1)b^{n+1}/(1−b^{n+1}), the mean age of a gradient.

    Example:
        >>> float(mean_lag(0.5, 1))  # ages 0 and 1 with weights 2/3 and 1/3
        0.3333333333333333
    """
    b, k = jnp.asarray(b), n + 1
    return b / (1 - b) - k * b**k / (1 - b**k)


@eqx.filter_jit
def _run(
    model: _Model, x0: Vector, visits: Int[Array, " n"], steps: Int[Array, " T"]
) -> tuple[Float[Array, "1 T p"], Float[Array, "1 T p"], Bool[Array, " T"], Array]:
    """The flow after `steps` steps, v there, whether the solver got so far, and its number of steps."""
    count = model.losses.count
    none = _Memory(jnp.zeros(count, x0.dtype), jnp.zeros((count, x0.size), x0.dtype))

    def memories(n: Array, state: Any) -> tuple[_Memory, _Memory]:
        """With the weights that step n has."""
        _, first, second, u, *_ = state
        batch = visits[n % visits.size]
        return first.next(model.b1, u, batch), second.next(model.b2, u, batch)

    def piece(n: Array, state: Any) -> Any:
        x, _, _, _, good, tries = state
        first, second = memories(n, state)
        scaled = model.scaled(model.b1, first), model.scaled(model.b2, second)
        m, r, _ = model.heading(x, scaled[0].weight, scaled[1].weight)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: model.field(n, y, *args)),
            dfx.Tsit5(),
            jnp.zeros_like(model.h),
            model.h,
            model.h,
            x,
            args=scaled,
            stepsize_controller=dfx.PIDController(rtol=model.rtol, atol=model.rtol),
            saveat=dfx.SaveAt(t1=True),
            adjoint=dfx.ForwardMode(),
            max_steps=MAX_STEPS,
            throw=False,
        )
        assert solution.ys is not None
        good = good & (solution.result == dfx.RESULTS.successful)
        return solution.ys[0], first, second, m / r, good, tries + solution.stats["num_steps"]

    def step(n: Array, state: Any) -> Any:
        return jax.lax.cond(state[4] & jnp.all(jnp.isfinite(state[0])), lambda s: piece(n, s), lambda s: s, state)

    def to_next_save(state: Any, bounds: tuple[Array, Array]) -> tuple[Any, Any]:
        start, stop = bounds
        state = jax.lax.fori_loop(start, stop, step, state)
        _, second = memories(stop, state)
        weights = model.scaled(model.b2, second).weight
        _, r, _ = model.heading(state[0], weights, weights)
        return state, (state[0], r**2 - model.eps, state[4])

    bounds = jnp.concatenate([jnp.zeros(1, steps.dtype), steps])
    state0 = (x0, none, none, jnp.zeros_like(x0), jnp.asarray(True), jnp.asarray(0))
    state, (xs, vs, good) = jax.lax.scan(to_next_save, state0, (bounds[:-1], bounds[1:]))
    return xs[None], vs[None], good, state[5]

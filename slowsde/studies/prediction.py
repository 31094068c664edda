"""What an optimizer does at a learning rate, without running it there: between the slow SDE and runs at larger rates.

A mean over discrete runs is smooth in η, and the slow SDE is its value at η = 0, so that runs at a few larger rates, of
cost 1/η² each, determine it at the rate asked for: an interpolation, with the errors of `interpolation`.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from manifolds.support.coordinates import Coordinates, check_parameters
from manifolds.support.user_functions import shown

from ..dynamics.result import Result
from ..dynamics.slow_sde import slow_sde
from ..metrics.named import as_metrics
from ..optimizers.agm import AGM
from ..plot.cards import card, in_columns
from ..plot.predictions import plot_prediction
from ..problems.abstract import AbstractProblem
from ..problems.accumulated import accumulated
from ..problems.route import Route
from ..runs.discrete import gradients_per_step, run_discrete
from ..runs.request import number_of_starts
from ..runs.simulate import simulate
from ..runs.stacked import start_of
from ..runs.steps import is_transformation
from ..runs.trajectory import RunError, Trajectory
from ..support import arguments
from ..support.clocks import steps_in
from ..support.effort import MOST_STEPS
from ..support.files import is_array
from ..support.pieces import EVERY, as_checkpoint
from .interpolation import interpolated_moments
from .rates import Rates, Setting, chosen_rates, doubts, given_rates, impossible

LOST = 0.05  # the share of paths that may fail: a mean over those that are left is one of another ensemble
TOUCHING = 1e-9  # times as near as this, in lengths of the run, are one
FEW_SLOW = 8  # slow paths that judge rates
SHOWN = 8  # numbers of starts in a note
HEADER = ("observable", "t", "slow", "predicted", "s.e.", "model error", "spread")
WIDTHS = (8, 13, 13, 11, 13, 11)  # of its columns behind the first
SLOW_PATHS = 16  # slow paths for each discrete one, where they diffuse: they are the cheaper ones


@dataclass(frozen=True, repr=False)
class Prediction:
    """Means over discrete runs at the learning rate `lr`, predicted; every dict is by observable, (T,) over slow time.

    Attributes:
        ts: (T,) slow times kη², whole steps of lr.
        lr: the learning rate η.
        mean: the predicted mean over runs.
        standard_error: of it, by the paths of the runs (and of the slow SDE, where that diffuses).
        model_error: of it, by the powers of η that so few rates do not determine; a standard deviation as well.
        spread: standard deviation of a single run, interpolated likewise.
        slow: the slow SDE, the anchor at η = 0, at all times that were needed.
        slow_mean: the slow SDE's mean at `ts`.
        runs: the discrete runs, one trajectory a rate.
        rates: (J,) their learning rates, increasing.
        weights: name -> (T, J) of the gaps of the runs in the prediction.
        paths: of each run.
        notes: in words: why these rates, and what was left out.
        by_start: name -> (starts, T) of many starts (stacked=True): what is predicted from each by its own runs, one at
            a rate, of which `mean` is the mean; NaN of those that are left out. Empty otherwise.
    """

    ts: np.ndarray
    lr: float
    mean: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    model_error: dict[str, np.ndarray]
    spread: dict[str, np.ndarray]
    slow: Trajectory
    slow_mean: dict[str, np.ndarray]
    runs: tuple[Trajectory, ...]
    rates: np.ndarray
    weights: dict[str, np.ndarray]
    paths: int
    notes: tuple[str, ...]
    by_start: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def error(self) -> dict[str, np.ndarray]:
        """name -> (T,) both errors together, in quadrature."""
        return {name: np.hypot(error, self.model_error[name]) for name, error in self.standard_error.items()}

    @property
    def cost(self) -> float:
        """Steps of all runs, as a share of those of as many runs at lr."""
        return float(np.sum((self.lr / self.rates) ** 2))

    def as_trajectory(self) -> Trajectory:
        """The predicted means as one path (or those of each start), without points, for what takes a `Trajectory`."""
        kept = ("digest", "b1", "c", *(("messages",) if self.by_start else ()))
        stats = {key: self.slow.stats[key] for key in kept if key in self.slow.stats}
        metrics = self.by_start or {name: mean[None] for name, mean in self.mean.items()}
        paths = self.paths if self.by_start else 1
        return Trajectory(self.ts, None, None, metrics, stats | {"lr": self.lr}, np.zeros(paths, int), "predicted")

    def worth(self, name: str) -> float:
        """How many runs at lr would have as small an error (median over time); inf where the prediction has none."""
        error, spread = self.error[name], self.spread[name]
        moved = np.isfinite(error) & (spread > 0)
        with np.errstate(divide="ignore"):
            return float(np.median((spread[moved] / error[moved]) ** 2)) if moved.any() else np.inf

    def table(self) -> str:
        """Start, middle and end of every observable: slow SDE, prediction, both errors, spread; rates and costs."""
        lines = [self._title, in_columns(HEADER, WIDTHS)]
        for name in self.mean:
            for row in self._rows():
                lines.append(in_columns([name if row == 0 else "", *self._cells(name, row)], WIDTHS))
            lines.append(f"  -> as good as {self.worth(name):.3g} runs at lr={self.lr:g}")
        return "\n".join([*lines, self._price, *self.notes])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        ends = "".join(f", {name} {mean[-1]:.6g} ± {self.error[name][-1]:.2g}" for name, mean in self.mean.items())
        return f"<Prediction at lr={self.lr:g} from lr={_joined(self.rates.tolist())}, at t={self.ts[-1]:g}{ends}>"

    def _repr_html_(self) -> str:
        rows = [[name if row == 0 else "", *self._cells(name, row)] for name in self.mean for row in self._rows()]
        notes = [f"{name}: as good as {self.worth(name):.3g} runs at lr={self.lr:g}" for name in self.mean]
        return card(self._title, HEADER, rows, notes=[*notes, self._price, *self.notes], draw=self._figure)

    def _figure(self, ax: Any) -> None:
        self.plot(ax).legend(fontsize="small", frameon=False)

    @property
    def _title(self) -> str:
        rates = _joined(self.rates.tolist())
        runs = f"runs from {self.paths} starts" if self.by_start else f"{self.paths} runs each"
        return f"predicted at lr={self.lr:g} from the slow SDE and {runs} at lr={rates}"

    @property
    def _price(self) -> str:
        return f"cost: {self.cost:.2g} of {self.paths} runs at lr={self.lr:g}"

    def plot(self, ax: Any = None, *, name: str | None = None, **kw: Any) -> Any:
        """The prediction with a band of ± 2 errors, the slow limit and the runs; of `name`, by default the first."""
        return plot_prediction(self, ax=ax, name=name, **kw)

    def _rows(self) -> list[int]:
        return sorted({0, self.ts.size // 2, self.ts.size - 1})

    def _cells(self, name: str, row: int) -> list[str]:
        means = (each[name][row] for each in (self.slow_mean, self.mean))
        errors = (each[name][row] for each in (self.standard_error, self.model_error, self.spread))
        return [f"{self.ts[row]:.3g}", *(f"{mean:.6g}" for mean in means), *(f"{error:.2g}" for error in errors)]


def predict(
    problem: AbstractProblem,
    optimizer: Any,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    rates: Sequence[float] | None = None,
    paths: int = 64,
    v0: PyTree = None,
    key: PRNGKeyArray | None = None,
    save_at: Any = 21,
    metrics: Any = ("trace_hessian",),
    like: AGM | None = None,
    t0: float = 0.0,
    slow_paths: int | None = None,
    project: bool = True,
    solver: str = "auto",
    dt: float | None = None,
    rtol: float = 1e-6,
    route: str | Route = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    progress: bool | None = None,
    max_steps: int = MOST_STEPS,
    memory: float | None = None,
    checkpoint: Any = None,
    checkpoint_every: float = EVERY,
    stacked: bool = False,
) -> Prediction:
    """Means over runs of an optimizer at learning rate η = lr, without running it there.

        E f(θ_k) ≈ f(ζ(t − τ(η))) + Σ_j w_j D(η_j),     D(η) = E f(θ_k) − f(ζ(t − τ(η))) = aη + bη² + …,     t = kη²

    interpolates in η between the slow SDE, exact at η = 0, and runs at rates η_j > η, which cost (η/η_j)² each. The
    weights are those of least squares: exact for the linear term, and best for noise and the higher terms together.
    Where nothing diffuses the slow curve is delayed by what start-up takes, τ(η) = 2β1η²/(1−β1) + η Σ w_i/(2λ_i) (m = 0
    and no fluctuations about Γ at first), as that bends D most; with bias correction without the first term.

    The optimizer is the same at all rates in that its c is, β2 = 1 − cη²: hence one slow SDE. An Optax transformation
    is given as a function of the rate, `lambda lr: optax.adam(lr, b2=1 - c * lr**2)`, with `like`, the AGM in the
    limit.

    With `rates=None` they are 2, 4 and 8 times lr, as far as `validity` does not say "not valid" (there D was measured
    to be no short series), β2 ≥ 0, there are as many steps as saved times and no more than 5 % of the paths fail; 6
    times lr where 8 is too much, 3 times where 4 is. Twice lr, the dearest, is run only if two others leave a model
    error that exceeds the standard error. `notes` tells what was chosen and why.

    Args:
        problem, params0, t1, v0, key, t0, solver, dt, rtol, route, rank, dtype, progress, memory: as in `simulate`. v0
            is not for Optax, which starts from a fresh state.
        optimizer: an `AGM`, or a function from a learning rate to an `optax.GradientTransformation`.
        lr: the learning rate η.
        rates: learning rates above lr, to be run; None to choose them.
        paths: runs at every rate, at least 2.
        save_at: a number of equally spaced times, or the times; rounded to whole steps.
        metrics: names from `slowsde.metrics`, `Metric` objects, or {name: fn(params) -> scalar}; smooth.
        like: with Optax, the AGM that describes it.
        slow_paths: paths of a slow SDE that diffuses; None for 16 times `paths`.
        project, max_steps: as in `run_discrete`.
        checkpoint, checkpoint_every: as in `simulate`; each run has a file of its own, whose name begins with this one.
        stacked: the leaves of params0 have a leading axis of starts, two at least, and path i of the runs at every rate
            is from start i, in place of `paths`. Predicted is the mean over *these* starts: gaps are taken start by
            start, so that the spread of the starts is in no error, nor in `spread`, that of a run about the mean of its
            start (the variation of the gap from start to start is in both). `by_start` has the starts one by one. One
            that fails at some rate is left out of all means; the delay is the mean one; where the SDE diffuses, every
            start has as many slow paths. Repeat starts for smaller errors.

    Returns: `Prediction`; `compare(prediction, fast)` holds it against runs at lr.
    Raises: ValueError on bad input, before any run, and where no rate from 2·lr on is admissible, with the lr that is;
        `RunError` if a run fails.

    Example:
        >>> found = predict(problem, adam(c=2.0), params0, t1=0.5, lr=0.01, metrics="trace_hessian")
        >>> print(found.table())
    """
    arguments.check_concrete("predict", problem, params0, v0, like, lr, t1)
    lr, named = arguments.check_lr(lr), as_metrics(metrics)
    if not named:
        raise ValueError(f"metrics={metrics!r} is empty: name at least one, such as 'trace_hessian'.")
    if arguments.flag("stacked", stacked):
        paths = number_of_starts(params0)
        if paths < 2:
            raise ValueError("stacked=True: params0 has 1 start, and needs 2 at least: one run has no standard error.")
    if arguments.positive_integer("paths", paths) < 2:
        raise ValueError(f"paths={paths} must be at least 2: a single run has no standard error.")
    agm, at_rate = _as_function(optimizer, like, v0, lr)
    times = arguments.save_times(save_at, t0, t1)
    given = None if rates is None else given_rates(rates, lr, agm, times, t0)
    hindrance = impossible(lr, agm, times, t0)
    if hindrance:
        raise ValueError(f"lr={lr:g} cannot be run: {hindrance}. Save fewer times, or lower lr.")
    one = start_of(params0, 0) if stacked else params0
    check_parameters(one)
    diffuses = slow_sde(problem, agm, Coordinates.of(one), route).diffuses
    base = arguments.check_key(key)
    shared: dict[str, Any] = {"t0": t0, "v0": v0, "metrics": named, "route": route, "rank": rank, "dtype": dtype}
    shared |= {"progress": progress, "memory": memory, "checkpoint_every": checkpoint_every}
    as_checkpoint(checkpoint, checkpoint_every)
    slowly = {"key": jr.fold_in(base, 0), "solver": solver, "dt": dt, "rtol": rtol}
    fastly = {"like": like, "project": project, "max_steps": max_steps, "paths": int(paths), "throw": False}
    every = gradients_per_step(at_rate(lr), one, like, int(steps_in(times, lr)[-1]), dtype)
    limit = accumulated(problem, every) if every > 1 else problem
    many = SLOW_PATHS * paths if slow_paths is None else arguments.positive_integer("slow_paths", slow_paths)
    how = {"slowly": shared | slowly, "fastly": shared | fastly, "checkpoint": checkpoint, "stacked": stacked}
    ask = Runs((limit, agm, params0), problem, at_rate, times, base, copies=many if diffuses else 1, **how)
    if stacked:
        ask = ask.of_each_start(int(paths))
    first = ask.slow(times, FEW_SLOW if diffuses and not stacked else 1, "slow")
    setting = Setting(limit, agm, first, times, t0, route)
    admitted = chosen_rates(lr, setting) if given is None else doubts(given, setting)
    return _by_stages(ask, admitted, lr, _delay(first, agm, diffuses))


class Runs(NamedTuple):
    """The runs of one prediction: how each is asked for."""

    of: tuple[AbstractProblem, AGM, PyTree]
    drawn: AbstractProblem  # with the noise of one gradient, where a step averages several
    at_rate: Callable[[float], Any]
    times: np.ndarray
    key: PRNGKeyArray
    slowly: dict[str, Any]
    fastly: dict[str, Any]
    copies: int  # slow paths, of each start where there are many
    checkpoint: Any  # how names of files begin; None for none
    stacked: bool

    def of_each_start(self, starts: int) -> "Runs":
        """With the slow paths shared out: one of each start, or two at least where they diffuse, for their noise."""
        return self._replace(copies=1 if self.copies == 1 else max(2, -(-self.copies // starts)))

    def file(self, name: str) -> Any:
        """The checkpoint of one of the runs."""
        return None if self.checkpoint is None else f"{os.fspath(self.checkpoint)}.{name}"

    def at(self, rate: float) -> np.ndarray:
        """The times nearest to `times` at which a run at `rate` has made a whole number of steps, or starts."""
        return np.maximum(steps_in(self.times, rate) * rate**2, self.slowly["t0"])

    def slow(self, at: np.ndarray, copies: int, name: str) -> Trajectory:
        """The slow SDE at these times."""
        how = {"checkpoint": self.file(name), "stacked": self.stacked, **self.slowly}
        problem, optimizer, params0 = self.of
        if self.stacked:
            params0 = jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=0) if is_array(leaf) else leaf, params0)
        with _of_failed_starts(told=name != "slow"):
            return simulate(problem, optimizer, params0, float(at[-1]), save_at=at, paths=copies, **how)

    def discrete(self, rate: float) -> Trajectory:
        """Runs at a rate, saved at the whole steps nearest to `times`."""
        params0 = self.of[2]
        at = self.at(rate)
        # One key for all rates: runs of one number then correlate, which takes 5 to 35 % off the variance of weights of
        # alternating signs. (Antithetic noise would do harm: observables are even in it, with a correlation of 0.999.)
        key = jr.fold_in(self.key, 1)
        how = {"key": key, "checkpoint": self.file(f"lr-{rate:g}"), "stacked": self.stacked, **self.fastly}
        with _of_failed_starts(told=True):
            return run_discrete(self.drawn, self.at_rate(rate), params0, at[-1], lr=rate, save_at=at, **how)


@contextlib.contextmanager
def _of_failed_starts(told: bool) -> Iterator[None]:
    """Without the warning that some lead to no run, where an earlier run has told so."""
    with warnings.catch_warnings():
        if told:
            warnings.filterwarnings("ignore", ".* starts lead to no run", UserWarning)
        yield


Delay = Callable[[float, np.ndarray], np.ndarray]


def _delay(slow: Trajectory, optimizer: AGM, diffuses: bool) -> Delay:
    """(rate, times) ↦ by how much a run at this rate lags the slow flow then, as it started without m and fluctuations.

    The momentum delays each gradient by τ = β1/(1−β1) steps and the growth of the variance about Γ by as many, while
    that takes 1/(2ηλ) besides: ∫(1 − E x²(t)/E x²(∞)) dt of the linear motion about Γ.
    """
    if diffuses:  # what is carried along Γ by the noise itself has no such delay
        return lambda rate, times: np.zeros_like(times)
    relaxation = float(np.nanmean(slow.stats["mean_relaxation"][:, 0])) / float(slow.stats["pace"][0])
    b1, t0 = float(optimizer.b1), float(slow.ts[0])
    memory = 0.0 if optimizer.bias_correction else 2 * b1 / (1 - b1)

    def delay(rate: float, times: np.ndarray) -> np.ndarray:
        whole = memory * rate**2 + rate * relaxation / 2
        return -whole * np.expm1(-(times - t0) / whole)

    return delay


def _by_stages(ask: Runs, rates: Rates, lr: float, delay: Delay) -> Prediction:
    """Stage by stage, until what is left to be known of the series in η is less than the noise."""
    slow = ask.slow(_moments([(rate, ask.at(rate)) for rate in (lr, *rates.all)], delay), ask.copies, "anchor")
    runs, notes, found = [], list(rates.notes), None
    if ask.stacked and (lost := _lost_starts(slow, slow.paths // ask.copies)).any():
        which = ", ".join(map(str, np.flatnonzero(lost)[:SHOWN])) + (", ..." if lost.sum() > SHOWN else "")
        notes.append(f"left out {lost.sum()} of {lost.size} starts, from which the slow SDE fails: {which}")
    for stage in rates.stages:
        if found is not None and len(runs) > 1 and _suffices(found):
            notes.append(f"not run, as the model error is below the standard error without: lr={_joined(stage)}")
            break
        for run in (ask.discrete(rate) for rate in stage):
            note, usable = _losses(run, slow, rates.chosen)
            notes += [note] if note else []
            runs += [run] if usable else []
        found = _predicted(slow, runs, ask.at(lr), lr, delay, notes) if runs else None
    if found is None:
        raise RunError(f"No rate was left to predict lr={lr:g} from. {' '.join(notes)}", run)
    return dataclasses.replace(found, notes=tuple(notes))


def _suffices(found: Prediction) -> bool:
    """Whether for every observable the model error is less than the standard error, over all times."""
    return all(
        np.nansum(error**2) <= np.nansum(found.standard_error[name] ** 2) for name, error in found.model_error.items()
    )


def _joined(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _lost_starts(slow: Trajectory, starts: int) -> np.ndarray:
    """(starts,) from which some path of the slow SDE fails."""
    return (slow.result != Result.SUCCESS).reshape(starts, -1).any(axis=1)


def _losses(run: Trajectory, slow: Trajectory, optional: bool) -> tuple[str, bool]:
    """(what failed in a run at a larger rate, "" for nothing; whether its means can be used).

    `RunError` where they cannot and the rate is not optional. Starts from which the slow SDE fails are no matter of it.
    """
    failed = run.result != Result.SUCCESS
    if "messages" in run.stats:
        failed &= ~_lost_starts(slow, run.paths)
    if not failed.any():
        return "", True
    code = Result(int(run.result[np.argmax(failed)]))
    note = f"{failed.sum()} of {run.paths} paths failed at lr={run.stats['lr']:g} ({code.name})"
    if failed.mean() <= LOST:
        return f"{note}: its means are over those that are left", True
    if not optional:
        raise RunError(f"{note}: {code.explain('discrete')}. Leave that rate out of rates.", run)
    return f"left out: {note}", False


def _moments(runs: list[tuple[float, np.ndarray]], delay: Delay) -> np.ndarray:
    """All times at which the slow SDE is asked, delayed and not, increasing and distinct."""
    first = runs[0][1]
    wanted = np.concatenate([first, *(np.maximum(ts - delay(rate, ts), first[0]) for rate, ts in runs)])
    apart = TOUCHING * np.ptp(wanted)
    return np.sort(wanted)[np.append(True, np.diff(np.sort(wanted)) > apart)]


def _predicted(
    slow: Trajectory, runs: list[Trajectory], ts: np.ndarray, lr: float, delay: Delay, notes: list[str]
) -> Prediction:
    """The prediction from finished runs, in any order."""
    runs = sorted(runs, key=lambda run: run.stats["lr"])
    rates = np.array([run.stats["lr"] for run in runs])
    steps = [ts, *(np.maximum(run.ts, ts[0]) for run in runs)]
    stacked = "messages" in runs[0].stats
    starts = runs[0].paths if stacked else 1
    whens = [at - delay(rate, at) for rate, at in zip((lr, *rates), steps, strict=True)]
    means, spreads, anchors, by_start = {}, {}, {}, {}
    for name in slow.metrics:
        # (J+2, starts, copies, T): of the slow SDE when the run at lr and each other one are where it is, and undelayed
        # at lr.
        there = np.stack([_at(slow, name, when) for when in (*whens, ts)])
        there = there.reshape(len(there), starts, -1, ts.size)
        values = [run.metrics[name] for run in runs]
        good = _good_starts(there, values) if stacked else np.ones(1, bool)
        if stacked:
            there, values = there[:, good], [each[good] for each in values]
        anchors[name], delayed = there[-1].mean(axis=(0, 1)), (there[-1] - there[-2]).mean(axis=(0, 1))
        means[name], spreads[name] = interpolated_moments(rates, lr, there[:-1], values, delayed)
        if stacked:
            by_start[name] = _of_each(means[name].weights, there[:-1].mean(axis=2), values, good)
    return Prediction(
        ts=ts,
        lr=lr,
        mean={name: found.value for name, found in means.items()},
        standard_error={name: found.standard_error for name, found in means.items()},
        model_error={name: found.model_error for name, found in means.items()},
        spread=spreads,
        slow=slow,
        slow_mean=anchors,
        runs=tuple(runs),
        rates=rates,
        weights={name: found.weights for name, found in means.items()},
        paths=runs[0].paths,
        notes=tuple(notes),
        by_start=by_start,
    )


def _good_starts(there: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """(starts,) whose slow paths (J+2, starts, copies, T) and runs have a value wherever those of others have one."""
    lost = ~np.isfinite([*there.mean(axis=2), *values])
    return np.asarray(~(lost & ~lost.all(axis=1, keepdims=True)).any(axis=(0, 2)))


def _of_each(weights: np.ndarray, own: np.ndarray, values: list[np.ndarray], good: np.ndarray) -> np.ndarray:
    """(starts, T) what the runs of each start predict of it, `own` (J+1, starts, T) its slow curves; NaN but of good
    ones."""
    found = np.full((good.size, weights.shape[0]), np.nan)
    found[good] = own[0] + np.einsum("tj,jst->st", weights, np.stack(values) - own[1:])
    return found


def _at(slow: Trajectory, name: str, when: np.ndarray) -> np.ndarray:
    """(copies, T) an observable of the slow paths at times that were saved."""
    nearest = np.abs(slow.ts[:, None] - when).argmin(axis=0)
    return slow.metrics[name][:, nearest]


def _check_function(optimizer: Any, lr: float) -> None:
    """ValueError unless optimizer(lr) is an Optax transformation."""
    wrong = ValueError(
        f"optimizer={shown(optimizer)} must be an AGM, such as sgd() or adam(c=1.0), or a function from a learning "
        "rate to an optax.GradientTransformation."
    )
    try:
        made = optimizer(lr) if callable(optimizer) else None
    except Exception as error:
        wrong.add_note(f"optimizer({lr:g}) was called, which raised {type(error).__name__}: {error}")
        raise wrong from error
    if not is_transformation(made):
        raise wrong


def _as_function(optimizer: Any, like: Any, v0: Any, lr: float) -> tuple[AGM, Callable[[float], Any]]:
    """The AGM that is run or described, and the optimizer as a function of the rate; ValueError if it is neither."""
    if isinstance(optimizer, AGM):
        if like is not None:
            raise ValueError(f"like={shown(like)} is for Optax: leave it out where optimizer is an AGM itself.")
        if optimizer.quasi_static:
            raise ValueError("c=inf is a limit of the slow SDE; discrete runs need a finite c = (1 − β2)/η².")
        return optimizer, lambda rate: optimizer
    if is_transformation(optimizer):
        raise ValueError(
            "optimizer is an Optax transformation of one learning rate; prediction needs runs at others. Pass a "
            "function of the rate, such as lambda lr: optax.adam(lr, b2=1 - c * lr**2), c that of like."
        )
    _check_function(optimizer, lr)
    if not isinstance(like, AGM) or like.quasi_static:
        raise ValueError(
            f"like={shown(like)} must be the AGM that optimizer(lr) is like in the limit, of a finite c, such as "
            "adam(c=1.0, bias_correction=True)."
        )
    if v0 is not None:
        raise ValueError("v0 is for an AGM: an Optax transformation starts from the fresh state that it makes.")
    return like, optimizer

"""Whether the slow SDE may be trusted at a given learning rate, along a slow trajectory.

The slow SDE is a limit η → 0. At a finite η the fast motion about Γ must be stable, settle before anything moves on
the slow clock or in the state v, and stay where the loss is quadratic across it. Each requirement is a ratio, small
where it is met; `CRITERIA` says when it no longer is, and `validity` how that was calibrated.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from manifolds.support.arrays import ORIGIN, extent
from manifolds.support.precision import cast, to_numpy, working_precision
from manifolds.support.user_functions import shown

from ..dynamics import checks
from ..dynamics.fast_motion import measure
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..optimizers.agm import AGM
from ..plot.cards import card
from ..plot.verdicts import plot_validity
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..runs.frame import check_digest
from ..runs.simulate import starting_steps
from ..runs.trajectory import Trajectory
from ..support import arguments
from .time_scale import cumulative, distances, slow_time_scale


class Start(NamedTuple):
    """How far off Γ a run was started: shares of the squared distance along eigenvectors of H', and eigenvalues."""

    distance: float
    shares: np.ndarray  # (m,), sums to 1
    eigenvalues: np.ndarray | None  # (m,); None for the smallest, whatever it is
    motion: np.ndarray | None = None  # (2, N), see `fast_motion.start_motion`; None where v0 is near V(Σ)


class Criterion(NamedTuple):
    """What one ratio says ({} is its value), above which values, and what helps."""

    doubtful: float
    bad: float
    claim: str
    remedy: str


CRITERIA = {
    "sharpness": Criterion(
        0.1, 0.5, "η λ_max(H') reaches {} of the stability edge 2(1+β1)/(1−β1)", "lower lr or raise eps"
    ),
    "relaxation": Criterion(
        0.05, 0.25, "relaxing to Γ takes {} of the time in which the run moves", "lower lr or start nearer to Γ"
    ),
    "momentum": Criterion(0.05, 0.25, "the momentum remembers {} of the time in which the run moves", "lower lr or b1"),
    "state": Criterion(
        0.1, 0.5, "settling about Γ takes {} times the memory 1/c of the state v", "lower lr or c (a larger β2)"
    ),
    "fluctuation": Criterion(
        0.1, 0.5, "the loss bends by {} (relative, squared) across the fluctuations about Γ", "lower lr or the noise"
    ),
    "start": Criterion(
        0.05,
        0.2,
        "from its small v0 the slow SDE makes {} of its early motion before the optimizer has got going",
        "pass v0=k·c·lr²·V(Σ), the state after k=2/(1−b1) steps (10 at least), or use bias_correction=True",
    ),
    "rank": Criterion(
        0.02, 0.1, "an eigenvalue of H' that counts as zero is {} of the smallest that does not", "check the rank"
    ),
}
VERDICTS = ("comfortable", "doubtful", "not valid")
MAX_TIMES, MAX_PATHS = 50, 8


@dataclass(frozen=True, repr=False)
class Validity:
    """Where a slow trajectory may be trusted as a description of the optimizer at learning rate `lr`.

    Attributes:
        ts: (T,) the slow times looked at.
        lr: the learning rate η.
        ratios: name -> (T,), the worst over the paths; small is good. See `validity`.
        spectrum: name -> (T,), what they come from: extreme nonzero eigenvalues of H', the rank counted there, the
            largest eigenvalue of S, and η/λ_min in slow time, the longest relaxation of all.
        thresholds: name -> (doubtful above, not valid above).
    """

    ts: np.ndarray
    lr: float
    ratios: dict[str, np.ndarray]
    spectrum: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {name: (c.doubtful, c.bad) for name, c in CRITERIA.items()}
    )

    def level(self, name: str) -> np.ndarray:
        """(T,) 0 comfortable, 1 doubtful, 2 not valid, by one ratio. NaN counts as not valid."""
        doubtful, bad = self.thresholds[name]
        return np.where(self.ratios[name] <= doubtful, 0, np.where(self.ratios[name] <= bad, 1, 2))

    @property
    def levels(self) -> np.ndarray:
        """(T,) the worst level over the ratios."""
        return np.max([self.level(name) for name in self.ratios], axis=0)

    @property
    def verdict(self) -> str:
        """The worst over ratios and times: "comfortable", "doubtful" or "not valid"."""
        return VERDICTS[int(self.levels.max())]

    @property
    def first_bad_time(self) -> float:
        """The first slow time at which some ratio says "not valid"; nan if none does."""
        bad = self.levels == 2
        return float(self.ts[np.argmax(bad)]) if bad.any() else float("nan")

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence with numbers for each ratio that is not comfortable, the worst first."""
        raised = [name for name in self.ratios if self.level(name).any()]
        return tuple(self._reason(name) for name in sorted(raised, key=self._excess, reverse=True))

    @property
    def summary(self) -> str:
        """One line: the verdict, and its first reason or the largest of every ratio."""
        if self.reasons:
            advice = "do not trust" if self.verdict == "not valid" else "trust with care"
            return f"at lr={self.lr:g}: {self.verdict}, {advice}: {self.reasons[0]}"
        largest = ", ".join(f"{name} {np.max(values):.2g}" for name, values in self.ratios.items())
        return f"at lr={self.lr:g}: comfortable ({largest})"

    def table(self) -> str:
        """Every ratio at the start, the middle, the end and its worst, with its thresholds; reasons below."""
        rows = [0, len(self.ts) // 2, len(self.ts) - 1]
        times = "".join(f"{f't={self.ts[row]:.3g}':>12}" for row in rows)
        lines = [
            f"slow SDE at lr={self.lr:g}: {self.verdict}",
            f"{'ratio':<14}{times}{'worst':>12}{'doubtful >':>12}{'bad >':>8}",
        ]
        for name, values in self.ratios.items():
            cells = "".join(f"{value:12.3g}" for value in (*values[rows], np.max(values)))
            doubtful, bad = self.thresholds[name]
            lines.append(f"{name:<14}{cells}{doubtful:12.3g}{bad:8.3g}")
        for name, values in self.spectrum.items():
            lines.append(f"{name:<14}" + "".join(f"{value:12.4g}" for value in values[rows]))
        return "\n".join(lines + [f"  -> {reason}" for reason in self.reasons])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Validity {self.summary}>"

    def _repr_html_(self) -> str:
        rows = [0, len(self.ts) // 2, len(self.ts) - 1]
        header = ["ratio", *(f"t={self.ts[row]:.3g}" for row in rows), "worst", "doubtful >", "bad >"]
        cells = [
            [name, *(f"{value:.3g}" for value in (*values[rows], np.max(values), *self.thresholds[name]))]
            for name, values in self.ratios.items()
        ]
        return card(f"slow SDE at lr={self.lr:g}: {self.verdict}", header, cells, notes=self.reasons, draw=self.plot)

    def plot(self, ax: Any = None, **kw: Any) -> Any:
        """Every ratio over its threshold on a log axis, the region shaded where the slow SDE is not valid."""
        return plot_validity(self, ax=ax, **kw)

    def _excess(self, name: str) -> float:
        if name == "start":  # what else is bad at such a start comes from it
            return np.inf
        return float(np.nan_to_num(np.max(self.ratios[name]), nan=np.inf)) / self.thresholds[name][1]

    def _reason(self, name: str) -> str:
        level, values = self.level(name), self.ratios[name]
        worst, threshold = int(np.argmax(values)), self.thresholds[name][level.max() - 1]
        return (
            f"{name}: {CRITERIA[name].claim.format(f'{values[worst]:.2g}')} at t={self.ts[worst]:.3g} (above "
            f"{threshold:g} from t={self.ts[np.argmax(level == level.max())]:.3g}); {CRITERIA[name].remedy}"
        )


def validity(
    problem: AbstractProblem, optimizer: AGM, slow: Trajectory, lr: float, *, route: str | Route = "auto"
) -> Validity:
    """Whether `slow` describes `optimizer` at learning rate η = lr, by ratios along it, the worst over paths.

    With λ_i the nonzero eigenvalues of H' = S^½HS^½, w_i the share of the noise along them (label noise: λ_i/tr H')
    and τ the slow time in which the run moves (`slow_time_scale`, at most its length):

        sharpness    η λ_max (1−β1)/(2(1+β1)), the stability edge at 1; label noise on batches of b adds what single
                     samples do, η (max_i |S^½∇f_i|² − λ_max)/(2b). The variance about Γ is off by 1/(1 − ratio)
        relaxation   η Σ w_i/λ_i over τ: fluctuations settle in 1/(ηλ_i) steps, and directions count by their noise. A
                     run started off Γ adds min(η/λ_i, τ) e^{−∫λ_i dt/η} for the directions that it was off in, by
                     their shares of the distance, while that lasts
        momentum     2η²/(1−β1) over τ (β1 > 0)
        state        the longer of η Σ w_i/λ_i and 2η²/(1−β1), over the memory 1/c of v (where there is a v)
        fluctuation  ½ |S^½(∇L(ζ+δ) − Hδ)|² / |S^½Hδ|² for δ ~ N(0, ηC), the stationary fluctuation about Γ with
                     C'_ij = Σ'_ij/(λ_i+λ_j): the share of the force that is not linear
        start        from v0 ≪ V(Σ) only: the share of the early motion (∫|S B|² dt over the memory 1/c of v) by which
                     the slow SDE is ahead after 2/(1−β1) steps (10 if that is less) with S falling from S(v0)
        rank         the largest eigenvalue of H' that counts as zero (or rounding) over λ_min, where noise diffuses or
                     Hessians are dense. Least squares and classification under label noise ask no rank: their
                     directions are those that exist at each time, and dying ones carry no noise

    S itself needs no bound beyond these; its largest eigenvalue is reported. Calibration, on discrete runs (Adam,
    RMSProp and SGD on diagonal networks, valleys; 64 to 512 runs each), gap as a share of what the observable moves
    through, where one ratio dominates:

        sharpness    gap ≈ 0.3 to 1 × ratio for label noise, up to 1.5 × where the stiffest direction is the drift
        relaxation   gap ≈ 0.4 to 1.4 × ratio for the iterates themselves; returned to Γ, as `run_discrete` does, they
                     hardly lag. η/λ_min alone may be 1000 τ at a gap of 0.5 %, hence the weights
        momentum     gap ≈ 0.5 to 1 × ratio
        state        gap ≈ 0.3 × ratio
        fluctuation  gap up to 0.5 × ratio; never the largest share of a gap
        start        gap ≈ 0.5 to 1 × ratio, up to 3 × in the first 100 steps; with v0 = 2cη²/(1−β1) V(Σ) none of it

    so that "comfortable" means gaps of up to about 5 % (10 % at worst), "not valid" of 20 % and more.

    Args:
        problem, optimizer, route: those of the run; b1 may differ, as the slow SDE does not depend on it.
        slow: a `Trajectory` of `simulate`. At most 50 of its times and 8 of its paths are looked at.
        lr: the learning rate η of the optimizer.

    Returns: `Validity`, ratios (T,) over slow time.
    Raises: ValueError if slow is no slow trajectory, lr is not positive, or problem and optimizer do not fit slow.

    Example:
        >>> found = validity(problem, adam(c=10.0), slow, lr=0.02)
        >>> print(found.summary)
        >>> print(found)  # every ratio in time
    """
    _check_run(slow, lr)
    check_digest(problem, optimizer, slow, "slow")
    paths, times = _chosen(slow)
    xs, vs = jax.tree.map(lambda leaf: leaf[paths][:, times], (_flat(slow), slow.v))
    with working_precision("float64") as precision:
        problem, optimizer, xs, vs = cast((problem, optimizer, xs, vs), precision)
        sde, vs = _fitting(problem, optimizer, slow, xs, vs, route)
        pace = np.array([float(optimizer.pace(t)) for t in slow.ts[times]])
        found = to_numpy(measure(sde, xs, vs, np.asarray(lr * pace, precision)))
        xs = np.asarray(xs)
    if not np.isfinite(found["largest"]).any():
        raise ValueError("slow has no finite point: every path failed at once. Simulate with other settings first.")
    return _assemble(slow.ts[times], xs, found, lr, pace, float(optimizer.b1), _memory(optimizer.c, vs), _start(slow))


def validity_of_run(slow: Trajectory, lr: float) -> Validity | None:
    """`validity` as far as the run's own `stats` tell (all but fluctuation and rank); None if they do not."""
    keys = ("largest_eigenvalue", "smallest_eigenvalue", "mean_relaxation", "sampling_eigenvalue", "ranks")
    names = ("largest", "smallest", "mean_relaxation", "sampling", "directions")
    shape = (slow.paths, slow.ts.size)
    if (
        any(np.shape(slow.stats.get(key, ())) != shape for key in keys)
        or "b1" not in slow.stats
        or "c" not in slow.stats
    ):
        return None
    if not (arguments.is_finite(lr) and lr > 0):
        return None
    paths, times = _chosen(slow)
    found = {name: np.asarray(slow.stats[key], float)[paths][:, times] for name, key in zip(names, keys, strict=True)}
    if not np.isfinite(found["largest"]).any():
        return None
    xs = _flat(slow)[paths][:, times]
    b1, c = float(slow.stats["b1"]), _memory(slow.stats["c"], slow.v)
    pace = np.asarray(slow.stats.get("pace", np.ones(slow.ts.size)), float)[times]
    return _assemble(slow.ts[times], xs, found, float(lr), pace, b1, c, _start(slow))


def _start(slow: Trajectory) -> Start:
    """How the run began; of many starts the one that was farthest from Γ."""
    distances = np.atleast_1d(np.asarray(slow.stats.get("start_distance", 0.0), float))
    far = int(np.nanargmax(distances))

    def told(name: str, axes: int) -> np.ndarray | None:
        value = slow.stats.get(name)
        if isinstance(value, list) and any(np.ndim(one) == axes for one in value if one is not None):
            value = value[far]  # one of each start
        return None if value is None else np.asarray(value, float)

    shares, values, motion = told("start_shares", 1), told("start_eigenvalues", 1), told("start_motion", 2)
    start = Start(float(distances[far]), np.ones(1), None)
    if shares is not None and values is not None:
        start = start._replace(shares=shares, eigenvalues=values)
    return start if motion is None else start._replace(motion=motion)


def _assemble(
    ts: np.ndarray,
    xs: np.ndarray,
    found: dict[str, np.ndarray],
    lr: float,
    pace: np.ndarray,
    b1: float,
    c: float | None,
    start: Start,
) -> Validity:
    """The ratios from what was measured along the paths, (paths, T) each; times that no path reached are dropped.

    `pace` (T,) is s(t), the learning rate in force over lr: 1/(ηsλ) steps are the slow time η/(sλ).
    """
    seen = np.isfinite(found["largest"]).any(axis=0)
    ts, xs, pace = ts[seen], xs[:, seen], pace[seen]
    found = {name: values[:, seen] for name, values in found.items()}
    # A direction that dies takes its share of the mean with it at once, though nothing has moved: counted out.
    each = found["mean_relaxation"] / found["directions"]
    scale = slow_time_scale(ts, xs, (np.log(found["largest"]), np.log(np.maximum(each, 1e-300))))
    settling = lr * found["mean_relaxation"] / pace
    momentum = 2 * lr**2 / (1 - b1)
    ratios = {
        "sharpness": lr * pace * (found["largest"] * (1 - b1) / (1 + b1) + found["sampling"]) / 2,
        "relaxation": np.maximum(settling / scale, _unsettled(ts, xs, found, lr / pace, start, scale)),
    }
    if b1 > 0:
        ratios["momentum"] = momentum / scale
    if c is not None:
        ratios["state"] = c * np.maximum(settling, momentum if b1 > 0 else 0)
    if c is not None and start.motion is not None:
        ratios["start"] = _too_early(ts, start.motion, starting_steps(b1) * lr**2, c)[None]
    ratios |= {name: found[name] for name in ("fluctuation", "rank") if name in found}
    spectrum = {"λ_max(H')": np.nanmax(found["largest"], axis=0), "λ_min(H')": np.nanmin(found["smallest"], axis=0)}
    spectrum["η/λ_min"] = lr / (pace * spectrum["λ_min(H')"])
    for label, name in (("rank counted", "counted"), ("λ_max(S)", "metric")):
        if name in found:
            spectrum[label] = np.nanmax(found[name], axis=0)
    return Validity(ts, float(lr), {name: np.nanmax(r, axis=0) for name, r in ratios.items()}, spectrum)


def _unsettled(
    ts: np.ndarray, xs: np.ndarray, found: dict[str, np.ndarray], rate: np.ndarray, start: Start, scale: np.ndarray
) -> np.ndarray:
    """(paths, T) what is left of a start off Γ times how long it takes to go, over the time in which the run moves.

        (Σ_i p_i min(η/λ_i, τ)² e^{−2∫λ_i dt/η})^½/τ    times the distance over what the run moves

    with p_i the share of the squared distance along q_i. How λ_i changes on the way is known at the edges of the
    spectrum only: in proportion to the largest, and no less than the smallest.
    """
    largest, smallest = found["largest"][..., None], found["smallest"][..., None]
    values = smallest
    if start.eigenvalues is not None:
        values = np.maximum(start.eigenvalues * largest / largest[:, :1], smallest)
    times = rate[:, None] / values
    faded = np.exp(-2 * cumulative(ts, 1 / times))
    slowness = np.sqrt(np.sum(start.shares * np.minimum(times / scale[..., None], 1) ** 2 * faded, axis=-1))
    moved = np.max(distances(xs), axis=(1, 2))[:, None]
    return slowness * start.distance / np.maximum(moved, start.distance + 1e-300)


def _too_early(ts: np.ndarray, motion: np.ndarray, h: float, c: float) -> np.ndarray:
    """(T,) the share of the motion until t, or 1/c if that is later, that S makes in the first h by being larger than
    it is at h. The optimizer, from v = 0 and m = 0, makes no such motion while it gets going."""
    times, speeds = motion[0, 1:], motion[1, 1:]
    horizon = min(1 / c, ts[-1] - ts[0])
    fine = np.geomspace(times[0], max(times[-1], h, ts[-1] - ts[0]), 4000)
    speed = np.exp(np.interp(np.log(fine), np.log(times), np.log(speeds)))
    way = motion[1, 0] * fine[0] + cumulative(fine, speed[None, :, None])[0, :, 0]
    excess = np.interp(h, fine, way) - h * np.interp(h, fine, speed)
    return max(excess, 0.0) / np.interp(np.maximum(ts - ts[0], max(horizon, h)), fine, way)


def _check_run(slow: Any, lr: Any) -> None:
    if not isinstance(slow, Trajectory) or slow.label != "slow":
        kind = f"a {slow.label} Trajectory" if isinstance(slow, Trajectory) else shown(slow)
        raise ValueError(f"slow is {kind}; it must be a slow Trajectory, as simulate(...) returns it.")
    if not (arguments.is_finite(lr) and lr > 0):
        raise ValueError(f"lr={shown(lr)} must be a positive number: the learning rate η of the discrete optimizer.")


def _fitting(
    problem: AbstractProblem, optimizer: AGM, slow: Trajectory, xs: Array, vs: PyTree, route: str | Route
) -> tuple[SlowSDE, PyTree]:
    """The slow SDE at the rank of the run and the states, once problem and optimizer are known to be those of it."""
    first = jax.tree.map(lambda leaf: leaf[0, 0] if isinstance(leaf, np.ndarray | jax.Array) else leaf, slow.params)
    x = xs[0, 0]
    try:
        sde, _ = checks.on_flat_coordinates(problem, optimizer, cast(first, x.dtype), route)
        expected = jax.eval_shape(sde.equilibrium, x)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"problem does not fit slow.params, with leaves of shapes {jax.tree.map(np.shape, first)}: {error}. Pass "
            "the problem that slow was simulated with."
        ) from error
    vs = _states_like(expected, vs)
    if not np.isclose(float(slow.stats.get("c", optimizer.c)), float(optimizer.c), rtol=1e-6):
        raise ValueError(f"optimizer.c={optimizer.c}, but slow was simulated with c={slow.stats['c']}. Simulate anew.")
    v, rank = jax.tree.map(lambda leaf: leaf[0, 0], vs), slow.stats.get("rank")
    if not sde.crosses_singular_points:
        rank = sde.normal_space(x, v).rank if rank is None else jnp.asarray(rank, int)
        sde = sde.at_rank(rank)
    step = float(jnp.linalg.norm(sde.loss.newton_step(x, sde.normal_space(x, v))))
    if step > 1e-3 * float(extent(x, origin=ORIGIN)):
        raise ValueError(
            f"slow.params is not on the manifold of minimizers of problem: Newton's step to it has length {step:.2g}. "
            "Pass the problem that slow was simulated with."
        )
    return sde, vs


def _states_like(expected: PyTree, vs: PyTree) -> PyTree:
    """vs as the optimizer's own kind of pytree, which files do not keep; ValueError if the leaves are others."""
    named, treedef = jax.tree_util.tree_flatten_with_path(expected)
    names = [jax.tree_util.keystr(path) for path, _ in named]
    if isinstance(vs, dict) and set(vs) == set(names):
        vs = jax.tree.unflatten(treedef, [vs[name] for name in names])
    wanted, got = ([leaf.shape[skip:] for leaf in jax.tree.leaves(t)] for t, skip in ((expected, 0), (vs, 2)))
    if wanted != got or jax.tree.structure(vs) != treedef:
        raise ValueError(
            f"optimizer has a state with leaves of shapes {wanted}, but slow.v has {got}. Pass the optimizer that slow "
            "was simulated with."
        )
    return vs


def _chosen(slow: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Which paths (those that succeeded, if any did) and which times are looked at."""
    good = np.flatnonzero(slow.result == Result.SUCCESS)
    times = np.linspace(0, slow.ts.size - 1, min(MAX_TIMES, slow.ts.size)).round().astype(int)
    return (good if good.size else np.arange(slow.paths))[:MAX_PATHS], times


def _flat(slow: Trajectory) -> np.ndarray:
    """params as (paths, T, p)."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(slow.params) if isinstance(leaf, np.ndarray | jax.Array)]
    return np.concatenate([leaf.reshape((*leaf.shape[:2], -1)) for leaf in leaves], axis=-1)


def _memory(c: Any, vs: PyTree) -> float | None:
    """c, the rate at which the state v forgets; None where there is no state or it has no motion of its own."""
    return float(c) if jax.tree.leaves(vs) and np.isfinite(float(c)) else None

"""Weak estimates of higher order: means over runs at several steps, extrapolated to step zero (Talay and Tubaro 1990).

The weak error of the Euler step is a power series in the step h, E f(h) = E f + a₁h + a₂h² + ..., so that

    Σ_l w_l E f(h_l) = E f + O(h^L),        h_l = h/2^l,  l = 0 ... L−1,        L = 2: 2 E f(h/2) − E f(h)

All levels follow the same Brownian paths: every coarse increment is the exact sum of the fine ones. The differences
between levels then vary far less than the means, and the estimate hardly more than the plain one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from manifolds.support.precision import to_numpy

from ..dynamics.diffusion import solve_sde, steps_between
from ..dynamics.result import Result
from ..dynamics.solve import result_codes
from ..dynamics.solvers.state import SlowState, State
from ..dynamics.start import start_on_manifold
from ..metrics.metric import evaluate
from ..optimizers.agm import AGM
from ..plot.cards import card
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..runs.frame import prepared
from ..runs.request import Request, request
from ..support import arguments
from ..support.pieces import Pieces


@dataclass(frozen=True, repr=False)
class WeakEstimate:
    """Means at slow time t1, extrapolated to step zero; every dict is by observable, coarsest level first.

    Attributes (L levels):
        t1: slow time.
        dts: (L,) steps, each half of the one before.
        paths: Brownian paths, the same at every level.
        estimate, standard_error: name -> extrapolated mean, of weak order L, and its standard error.
        plain, plain_error: name -> (L,) mean at each step, of weak order 1, and its standard error.
        difference, difference_error: name -> estimate minus the same without the coarsest level, and its standard
            error. That is (minus) the bias of the latter: for L = 2 of the plain mean at the finest step, and on the
            safe side for the bias of the estimate, which is smaller by a power of the step.
        variance_ratio: name -> variance of the estimate over that from as many independent paths at each level.
        values: name -> (L, paths), f(ζ(t1)) on each path, for control variates of your own.
    """

    t1: float
    dts: np.ndarray
    paths: int
    estimate: dict[str, float]
    standard_error: dict[str, float]
    plain: dict[str, np.ndarray]
    plain_error: dict[str, np.ndarray]
    difference: dict[str, float]
    difference_error: dict[str, float]
    variance_ratio: dict[str, float]
    values: dict[str, np.ndarray]

    def table(self) -> str:
        """Plain means at every step, the extrapolated one, and whether bias or noise limits it."""
        lines = [
            f"weak estimates at t={self.t1:.4g} from {self.paths} coupled paths",
            f"{'observable':<28}{'step':>12}{'mean':>14}{'s.e.':>11}",
        ]
        for name in self.plain:
            for row, (step, mean, error) in enumerate(self._levels(name)):
                lines.append(f"{name if row == 0 else '':<28}{step:>12}{mean:14.6g}{error:11.2g}")
            lines.append(f"  -> {self.verdict(name)}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        found = ", ".join(
            f"{name} {mean:.6g} ± {self.standard_error[name]:.2g}" for name, mean in self.estimate.items()
        )
        return f"<WeakEstimate at t={self.t1:.4g} from {self.paths} paths: {found}>"

    def _repr_html_(self) -> str:
        rows = [
            [name if row == 0 else "", step, f"{mean:.6g}", f"{error:.2g}"]
            for name in self.estimate
            for row, (step, mean, error) in enumerate(self._levels(name))
        ]
        notes = [f"{name}: {self.verdict(name)}" for name in self.estimate]
        title = f"weak estimates at t={self.t1:.4g} from {self.paths} coupled paths"
        return card(title, ["observable", "step", "mean", "s.e."], rows, notes=notes)

    def _levels(self, name: str) -> list[tuple[str, float, float]]:
        """(step, mean, standard error) of every level, and of the estimate."""
        plain = zip(self.dts, self.plain[name], self.plain_error[name], strict=True)
        levels = [(f"{dt:.4g}", mean, error) for dt, mean, error in plain]
        return [*levels, ("-> 0", self.estimate[name], self.standard_error[name])]

    def verdict(self, name: str) -> str:
        """One plain sentence on the bias that is left."""
        gap, spread = abs(self.difference[name]), self.difference_error[name]
        lost = int(np.sum(~np.isfinite(self.values[name]).all(axis=0)))
        if lost:
            return f"no estimate: the observable is not finite on {lost} of {self.paths} paths"
        what = "the plain mean" if len(self.dts) == 2 else f"the estimate of order {len(self.dts) - 1}"
        seen = f"{what} at the finest step is off by {gap:.2g} (s.e. {spread:.1g})"
        if gap + 2 * spread < self.standard_error[name]:
            return f"{seen}, less than the noise: more paths would help, a smaller step would not"
        if gap < 2 * spread:
            return f"{seen}: no bias is seen, but it may exceed the noise; use more paths"
        return f"{seen}, more than the noise: the extrapolation matters; compare with half the step, or one more level"


def weak_estimate(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    dt: float,
    paths: int,
    key: PRNGKeyArray | None = None,
    observables: Any,
    levels: int = 2,
    t0: float = 0.0,
    v0: PyTree = None,
    route: str | Route = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    progress: bool | None = None,
) -> WeakEstimate:
    """E f(ζ(t1)) of a slow SDE that diffuses, of weak order `levels` in the step: 2 by default.

        2 E f(dt/2) − E f(dt) = E f + O(dt²),        both means over the same Brownian paths

    One call costs 2^levels − 1 times a run with the step dt. The bias O(dt^levels) is not part of the standard error;
    `difference` bounds it in practice, and halving dt checks it.

    Args:
        problem, optimizer, params0, t0, v0, key, route, rank, dtype, progress: as in `simulate`.
        t1: slow time, t = kη².
        dt: the coarsest step; rounded down so that it divides t1 − t0.
        paths: Brownian paths, at least 2.
        observables: names from `slowsde.metrics`, `Metric` objects, or {name: fn(params) -> scalar}; smooth, or the
            error is no power series.
        levels: the number of steps dt, dt/2, dt/4 ..., 2 to 5.

    Returns: `WeakEstimate`.
    Raises: ValueError on bad input, or if nothing diffuses; RuntimeError if a path fails at any level.
    Source: D. Talay and L. Tubaro, Stochastic Analysis and Applications 8 (1990).

    Example:
        >>> valley = Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=GaussianNoise(0.3))
        >>> found = weak_estimate(valley, adam(c=2.0), jnp.array([0.0, 1.0]), 1.0, dt=0.05, paths=4096,
        ...                       observables="trace_hessian")
        >>> print(found.table())
    """
    asked = request(
        "weak_estimate",
        (problem, optimizer, params0, v0),
        t0=t0,
        t1=t1,
        save_at=[t1] if arguments.is_finite(t1) else 2,
        paths=paths,
        key=key,
        metrics=observables,
        route=route,
        rank=rank,
        dtype=dtype,
        progress=progress,
    )
    if asked.paths < 2:
        raise ValueError(f"paths={paths} must be at least 2: a single path has no standard error.")
    if not arguments.is_integer(levels) or not 2 <= levels <= 5:
        raise ValueError(f"levels={levels!r} must be an integer from 2 to 5, one for each step dt, dt/2, ...")
    if not asked.metrics:
        raise ValueError(f"observables={observables!r} is empty: name at least one, such as 'trace_hessian'.")
    # The coarse grid is refined, so that every level ends on t1 and the finest one holds the noise of all.
    coarse = steps_between(t0, t1, arguments.check_step(dt, t0, t1))
    grid = np.linspace(t0, t1, coarse * 2 ** (levels - 1) + 1)
    with prepared(asked, problem, optimizer, params0, v0) as (sde, x0, v0):
        if not sde.diffuses:
            raise ValueError("Nothing diffuses under this noise: use simulate, whose rtol controls the error.")
        slow, start, v0 = start_on_manifold(sde, x0, v0, asked.rank, t0)
        state0, pieces = slow.initial(start.point, v0), asked.pieces
        # Coarsest first. Every level is a solve of its own on the same Brownian paths, by its stride.
        values = [_at_the_end(asked, slow, state0, grid, 2**level, pieces) for level in reversed(range(levels))]
    samples = {name: np.stack([level[name] for level in values]) for name in asked.metrics}
    return estimate_of_samples(samples, float(t1), (t1 - t0) / (grid.size - 1) * 2.0 ** np.arange(levels)[::-1])


def _at_the_end(
    asked: Request, slow: SlowState, state0: State, grid: np.ndarray, stride: int, pieces: Pieces
) -> dict[str, Float[np.ndarray, " paths"]]:
    """The observables at the last time on every path, by steps of `stride` intervals of the grid."""
    dt = (asked.t1 - asked.t0) / (grid.size - 1)
    how = {"paths": asked.paths, "stride": stride, "pieces": pieces, "stage": f"stride {stride}"}
    saved, ending = solve_sde(slow, state0, asked.key, asked.times, grid, dt, **how)
    if pieces.interrupted:
        raise KeyboardInterrupt
    # A path that fails at one level only would leave a difference between levels that is none: all or nothing.
    codes = result_codes(slow, ending)
    if codes.any():
        worst = Result(int(codes[np.flatnonzero(codes)[0]]))
        raise RuntimeError(
            f"{np.count_nonzero(codes)} of {asked.paths} paths failed with the step {dt * stride:.3g}: "
            f"{worst.name}, {worst.explain()}."
        )
    found = to_numpy(evaluate(asked.metrics, slow.sde, saved.x, saved.v))
    return {name: values[:, -1] for name, values in found.items()}


def estimate_of_samples(samples: dict[str, Float[np.ndarray, "L paths"]], t1: float, dts: np.ndarray) -> WeakEstimate:
    """The estimate from f(ζ(t1)) at each level and path."""
    weights = richardson_weights(dts)
    # The estimate of one order less from the finer levels, path by path: its difference to the best has its own small
    # standard error.
    lower = np.concatenate([[0.0], richardson_weights(dts[1:])])
    # Weighted path by path before means are taken: the errors of the levels nearly cancel in it, which a sum of
    # separate standard errors would not show.
    best = {name: weights @ values for name, values in samples.items()}
    gap = {name: (weights - lower) @ values for name, values in samples.items()}
    spread = {name: values.std(axis=1, ddof=1) for name, values in samples.items()}
    paths = next(iter(best.values())).size
    return WeakEstimate(
        t1=t1,
        dts=dts,
        paths=paths,
        estimate={name: float(f.mean()) for name, f in best.items()},
        standard_error={name: _standard_error(f) for name, f in best.items()},
        plain={name: values.mean(axis=1) for name, values in samples.items()},
        plain_error={name: each / np.sqrt(paths) for name, each in spread.items()},
        difference={name: float(f.mean()) for name, f in gap.items()},
        difference_error={name: _standard_error(f) for name, f in gap.items()},
        variance_ratio={name: _ratio(f.var(ddof=1), weights**2 @ spread[name] ** 2) for name, f in best.items()},
        values=samples,
    )


def _standard_error(f: Float[np.ndarray, " paths"]) -> float:
    return float(f.std(ddof=1) / np.sqrt(f.size))


def _ratio(variance: float, independent: float) -> float:
    return float(variance / independent) if independent > 0 else float("nan")


def richardson_weights(dts: Float[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    """w with Σw = 1 and Σ w_l dts_l^k = 0 for k = 1 ... L−1: the Lagrange basis at step zero."""
    return np.array([np.prod([other / (other - dt) for other in dts if other != dt]) for dt in dts])

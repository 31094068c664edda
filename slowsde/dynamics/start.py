"""Where a run starts: Φ_S(params0) on Γ, checked, with the optimizer's state there."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

import manifolds as mf
from manifolds.geometry import limit_map
from manifolds.maps.limit_map import MAX_STEPS, RTOL, LimitPoint, as_rank, check_limit, compiled_limit_point
from manifolds.normal.normal_space import rank_tolerance
from manifolds.support.coordinates import Coordinates
from manifolds.support.precision import cast, on_device, to_numpy, working_precision

from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..support.arguments import check_tolerance, positive_integer
from ..support.progress import step_meter
from . import checks
from .slow_sde import SlowSDE, equilibrium
from .solvers.state import SlowState


def to_manifold(
    problem: AbstractProblem,
    params: PyTree,
    metric: Any = None,
    *,
    route: str | Route = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    rtol: float = RTOL,
    max_steps: int = MAX_STEPS,
    progress: bool | None = None,
) -> PyTree:
    """Φ_S(params): train `params` to the manifold of minimizers of a problem by its preconditioned gradient flow.

    `manifolds.limit_map` by the problem's own route. `metric` is S (None: plain gradient flow, see
    `manifolds.as_metric`), `rtol` the relative error of a step of the flow (what is returned lies on Γ to rounding at
    any; with 1e-4 a large problem takes a tenth of the steps), `max_steps` a bound on them, `progress` whether they are
    counted on stderr (None: if it is a terminal). Raises `manifolds.ManifoldError` (a ValueError) where the flow
    reaches no minimizer that has a manifold around it; least squares and classification may end at a singular point of
    theirs.

    Example:
        >>> u, v = to_manifold(problem, params0)
        >>> float(round(u * v, 5))
        1.0
    """
    positive_integer("max_steps", max_steps)
    rtol = check_tolerance("rtol", rtol)
    with working_precision(dtype) as precision:
        problem, params, metric = cast((problem, params, metric), precision)
        chart = Coordinates.of(params)
        if metric is None:  # as a diagonal, so that what is compiled here serves Adam's metric too
            metric = mf.Diagonal(on_device(np.ones(chart.size, precision)))
        shown = step_meter("to_manifold", progress, max_steps)
        options = {"rtol": rtol, "max_steps": max_steps, "shown": shown, "what": "params"}
        return limit_map(problem.flat_loss(chart, route), params, metric, rank=rank, dtype=precision, **options)


def initial_state(sde: SlowSDE, x0: Array, v0: PyTree, t0: float) -> PyTree:
    """v0, checked; V(Σ(x0)) for None.

    With bias correction a run from t0 = 0 has seen no gradient before its first: v0 = 0 stands for that, and the
    corrected state starts at V(Σ), the mean over any short time.
    """
    if v0 is None:
        return equilibrium(sde, x0)
    v0 = sde.arranged(v0)
    checks.check_state(sde, v0)
    if sde.optimizer.bias_correction and t0 == 0:
        if not checks.is_zero(v0):
            raise ValueError(
                "v0 has no weight in a bias-corrected run from t0=0, which starts from v=0: leave v0=None, or pass the "
                "slow time t0 = kη² at which v0/(1−β2^k) was read."
            )
        return equilibrium(sde, x0)
    return v0


def start_on_manifold(
    sde: SlowSDE, x0: Array, v0: PyTree, rank: int | None, t0: float = 0.0, **options: Any
) -> tuple[SlowState, LimitPoint, PyTree]:
    """Φ_{S(v0)}(x0), checked, with the slow SDE at its rank and the state v0 there; for `options` see `limit_map`."""
    v0 = initial_state(sde, x0, v0, t0)
    # In the metric of v0 at params0: the first O(1/η) steps fall onto Γ before v moves on the slow clock.
    metric = sde.metric(v0)
    limit = compiled_limit_point(sde.loss, x0, metric, as_rank(rank, x0.size), **options)
    check_limit(limit, sde.loss, metric, rank_for=sde.rank_for)
    # Its numbers are looked at on the host, where that is no program.
    start = eqx.tree_at(lambda found: found.point, to_numpy(limit), limit.point)
    _check_interpolation(sde, start)
    if int(start.rank) == x0.size:
        raise ValueError(
            f"params0 leads to an isolated minimizer: the Hessian has full rank {x0.size}, so there is no manifold to "
            "drift along. The slow SDE needs more parameters than the data determine."
        )
    # At the start on Γ, not at params0: minibatch noise vanishes only where samples are fitted.
    checks.check_noise_on_manifold(sde, start.point)
    # An eigenvalue that was regular at the start and has shrunk so far has vanished for every practical purpose.
    # Relative to the smallest one at the start: H' of Adam spreads over many decades, and a floor relative to λ_max
    # would call its small ones lost.
    floor = rank_tolerance(x0.dtype) * start.spectrum[start.rank - 1]
    if sde.crosses_singular_points:
        # Sparse ends are singular points of Γ. There a flow that interpolates goes on along what is left of Γ: the rank
        # is counted anew at every step, and the saved ranks tell.
        return SlowState(sde, on_device(np.full_like(floor, -np.inf))), start, v0
    sde = sde.at_rank(limit.rank)
    return SlowState(sde, on_device(floor)), start, v0


def _check_interpolation(sde: SlowSDE, start: LimitPoint) -> None:
    # Where the formula for α or the kernel assumes L = 0 on Γ. A general loss with noise that diffuses need not vanish.
    if sde.diffuses and not isinstance(sde.loss, mf.LeastSquaresLoss):
        return
    value = float(start.value)
    # Against what the loss is a distance |x| away from Γ, ½|S^-½x|²λ_max(H') or so: in any units of params and loss.
    if value > float(np.finfo(start.point.dtype).eps) ** 0.75 * float(start.spectrum[0] * start.stretch**2):
        raise ValueError(
            f"The minimizers reached from params0 do not interpolate (loss {value:.3g} on Γ), as label noise and the "
            "kernel route require. Use fewer data or a larger model; with other noise, route='dense'."
        )

"""The order of an error in a step or a learning rate: a weighted straight line in logarithms, with its interval."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


@dataclass(frozen=True)
class OrderFit:
    """A straight line through log|error| against log lr.

    Attributes:
        order: its slope; nan if it was not fitted.
        interval: (low, high), 95 %.
        centre: (lr, |error|), the point through which the lines of every slope within the interval pass.
        misfit: χ² per degree of freedom; nan for two learning rates, which any line fits.
        refusal: why it was not fitted; empty if it was.
    """

    order: float
    interval: tuple[float, float]
    centre: tuple[float, float]
    misfit: float
    refusal: str = ""


def fit_order(
    lrs: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    covariance: Float[np.ndarray, "n n"],
    paths: np.ndarray | int = 1,
    reference: np.ndarray | float = 0.0,
) -> OrderFit:
    """Slope of log|error| on log lr with its 95 % interval; refused unless the errors are resolved and of one sign.

    `paths` (n,) only serves to say how many would do; `reference` (n,) is the size against which rounding is judged.
    """
    refusal = _refusal(lrs, errors, np.sqrt(np.diag(covariance)), np.broadcast_to(paths, lrs.shape), reference)
    if refusal:
        return OrderFit(np.nan, (np.nan, np.nan), (np.nan, np.nan), np.nan, refusal)
    # Delta method: Cov(log|e|) = Cov(e)/(e eᵀ).
    x, y = np.log(lrs), np.log(np.abs(errors))
    # Errors without any noise weigh equally: a relative variance far below every misfit.
    noise = covariance / np.outer(errors, errors) + 1e-20 * np.eye(x.size)
    # Generalized least squares, as errors that share a slow ensemble are correlated.
    weights = np.linalg.inv(noise)
    total = weights.sum()
    x0, y0 = weights.sum(axis=0) @ x / total, weights.sum(axis=0) @ y / total
    dx, dy = x - x0, y - y0
    information = dx @ weights @ dx
    slope = float(dx @ weights @ dy / information)
    from scipy.special import ndtri, stdtrit  # half the time of `import slowsde`

    misfit, wide = np.nan, ndtri((1 + LEVEL) / 2)
    if x.size > 2:
        rest = dy - slope * dx
        misfit = float(rest @ weights @ rest / (x.size - 2))
        # Only ever widened: a χ² below 1 is luck, not better data.
        if misfit > 1:
            wide = stdtrit(x.size - 2, (1 + LEVEL) / 2) * np.sqrt(misfit)
    half = float(wide / np.sqrt(information))
    return OrderFit(slope, (slope - half, slope + half), (float(np.exp(x0)), float(np.exp(y0))), misfit)


def _refusal(
    lrs: np.ndarray, errors: np.ndarray, spread: np.ndarray, paths: np.ndarray, reference: np.ndarray | float
) -> str:
    """Why no line can be drawn through these errors; empty if one can."""
    floor = np.broadcast_to(ROUNDING * np.maximum(np.abs(reference), ROUNDING), errors.shape)
    # The log of an error within its noise is biased, and a sign that is chance makes |error| a mean of nothing. (NaN
    # counts as lost.)
    lost = ~(np.abs(errors) > RESOLVED * spread + floor)
    if lost.any():
        clauses = []
        for i in np.flatnonzero(lost):
            if not (np.isfinite(errors[i]) and np.isfinite(spread[i])):
                clauses.append(f"lr={lrs[i]:g} (the observable is not finite there)")
                continue
            if not RESOLVED * spread[i] > floor[i]:
                clauses.append(f"lr={lrs[i]:g} ({errors[i]:.2g} is rounding: use a larger lr)")
                continue
            size = np.abs(errors[i]) / spread[i]
            # Standard errors fall like 1/√paths; a fifth more, as the error itself is known only so well.
            needed = int(np.ceil(paths[i] * (RESOLVED / max(size, 1.0)) ** 2 * 1.2))
            bound = "about" if size > 1 else "more than"
            clauses.append(f"lr={lrs[i]:g} ({size:.1f} s.e.; {bound} {needed} paths would resolve it)")
        return f"not beyond {RESOLVED:g} s.e. at " + ", ".join(clauses)
    if np.ptp(np.sign(errors)) > 0:
        sign = np.sign(errors[np.argmin(lrs)])
        others = ", ".join(f"{lr:g}" for lr in lrs[np.sign(errors) != sign])
        return f"the error changes its sign (lr={others} against the smallest): no power of lr; use smaller lrs"
    return ""


RESOLVED = 4.0  # a gap of more than this many standard errors is real
ROUNDING = 1e-9  # a relative gap of this size is rounding, and so is an observable that is smaller than its square

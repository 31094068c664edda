"""The slow time in which a path moves."""

import numpy as np


def slow_time_scale(ts: np.ndarray, xs: np.ndarray, logs: tuple[np.ndarray, ...]) -> np.ndarray:
    """(paths, T) the slow time τ in which a path moves, at most its length: ts (T,), xs (paths, T, p), logs (paths, T).

    The time in which ζ crosses the distance that it crosses in all, or one of `logs` changes by as much as it does in
    all, but by 1 at most. At time t that is the smallest |t − s| D/d(t, s) over the saved times s with d(t, s) ≥ D/3,
    d the distance and D its largest value; asking for D/3 serves diffusing paths, which have no speed.
    """
    # Between all pairs of saved times: a difference of neighbours would make a diffusing path infinitely fast.
    apart = np.abs(ts[:, None] - ts[None, :])
    horizon = float(np.ptp(ts)) or abs(float(ts[-1])) or np.inf
    shortest = np.full(xs.shape[:2], horizon)
    # A logarithm that changes by less than 1 % sets no time.
    for points, floor, most in [(xs, 0.0, np.inf)] + [(log[..., None], 0.01, 1.0) for log in logs]:
        d = distances(points)
        scale = np.minimum(np.max(d, axis=(1, 2), keepdims=True), most)
        # Scaled up from a third of the way, so that a fast part of a slow run sets the time.
        far = (d >= scale / 3) & (d > floor)
        shortest = np.minimum(shortest, np.min(np.where(far, apart * scale / np.where(far, d, 1), np.inf), axis=-1))
    return shortest


def distances(xs: np.ndarray) -> np.ndarray:
    """(paths, T, T) Euclidean distances between the points of each path (paths, T, p); 0 where a point is missing."""
    # Less the start, as |x|² + |y|² − 2xy of points far from 0 cancels.
    x = np.nan_to_num(xs - xs[:, :1])
    squares = np.sum(x**2, axis=-1)
    products = np.einsum("ktp,ksp->kts", x, x)
    return np.sqrt(np.maximum(squares[:, :, None] + squares[:, None, :] - 2 * products, 0))


def cumulative(ts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(paths, T, m) ∫ rates dt from the first time on, by trapezoids: ts (T,), rates (paths, T, m)."""
    steps = np.diff(ts)[:, None] * (rates[:, 1:] + rates[:, :-1]) / 2
    return np.concatenate([np.zeros_like(rates[:, :1]), np.cumsum(steps, axis=1)], axis=1)

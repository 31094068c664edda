"""A mean at one learning rate, from its gaps at larger ones and the anchor at η = 0, with both of its errors.

The gap of discrete runs to the slow SDE is smooth in η and vanishes with it:

    D(η) = a η + s Σ_{k=2}^{K} z_k (η/R)^k,        a free,  z_k ~ N(0, 1),  R the largest rate

and is known at J rates η_j up to noise of covariance C. The weights w of the estimate Σ_j w_j D(η_j) of D(η) are exact
on the linear term, and minimize the sum of what they leave of noise and of the terms that J rates can tell apart,

    w = argmin  wᵀ C w + s² Σ_{k=2}^{J} (η^k − Σ_j w_j η_j^k)² / R^2k    s.t.  Σ_j w_j η_j = η

(universal kriging): without noise the polynomial through 0 and all points, where noise prevails a weighted straight
line. The standard error is the root of wᵀ C w, the model error that of the rest, with the next terms, up to K. The size
s of the bend is that of the gap itself (and of a part of the delay that was taken out of it) times a ratio, averaged
over its likelihood.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Chosen on discrete runs of SGD, RMSProp, Adam in three settings and Shampoo on three networks, two observables each,
# 64 paths drawn anew from 1024, at admissible rates: a ratio of a fifth at least and two more terms than can be told
# cover 96 % of (case, time) within twice both errors. With ratios from a twentieth on it was 90 %: a fit through few
# noisy points often sees no bend where one is.
RATIOS = np.geomspace(0.2, 3.0, 11)
TERMS = 2  # K − J
NEAR = 2  # saved times on either side that are asked with each one
DELAY = 0.15  # (0.4)²: a delay is known to no better than that at the largest rate
TOGETHER = 4.0  # independent curves that all saved times of one observable are worth together
UNSURE = 16  # paths that count against correlations
EXPONENT = (1.75, 0.5)  # of a variance in η: expected (measured 1.6 to 2 under label noise), and how surely
ROUNDING = 1e-4  # gaps of this share of the others are none: two ways to Γ agree to some 10⁻⁶ of the observable
ALONE = 0.5  # the ratio where a single rate tells nothing of a bend


class Estimate(NamedTuple):
    """An interpolated gap: (T,) each, and its weights (T, J)."""

    value: np.ndarray
    standard_error: np.ndarray
    model_error: np.ndarray
    weights: np.ndarray


def interpolate(
    rates: Float[np.ndarray, " J"],
    lr: float,
    gaps: Float[np.ndarray, "T J"],
    noise: Float[np.ndarray, "T J J"],
    shared: Float[np.ndarray, "T J"] | float = 0.0,
    anchor: Float[np.ndarray, " T"] | float = 0.0,
    delayed: Float[np.ndarray, " T"] | float = 0.0,
) -> Estimate:
    """D(lr) at every time from the gaps at `rates` and their covariances.

    `delayed` is by how much the slow curve was moved at the largest rate before gaps were taken.

    Where the anchor at η = 0 is an estimate as well, `anchor` is its variance and `shared` its covariances with the
    gaps: the standard error is then that of anchor + D(lr).
    """
    shared = np.broadcast_to(shared, gaps.shape)
    powers = _powers(rates, lr)
    bends = bend_sizes(rates, gaps, noise, delayed)
    weights = np.array([_weights(rates, lr, *powers, *each) for each in zip(noise, shared, bends, strict=True)])
    variance = anchor + 2 * np.sum(weights * shared, axis=1) + np.einsum("tj,tjk,tk->t", weights, noise, weights)
    missed = np.sum((powers[1] - weights @ powers[0]) ** 2, axis=1)
    return Estimate(np.sum(weights * gaps, axis=1), np.sqrt(np.maximum(variance, 0)), np.sqrt(bends * missed), weights)


def interpolated_moments(
    rates: np.ndarray,
    lr: float,
    slow: np.ndarray,
    runs: Sequence[np.ndarray],
    delayed: Float[np.ndarray, " T"] | float = 0.0,
) -> tuple[Estimate, np.ndarray]:
    """The mean over runs at lr, and the standard deviation of one (T,), about the mean of its start if there are many.

    `slow` (J+1, starts, copies, T) is the observable on the slow paths as the anchor at lr and at each rate, `runs` are
    its values (paths, T) at each rate. From many starts, path i is from start i, and the mean is that over these: their
    spread is in no gap, and so in no error. NaN at times at which a rate has no two finite values.
    """
    starts, copies = slow.shape[1:3]
    own = slow.mean(axis=2)
    around, anchor = slow - own[:, :, None], own[0].mean(axis=0)
    # (T, J+1, J+1): the slow paths are the same in all anchors.
    between = np.einsum("jsct,ksct->tjk", around, around) / (starts * max(copies - 1, 1))
    gaps = [values - mean for values, mean in zip(runs, own[1:], strict=True)]
    counts = np.array([np.isfinite(values).sum(axis=0) for values in gaps])
    of_slow = np.einsum("tjj->jt", between)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of times without values
        mean = np.array([np.nanmean(values, axis=0) for values in gaps])
        variance = np.array([np.nanvar(values, axis=0, ddof=1) for values in gaps])
    # Gaps from many starts vary with the means of their slow paths as well; that of a single one is the same in all.
    variance = np.maximum(variance - (of_slow[1:] / copies if starts > 1 else 0), 0)
    of_mean = variance / np.maximum(counts, 1)
    known = np.asarray(np.all([*np.isfinite([*(mean + variance), anchor]), *(counts > 1)], axis=0))
    errors = np.sqrt(of_mean).T
    slow_noise = between / (starts * copies)
    noise = slow_noise[:, 1:, 1:] + correlations(gaps) * errors[:, :, None] * errors[:, None, :]
    delayed = np.broadcast_to(delayed, known.shape)
    found = _where(known, rates, lr, mean.T, noise, -slow_noise[:, 0, 1:], slow_noise[:, 0, 0], delayed)
    spread = np.where(known, _spread(rates, lr, variance, counts, of_slow), np.nan)
    return found._replace(value=anchor + found.value), spread


def correlations(runs: Sequence[np.ndarray]) -> Float[np.ndarray, "J J"]:
    """Of the runs (paths, T) of one number at each rate, whose noise is that of the same keys: the mean over time.

    Shrunk, as few paths tell little of it: weights would find combinations that seem to have no noise at all.
    """
    values = np.array(runs)
    there = np.isfinite(values).all(axis=0)
    mean = np.where(there, values, 0.0).sum(axis=1, keepdims=True) / np.maximum(there.sum(axis=0), 1)
    off = np.where(there, values - mean, 0.0)
    products = np.einsum("jpt,kpt->tjk", off, off)
    sizes = np.sqrt(np.einsum("tjj->tj", products))
    moved = (sizes > ROUNDING * sizes.max()).all(axis=1)
    if not moved.any():
        return np.eye(len(runs))
    unit = products[moved] / (sizes[moved, :, None] * sizes[moved, None, :])
    paths = runs[0].shape[0]
    trust = max(paths - 1, 0) / (paths + UNSURE)
    return trust * unit.mean(axis=0) + (1 - trust) * np.eye(len(runs))


def _spread(
    rates: np.ndarray, lr: float, variance: np.ndarray, counts: np.ndarray, slow: np.ndarray
) -> Float[np.ndarray, " T"]:
    """The standard deviation of a run at lr, from variances (J, T) over runs and (J+1, T) over slow paths."""
    noise = 2 / np.maximum(counts - 1, 1)  # relative, of the variance of a Gaussian
    if not slow.any():
        return np.sqrt(power_law(rates, lr, variance, noise))
    beyond, unsure = (variance - slow[1:]).T, _diagonal((noise * variance**2).T)
    known = np.asarray(np.all(np.isfinite(beyond), axis=1))
    return np.sqrt(np.maximum(slow[0] + _where(known, rates, lr, beyond, unsure).value, 0))


def power_law(rates: np.ndarray, lr: float, values: np.ndarray, noise: np.ndarray) -> Float[np.ndarray, " T"]:
    """Positive values at lr from those (J, T) at the rates, of relative variances `noise`.

    Between aη and bη², as variances are: log-linear with the exponent expected, as far as the values leave it open. (A
    polynomial would cancel: where all is bη², the value at a quarter of the nearer of two rates is a sixteenth of it.)
    """
    x, y, weights = np.log(rates / lr)[:, None], np.log(np.maximum(values, np.finfo(float).tiny)), 1 / noise
    x0, y0 = (np.sum(weights * each, axis=0) / np.sum(weights, axis=0) for each in (x, y))
    precision = EXPONENT[1] ** -2
    slope = np.sum(weights * (x - x0) * (y - y0), axis=0) + EXPONENT[0] * precision
    return np.exp(y0 - x0 * slope / (np.sum(weights * (x - x0) ** 2, axis=0) + precision))


def _diagonal(values: np.ndarray) -> np.ndarray:
    """(T, J, J) with (T, J) on the diagonals."""
    return values[:, :, None] * np.eye(values.shape[1])


def _where(known: np.ndarray, rates: np.ndarray, lr: float, *each: np.ndarray) -> Estimate:
    """`interpolate` at the times that are known, NaN at others."""
    nothing = np.full(known.size, np.nan)
    filled = Estimate(nothing, nothing.copy(), nothing.copy(), np.full((known.size, rates.size), np.nan))
    if known.any():
        for whole, part in zip(filled, interpolate(rates, lr, *(values[known] for values in each)), strict=True):
            whole[known] = part
    return filled


def _powers(rates: np.ndarray, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """(J, K−1) the higher terms at the rates, (K−1,) at lr."""
    k = np.arange(2, rates.size + TERMS + 1)
    return (rates[:, None] / rates.max()) ** k, (lr / rates.max()) ** k


def _weights(
    rates: np.ndarray, lr: float, at: np.ndarray, wanted: np.ndarray, C: np.ndarray, shared: np.ndarray, bend: float
) -> np.ndarray:
    """The minimizer, by its Lagrange equations; `bend` is s²."""
    at, wanted = at[:, : rates.size - 1], wanted[: rates.size - 1]
    A, g = C + bend * at @ at.T, bend * at @ wanted - shared
    # In units in which all entries are near 1: where nothing is noisy A is as small as the gaps are.
    unit, x = max(np.trace(A), np.finfo(float).tiny), rates / rates.max()
    saddle = np.block([[A / unit, x[:, None]], [x[None], np.zeros((1, 1))]])
    return np.linalg.lstsq(saddle, np.append(g / unit, lr / rates.max()), rcond=1e-14)[0][:-1]


def bend_sizes(
    rates: np.ndarray, gaps: np.ndarray, noise: np.ndarray, delayed: np.ndarray | float = 0.0
) -> Float[np.ndarray, " T"]:
    """s² at every time: that of all gaps in proportion, nearby and on average, times the mean square ratio."""
    # All of them, as one may vanish by chance.
    squares = np.sum((gaps * rates.max() / rates) ** 2, axis=1) + DELAY * np.square(delayed)
    sizes = (_nearby(squares) + squares.mean()) / 2
    # At the start nothing has moved at any rate: no error there, and no evidence of straight lines.
    sizes = np.where(np.max(gaps**2, axis=1) > ROUNDING**2 * squares.mean(), sizes, 0.0)
    if rates.size == 1:
        return ALONE**2 * sizes
    evidence = np.array([_evidence(rates, *each) for each in zip(gaps, noise, sizes, strict=True)])
    # Neighbouring times tell much the same: together they count as a few independent curves, not as T.
    told = min(TOGETHER, len(gaps)) * evidence.mean(axis=0) + _nearby(evidence)
    odds = np.exp(told - told.max(axis=1, keepdims=True))
    return sizes * (odds @ RATIOS**2) / odds.sum(axis=1)


def _nearby(values: np.ndarray) -> np.ndarray:
    """Means over the times next to each one."""
    return np.array([values[max(0, t - NEAR) : t + NEAR + 1].mean(axis=0) for t in range(len(values))])


def _evidence(rates: np.ndarray, gaps: np.ndarray, C: np.ndarray, size: float) -> np.ndarray:
    """The log-likelihood of every ratio, by what no straight line explains of the gaps at one time."""
    # Orthogonal to the linear term, whose coefficient may be anything.
    off = np.linalg.qr(np.column_stack([rates, np.eye(rates.size)[:, 1:]]))[0][:, 1:]
    at = off.T @ _powers(rates, 0.0)[0]
    found, unit = off.T @ gaps, max(np.trace(C), size)
    if not size > 0:
        return np.zeros(RATIOS.size)
    covariances = (off.T @ C @ off + size * RATIOS[:, None, None] ** 2 * at @ at.T) / unit
    covariances = covariances + 1e-13 * np.eye(found.size)
    fits = np.einsum("i,rij,j->r", found, np.linalg.inv(covariances), found) / unit
    return -0.5 * (np.linalg.slogdet(covariances)[1] + fits)

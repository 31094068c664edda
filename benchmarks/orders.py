"""Every order of convergence that the library claims, measured: tables on stdout and a figure.

    python benchmarks/orders.py [--quick] [--figure docs/orders.png]

In the step h of the Euler solver: the weak error against closed forms in a valley with a moving state v (sampled, with
control variates of known mean that leave almost no noise) and on an ellipse in an oblique metric (no randomness: the
transition operator of the library's own step, composed by quadrature), plain and extrapolated; the strong error between
coupled paths of steps h and h/2 on a circle. In the learning rate η: the weak error of discrete SGD, RMSProp and Adam
under label noise against their slow SDE. Intervals are 95 %, of a straight line through log|error|, wider where that
does not fit (see `slowsde.convergence.fit_order`); an error within 4 standard errors of zero is not fitted.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib as mpl
import numpy as np
from problems import (
    AXES,
    ELLIPSE_START,
    ELLIPSE_WAVES,
    EPS,
    PHI0,
    SIGMA,
    VALLEY_OBSERVABLES,
    VALLEY_START,
    VALLEY_V0,
    C,
    diagonal_network,
    ellipse,
    ellipse_expectation,
    valley,
    valley_moments,
)

import slowsde as ss
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.slow_sde import slow_sde
from slowsde.dynamics.solvers.brownian import StepBrownianPath, step_keys
from slowsde.dynamics.solvers.euler import ManifoldEuler
from slowsde.dynamics.solvers.state import SlowDiffusion, SlowFlow
from slowsde.dynamics.start import start_on_manifold
from slowsde.studies.order_fit import OrderFit, fit_order

mpl.use("agg")
import matplotlib.pyplot as plt

T = 0.25
Row = tuple[str, np.ndarray, np.ndarray, np.ndarray, OrderFit]  # name, steps or rates, errors, standard errors, fit


def row(name: str, h: np.ndarray, errors: np.ndarray, covariance: np.ndarray) -> Row:
    return name, h, errors, np.sqrt(np.diag(covariance)), fit_order(h, errors, covariance)


def show(title: str, rows: list[Row], symbol: str) -> None:
    print(f"\n{title}")
    for name, h, errors, spread, fit in rows:
        order = fit.refusal or f"{fit.order:.3f}  ({fit.interval[0]:.3f}, {fit.interval[1]:.3f})"
        print(f"  {name:<44} order {order}")
        cells = [
            f"{x:.4g}: {e:+.3g}" + (f" ± {s:.1g}" if s > 1e-9 * abs(e) else "")
            for x, e, s in zip(h, errors, spread, strict=True)
        ]
        print(f"      {symbol}: error ± s.e.   " + ",  ".join(cells), flush=True)


def valley_orders(paths: int, steps: list[int]) -> list[Row]:
    """Plain and extrapolated, from the same runs, each with its own key.

    A step of y is linear, y₊ = (1 − k h) y + S_y σ_y ΔW, so that y − E y is a sum of the increments whose variance is
    known. As a control variate at both steps it leaves hardly any sampling error, and the bias to be measured.
    """
    problem, optimizer = valley()
    exact = valley_moments(T)
    found: dict[str, list[tuple[float, float]]] = {}
    for n in steps:
        key, grid = jr.key(n), np.linspace(0, T, 2 * n + 1)
        run = ss.weak_estimate(
            problem, optimizer, VALLEY_START, T, dt=T / n, v0=VALLEY_V0, paths=paths, observables=VALLEY_OBSERVABLES,
            key=key,
        )  # fmt: skip
        fine = increments(key, grid, paths)
        controls = [*linear_part(fine.reshape(paths, n, 2).sum(axis=2)), *linear_part(fine)]
        design = np.stack([np.ones(paths), *controls], axis=1)
        for label, weights in (("plain", [1.0, 0.0]), ("extrapolated", [-1.0, 2.0])):
            for name in VALLEY_OBSERVABLES:
                values = np.array(weights) @ run.values[name]
                solution = np.linalg.lstsq(design, values, rcond=None)[0]
                error = np.std(values - design @ solution, ddof=5) / np.sqrt(paths)
                found.setdefault(f"{label}, valley, E {name}", []).append((solution[0] - exact[name], error))
    rows = {name: np.array(pairs) for name, pairs in found.items()}
    return [row(name, T / np.array(steps), pairs[:, 0], np.diag(pairs[:, 1] ** 2)) for name, pairs in rows.items()]


def linear_part(dW: np.ndarray) -> list[np.ndarray]:
    """M = y − E y after these steps (paths, n) and M² − E M²."""
    n = dW.shape[1]
    v = SIGMA**2 + (VALLEY_V0 - SIGMA**2) * np.exp(-C * T / n * np.arange(n))[:, None]
    s = 1 / (np.sqrt(v) + EPS)
    kept = 1 - 0.25 * s[:, 0] * s[:, 1] * SIGMA[0] ** 2 * T / n
    gain = np.append(np.cumprod(kept[:0:-1])[::-1], 1.0) * s[:, 1] * SIGMA[1]
    M = dW @ gain
    return [M, M**2 - np.sum(gain**2) * T / n]


def increments(key: Any, grid: np.ndarray, paths: int) -> np.ndarray:
    """(paths, steps): the second column of those of the library."""
    with jax.enable_x64(True):
        knots, keys = jnp.asarray(grid), step_keys(key, grid, grid[1])

        def path(index: Any) -> Any:
            brownian = StepBrownianPath(knots, keys, index, 2)
            return jax.vmap(brownian.evaluate)(knots[:-1], knots[1:])[:, 1]

        return np.asarray(jax.jit(jax.vmap(path))(jnp.arange(paths)))


class Increment(dfx.AbstractPath):
    """A driver whose increment is given."""

    value: jax.Array
    t0: float = 0.0
    t1: float = 1.0

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> jax.Array:
        return self.value


def ellipse_orders(steps: np.ndarray, modes: int = 61) -> list[Row]:
    """f ↦ E f(φ₊) as a matrix on trigonometric polynomials, from the library's step at Gauss–Hermite nodes."""
    problem, optimizer = ellipse()
    grid = PHI0 + 2 * np.pi * np.arange(modes) / modes
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    with jax.enable_x64(True):
        sde = slow_sde(problem, optimizer, Coordinates.of(ELLIPSE_START))
        slow = start_on_manifold(sde, jnp.asarray(ELLIPSE_START), None, None)[0]

        @jax.jit
        def after(phi: Any, xi: Any, h: Any) -> Any:
            x = jnp.stack([AXES[0] * jnp.cos(phi), AXES[1] * jnp.sin(phi)])
            noise = Increment(jnp.sqrt(h) * jnp.stack([xi, jnp.zeros(())]))
            terms = dfx.MultiTerm(dfx.ODETerm(SlowFlow(slow)), dfx.ControlTerm(SlowDiffusion(slow), noise))
            x1 = ManifoldEuler(slow).step(terms, jnp.zeros(()), h, (x, None), None, None, False)[0][0]
            return jnp.arctan2(x1[1] / AXES[1], x1[0] / AXES[0])

        step = jax.vmap(jax.vmap(after, (None, 0, None)), (0, None, None))
        ends = [np.asarray(step(jnp.asarray(grid), jnp.asarray(nodes), jnp.asarray(T / n))) for n in steps]
    means: dict[str, list[float]] = {name: [] for name in ELLIPSE_WAVES}
    for n, phi in zip(steps.tolist(), ends, strict=True):
        half = (phi[..., None] - grid) / 2
        near = np.abs(np.sin(half)) < 1e-13
        cardinal = np.where(near, 1.0, np.sin(modes * half) / (modes * np.where(near, 1.0, np.sin(half))))
        transition = np.linalg.matrix_power(np.einsum("q,iqj->ij", weights / weights.sum(), cardinal), n)
        for name, wave in ELLIPSE_WAVES.items():
            means[name].append(float((transition @ wave(grid))[0]))
    rows = []
    for name, wave in ELLIPSE_WAVES.items():
        errors, h = np.array(means[name]) - ellipse_expectation(wave, T), T / steps
        none = np.zeros((steps.size, steps.size))
        rows.append(row(f"plain, ellipse, E {name}", h, errors, none))
        rows.append(row(f"extrapolated, ellipse, E {name}", h[:-1], 2 * errors[1:] - errors[:-1], none[1:, 1:]))
    return rows


def strong_orders(paths: int) -> list[Row]:
    """RMS distance of coupled paths of steps h and h/2, h = T/8 ... T/64."""
    rows, coordinates = [], {"x": lambda x: x[0], "y": lambda x: x[1]}
    for name, factor in (
        ("one noise, along it", lambda x: jnp.stack([-x[1], x[0]])[:, None]),
        ("isotropic noise", 1.0),
    ):
        problem = ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(factor))
        run = ss.weak_estimate(
            problem, ss.sgd(), np.array([1.0, 0.0]), T, dt=T / 8, levels=5, paths=paths, observables=coordinates
        )
        squares = np.sum([np.diff(run.values[axis], axis=0) ** 2 for axis in coordinates], axis=0)
        errors = np.sqrt(squares.mean(axis=1))
        covariance = np.cov(squares) / paths / (4 * np.outer(errors, errors))
        rows.append(row(f"strong, circle, {name}", run.dts[:-1], errors, covariance))
    return rows


def rate_orders(quick: bool) -> list[Row]:
    problem, start = diagonal_network()
    observables = ("trace_hessian", "trace_sqrt_diag_hessian")
    few = 1 if quick else 4
    cases: list[tuple[str, ss.AGM, tuple[float, ...], tuple[int, ...]]] = [
        ("SGD", ss.sgd(), (0.08, 0.04, 0.02, 0.01), (256 * few,) * 4),
        ("RMSProp", ss.rmsprop(c=2.0, eps=0.05), (0.04, 0.02, 0.01), (256 * few, 512 * few, 1024 * few)),
        (
            "Adam, β1=0.9",
            ss.adam(c=2.0, eps=0.05),
            (0.04, 0.028, 0.02, 0.014),
            tuple(few * n for n in (512, 1024, 2048, 4096)),
        ),
    ]
    rows = []
    for name, optimizer, lrs, paths in cases:
        study = ss.convergence_study(problem, optimizer, start, 0.2, lrs=lrs, paths=paths, observables=observables)
        for what in observables:
            rows.append(
                (f"{name}, {what}", study.lrs, study.errors[what], study.standard_errors[what], study.fits[what])
            )
    return rows


MARKERS = "os^DvP"
GREYS = ("0.0", "0.0", "0.35", "0.35", "0.6", "0.6")


def panel(ax: Any, rows: list[Row], slopes: tuple[float, ...], corner: tuple[float, float], length: float) -> None:
    """Errors with 2 s.e. and fitted lines; a fan of reference slopes from `corner` over `length` in the abscissa."""
    for (name, h, errors, spread, fit), marker, grey in zip(rows, MARKERS, GREYS, strict=False):
        size = np.abs(errors)
        order = "no order" if fit.refusal else f"{fit.order:.2f} ({fit.interval[0]:.2f}, {fit.interval[1]:.2f})"
        lower = np.minimum(2 * spread, 0.9 * size)
        style: dict[str, Any] = {"color": grey, "markersize": 6, "capsize": 2, "label": f"{name}: {order}"}
        style["markerfacecolor"] = "white" if marker in "s D P" else grey
        ax.errorbar(h, size, [lower, 2 * spread], fmt=marker, **style)
        if not fit.refusal:
            line = np.array([h.min(), h.max()])
            ax.plot(line, fit.centre[1] * (line / fit.centre[0]) ** fit.order, color=grey, linewidth=1, zorder=1)
    for slope in slopes:
        x, y = corner[0] * np.array([1, length]), corner[1] * np.array([1, length**slope])
        ax.plot(x, y, color="0.5", linestyle="--", linewidth=1)
        ax.annotate(f" slope {slope:g}", (x[1], y[1]), color="0.3", va="center", fontsize="small")
    ax.set(xscale="log", yscale="log")
    ax.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), title="order (95 %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer paths and steps, wider intervals")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "orders.png")
    options = parser.parse_args()
    begun, quick = time.perf_counter(), options.quick
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, float64")
    steps = valley_orders(256, [4, 8, 16] if quick else [4, 6, 8, 12, 16])
    show(f"weak error in the step, valley at t = {T}", steps, "h")
    curved = ellipse_orders(np.array([64, 128, 256, 512, 1024]))
    show(f"weak error in the step, ellipse in an oblique metric at t = {T}, without randomness", curved, "h")
    strong = strong_orders(1024 if quick else 8192)
    show("strong error in the step, between coupled paths of h and h/2", strong, "h")
    rates = rate_orders(quick)
    show("weak error in the learning rate, label noise, discrete − slow at t = 0.2", rates, "η")
    figure, axes = plt.subplots(1, 2, figsize=(10, 6), layout="constrained")
    shown = [steps[0], steps[2], curved[0], curved[1], *strong]
    panel(axes[0], shown, (0.5, 1, 2), (3e-4, 3e-3), 4.0)
    panel(axes[1], rates[::2], (1, 2), (0.011, 0.16), 1.8)
    axes[0].set(xlabel="step  h", ylabel="|error|", title="Euler steps of the slow SDE")
    axes[1].set(xlabel=r"learning rate  $\eta$", title="discrete runs against the slow SDE")
    ticks = [0.01, 0.02, 0.04, 0.08]
    axes[1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[1].tick_params(axis="x", which="minor", labelbottom=False)
    figure.savefig(options.figure, dpi=130)
    print(f"\n{options.figure}, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()

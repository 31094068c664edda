"""`python -m slowsde demo`: two pieces of real work, with tables, figures and the code that made them."""

import inspect
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import slowsde as ss

from .plot import LABELS, plot_comparison
from .studies.comparison import Comparison


def sparse_regression(paths: int = 16) -> dict[str, Comparison]:
    """A diagonal network fits 40 equations in 100 unknowns; the truth has 5 non-zeros. Which solution is picked?"""
    rng = np.random.default_rng(0)
    inputs = rng.choice([-1.0, 1.0], size=(40, 100))
    # 5 of 100 from 40 equations: enough for ‖w‖₁ to have the truth for its minimum, far too few for the least norm.
    truth = np.zeros(100)
    truth[rng.choice(100, 5, replace=False)] = rng.choice([-1.0, 1.0], 5)

    def weights(p: PyTree) -> Any:
        return p["u"] ** 2 - p["v"] ** 2

    def predict(p: PyTree, z: Any) -> Any:
        return z @ weights(p)

    problem = ss.LeastSquares(predict, inputs, inputs @ truth, noise=ss.LabelNoise(std=2.0))
    start = ss.to_manifold(problem, {"u": np.full(100, 0.3), "v": np.full(100, 0.3)})  # train to zero loss
    metrics = {
        "trace_hessian": "trace_hessian",
        "trace_sqrt_diag_hessian": "trace_sqrt_diag_hessian",
        "l1_norm": lambda p: jnp.sum(jnp.abs(weights(p))),
        "test_error": lambda p: jnp.sum((weights(p) - truth) ** 2),  # E over fresh inputs of (f(z) − y)²
    }
    found = {}
    # Rates at which `validity` does not call the runs invalid: 27 000 and 62 500 steps. Adam is at the truth at t = 1,
    # SGD at 20.
    for name, optimizer, t1, lr in [("SGD", ss.sgd(), 24.0, 0.03), ("Adam", ss.adam(c=5.0, eps=1e-2), 1.0, 0.004)]:
        # Geometric, for the logarithmic axis of the figure.
        times = np.concatenate([[0.0], np.geomspace(t1 / 300, t1, 30)])
        slow = ss.simulate(problem, optimizer, start, t1, save_at=times, metrics=metrics)
        fast = ss.run_discrete(problem, optimizer, start, t1, lr=lr, paths=paths, save_at=times, metrics=metrics)
        found[name] = ss.compare(slow, fast)
    return found


def digits(paths: int = 8) -> dict[str, Comparison]:
    """Handwritten 3s and 8s: a tanh network with 2113 parameters fits 40 of them; Adam then drifts along Γ."""
    images, labels = _handwritten_digits()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero((labels == 3) | (labels == 8)))
    x, y = images[chosen] / 16, np.where(labels[chosen] == 3, -1.0, 1.0)
    rng = np.random.default_rng(1)
    start = {
        "W": 0.3 * rng.normal(size=(32, 64)),
        "b": np.zeros(32),
        "a": rng.normal(size=32) / np.sqrt(32),
        "a0": np.zeros(()),
    }

    def predict(p: PyTree, image: Any) -> Any:
        return p["a"] @ jnp.tanh(p["W"] @ image + p["b"]) + p["a0"]

    problem = ss.LeastSquares(predict, x[:40], y[:40], noise=ss.LabelNoise(std=1.0))
    start = ss.to_manifold(problem, start)  # train to zero loss
    predict_all = jax.vmap(predict, (None, 0))
    metrics = {
        "trace_sqrt_diag_hessian": "trace_sqrt_diag_hessian",
        "trace_hessian": "trace_hessian",
        "test_error": lambda p: jnp.mean((predict_all(p, x[40:]) - y[40:]) ** 2),
        "one_prediction": lambda p: predict(p, x[40]),
    }
    optimizer = ss.adam(c=10.0, eps=0.03)
    slow = ss.simulate(problem, optimizer, start, 0.1, save_at=21, metrics=metrics)
    found = {}
    # Two rates, so that the gap is seen to fall with η.
    for lr in (0.004, 0.002):
        fast = ss.run_discrete(problem, optimizer, start, 0.1, lr=lr, paths=paths, save_at=21, metrics=metrics)
        found[f"Adam, lr={lr}"] = ss.compare(slow, fast)
    return found


def plot_sparse_regression(found: dict[str, Comparison], fig: Any = None) -> Any:
    """The four observables of both optimizers over slow time, slow curves and discrete means with bands."""
    styles = {"SGD": ("#14365c", "o"), "Adam": ("#dd7a34", "^")}
    names = LABELS | {"l1_norm": r"$\|w\|_1$", "test_error": "test error"}
    fig, axes = _panels(fig, 4)
    for ax, observable in zip(axes, next(iter(found.values())).gap, strict=True):
        for name, comparison in found.items():
            colour, marker = styles[name]
            _slow_and_discrete(ax, comparison, observable, name, colour, marker)
        ax.set_xscale("log")
        ax.set_xlim(1.5e-3, 40)
        ax.set_ylabel(names[observable])
        if observable == "l1_norm":
            ax.axhline(5, color="0.5", linewidth=0.8, linestyle=":")
            ax.annotate("truth", (2e-3, 5.05), color="0.4", fontsize=7)
    axes[-1].legend(frameon=False, fontsize=7, loc="lower left")
    return fig


def plot_digits(found: dict[str, Comparison], fig: Any = None) -> Any:
    """Sharpness, test error and one prediction: the slow flow and discrete runs at two learning rates."""
    styles = [("#dd7a34", "s"), ("#14365c", "o")]
    names = LABELS | {"test_error": "test error (mean square)", "one_prediction": "prediction, unseen digit"}
    fig, axes = _panels(fig, 4)
    first = next(iter(found.values()))
    for ax, observable in zip(axes, first.gap, strict=True):
        for (colour, marker), comparison in zip(styles, found.values(), strict=True):
            lr = comparison.discrete.stats["lr"]
            _discrete(ax, comparison, observable, rf"Adam, $\eta$={lr:g}", colour, marker)
        ax.plot(first.slow.ts, first.slow.metrics[observable][0], color="black", linewidth=1.6, label="slow SDE")
        ax.set_ylabel(names[observable])
        ax.set_xlim(-0.002, 0.102)
    axes[0].legend(frameon=False, fontsize=7)
    return fig


def run(folder: str | Path = "slowsde-demo") -> list[Path]:
    """Both demos: prints code, tables and times, writes the figures to `folder` and returns their paths."""
    import matplotlib

    # Files only: the demo also runs without a display.
    matplotlib.use("agg")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _handwritten_digits()  # fail at once if scikit-learn is missing
    written = []
    for work, plot in ((sparse_regression, plot_sparse_regression), (digits, plot_digits)):
        started = time.perf_counter()
        print(f"\n{'=' * 100}\n{work.__doc__}\n{'=' * 100}\n")
        print("import jax, jax.numpy as jnp, numpy as np\nimport slowsde as ss\n\n" + inspect.getsource(work))
        found = work()
        for name, comparison in found.items():
            print(f"--- {name}\n{comparison.table()}")
            slow, fast = comparison.slow.stats["seconds"], comparison.discrete.stats["seconds"]
            print(f"  seconds, compilation included: slow {slow:.1f}, discrete {fast:.1f}\n")
        path = folder / f"{work.__name__}.png"
        plot(found).savefig(path, dpi=200)
        written.append(path)
        print(f"figure: {path}   ({time.perf_counter() - started:.0f} s)")
    return written


def _slow_and_discrete(ax: Any, comparison: Comparison, observable: str, name: str, colour: str, marker: str) -> None:
    _discrete(ax, comparison, observable, f"{name}, {comparison.discrete.paths} runs", colour, marker)
    slow = comparison.slow
    ax.plot(slow.ts, slow.metrics[observable][0], color=colour, linewidth=1.6, label=f"{name}, slow SDE")


def _discrete(ax: Any, comparison: Comparison, observable: str, label: str, colour: str, marker: str) -> None:
    points = {"linestyle": "none", "marker": marker, "markersize": 3.5, "markerfacecolor": "white"}
    plot_comparison(
        comparison,
        ax=ax,
        name=observable,
        slow_style={"linewidth": 0},
        slow_label=None,
        discrete_label=label,
        discrete_style={"color": colour, "markevery": 2, **points},
    )


def _panels(fig: Any, count: int) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    fig = fig or plt.figure(figsize=(2.75 * count, 2.7), layout="constrained")
    return fig, fig.subplots(1, count)


def _handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('The demo needs scikit-learn for its digits: pip install "slowsde[demo]".') from error
    found: Any = load_digits()
    return found.data, found.target

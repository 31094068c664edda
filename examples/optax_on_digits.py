"""optax.adam on handwritten digits against the slow SDE, and a training run that the slow SDE takes over.

    python examples/optax_on_digits.py [figure.png]

A tanh network with 2113 parameters fits 40 images of 3s and 8s; fresh noise on the labels then drives it along the
manifold of exact fits. Two questions, about two minutes on two cores:

1. From a point of the manifold, does `optax.adam`, bias correction and all, do what the slow SDE says?
2. A training loop with `optax.adam` from random weights has just fitted the data. Where is it heading? Its parameters
   and the second moment in its Optax state are all that the slow SDE needs; then 8 runs go on to show the answer.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from sklearn.datasets import load_digits

import slowsde as ss

C, EPS, STD, END = 10.0, 0.03, 1.0, 0.1  # c = (1−β2)/η², ε, label noise, the slow time t = kη² at which runs end
REAL = ss.adam(C, eps=EPS, bias_correction=True)
OBSERVABLES = {
    "trace_sqrt_diag_hessian": r"$\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$",
    "test_error": "test error (mean square)",
}


def adam(lr: float) -> optax.GradientTransformation:
    """The Adam of Optax at learning rate lr, with β2 = 1 − c·lr²."""
    return optax.adam(lr, b2=1 - C * lr**2, eps=EPS)


def predict(p: Any, image: Any) -> Any:
    """A network of one hidden layer: negative for a 3, positive for an 8."""
    return p["a"] @ jnp.tanh(p["W"] @ image + p["b"]) + p["a0"]


def digits() -> tuple[ss.LeastSquares, dict[str, Any], dict[str, Any]]:
    """The problem, random weights, and what is watched."""
    found: Any = load_digits()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero((found.target == 3) | (found.target == 8)))
    x, y = found.data[chosen] / 16, np.where(found.target[chosen] == 3, -1.0, 1.0)
    rng = np.random.default_rng(1)
    weights = {"W": 0.3 * rng.normal(size=(32, 64)), "a": rng.normal(size=32) / np.sqrt(32)}
    weights |= {"b": np.zeros(32), "a0": np.zeros(())}
    predict_all = jax.vmap(predict, (None, 0))
    metrics = {
        "trace_sqrt_diag_hessian": "trace_sqrt_diag_hessian",
        "test_error": lambda p: jnp.mean((predict_all(p, x[40:]) - y[40:]) ** 2),
    }
    return ss.LeastSquares(predict, x[:40], y[:40], noise=ss.LabelNoise(STD)), weights, metrics


def train(problem: ss.LeastSquares, weights: Any, lr: float, steps: int, saves: int = 30) -> tuple[Any, Any, Any]:
    """An ordinary float32 training loop: parameters and optimizer state after `steps` steps of optax.adam.

    Also the parameters at `saves` times on the way, leaves (saves, ...).
    """
    optimizer = adam(lr)
    images, labels = jnp.asarray(problem.inputs, jnp.float32), jnp.asarray(problem.targets, jnp.float32)

    def loss(params: Any, key: Any) -> Any:
        noisy = labels + STD * jax.random.rademacher(key, labels.shape, jnp.float32)
        return jnp.mean((jax.vmap(predict, (None, 0))(params, images) - noisy) ** 2) / 2

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    def to_next_save(carry: Any, keys: Any) -> tuple[Any, Any]:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, carry[0]

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weights)
    keys = jax.random.split(jax.random.key(0), (saves, steps // saves))
    (params, state), history = jax.jit(lambda c, k: jax.lax.scan(to_next_save, c, k))(
        (params, optimizer.init(params)), keys
    )
    return params, state, history


def from_the_manifold(problem: Any, weights: Any, metrics: Any, paths: int = 8) -> dict[float, ss.Comparison]:
    """The slow SDE and optax.adam at two learning rates, from one point of the manifold."""
    start, times = ss.to_manifold(problem, weights), np.linspace(0, END, 21)
    slow = ss.simulate(problem, REAL, start, END, save_at=times, metrics=metrics)
    found = {}
    for lr in (0.004, 0.002):
        fast = ss.run_discrete(
            problem, adam(lr), start, END, lr=lr, like=REAL, paths=paths, save_at=times, metrics=metrics
        )
        found[lr] = ss.compare(slow, fast)
    return found


def handed_over(
    problem: Any, weights: Any, metrics: Any, lr: float = 0.002, steps: int = 3000, paths: int = 8
) -> tuple[ss.Comparison, dict[str, ss.Trajectory], tuple[np.ndarray, np.ndarray]]:
    """A training run is stopped, its end predicted from its state, and let go on.

    Also the predictions of a second moment that is not corrected for its start or not handed over at all, and times
    and tr Diag(H)^½ on the way to the stop. (Along its flattest directions the loop has not come to rest on Γ by then:
    `compare` warns of that relaxation.)
    """
    params, state, history = train(problem, weights, lr, steps)
    t0, b2 = steps * lr**2, 1 - C * lr**2
    times = np.linspace(t0, END, 21)
    common: dict[str, Any] = {"t0": t0, "save_at": times, "metrics": metrics}

    def predicted(v0: Any) -> ss.Trajectory:
        return ss.simulate(problem, REAL, params, END, v0=v0, **common)

    slow = predicted(ss.from_optax_state(state, b2=b2))
    others = {"uncorrected": predicted(ss.from_optax_state(state)), "not handed over": predicted(None)}
    fast = ss.run_discrete(problem, adam(lr), params, END, lr=lr, v0=state, like=REAL, paths=paths, **common)
    saved = [jax.tree.map(lambda leaf, i=i: leaf[i], history) for i in range(len(history["a0"]))]
    sharpness = [float(ss.metrics.trace_sqrt_diag_hessian(problem, p)) for p in saved]
    watched = t0 * np.arange(1, len(saved) + 1) / len(saved), np.array(sharpness)
    return ss.compare(slow, fast), others, watched


def plot(
    compared: dict[float, ss.Comparison],
    taken_over: ss.Comparison,
    others: dict[str, ss.Trajectory],
    watched: tuple[np.ndarray, np.ndarray],
) -> Any:
    """Above from the manifold, below from the training run."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(7.2, 5.2), layout="constrained", sharex=True)
    styles = {0.004: ("#dd7a34", "s"), 0.002: ("#14365c", "o")}
    for column, (name, label) in enumerate(OBSERVABLES.items()):
        for row, runs in enumerate((compared, {taken_over.discrete.stats["lr"]: taken_over})):
            ax = axes[row, column]
            for lr, comparison in runs.items():
                colour, marker = styles[lr]
                points = {"linestyle": "none", "marker": marker, "markersize": 4, "markerfacecolor": "white"}
                ss.plot.plot_comparison(
                    comparison,
                    ax=ax,
                    name=name,
                    slow_label=None,
                    slow_style={"linewidth": 0},
                    discrete_label=rf"optax.adam, $\eta$={lr:g} (mean of {comparison.discrete.paths})",
                    discrete_style={"color": colour, "markevery": 2, **points},
                )
            slow = next(iter(runs.values())).slow
            ax.plot(slow.ts, slow.metrics[name][0], color="black", linewidth=1.6, label="slow SDE", zorder=6)
            ax.set_ylabel(label)
            ax.set_xlabel(ss.plot.TIME if row else "")
        ax, wrong = axes[1, column], others["uncorrected"]
        ax.plot(wrong.ts, wrong.metrics[name][0], "--", color="0.45", label=r"slow SDE, $\nu$ not corrected")
        ax.axvline(taken_over.ts[0], color="0.7", linewidth=0.8, zorder=0)
    for ax, title in zip(axes[:, 0], ("from a point of the manifold", "training, handed over"), strict=True):
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set_ylim(top=ax.get_ylim()[1] + 0.15 * np.ptp(ax.get_ylim()))
    axes[1, 0].plot(*watched, color="0.45", linewidth=0.8, label="training loop, iterates (not on $\\Gamma$)")
    for ax in axes[:, 0]:
        ax.legend(frameon=False, fontsize=7.5, loc="upper right", handlelength=1.5)
    return fig


def main(path: str | Path) -> None:
    """Both questions: tables, and the figure at `path`."""
    mpl.use("agg")
    started = time.perf_counter()
    problem, weights, metrics = digits()
    compared = from_the_manifold(problem, weights, metrics)
    for comparison in compared.values():
        print(comparison.table(), "\n")
    taken_over, others, watched = handed_over(problem, weights, metrics)
    print(f"training run, handed over at t={taken_over.ts[0]:g}\n{taken_over.table()}")
    for how, other in others.items():
        ends = ", ".join(f"{name} {other.metrics[name][0, -1]:.6g}" for name in OBSERVABLES)
        print(f"  second moment {how}: {ends} at t={other.ts[-1]:g}")
    plot(compared, taken_over, others, watched).savefig(path, dpi=200)
    print(f"figure: {path}   ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "optax_on_digits.png")

"""Discrete runs through a sparse end, where the rank of H falls: gaps, verdicts, and the figure docs/sparse_end.png.

    python benchmarks/sparse_end.py [--figure docs/sparse_end.png]

Two of 20 weights from 10 equations by a diagonal network, Adam (c = 2, ε = 10⁻²), all 40 parameters even at the start.
"""

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

import slowsde as ss

mpl.use("agg")
import matplotlib.pyplot as plt

WEIGHTS, EQUATIONS, END, PATHS = 20, 10, 5.0, 32
RATES = (0.04, 0.02, 0.01)
DRAWN = 0.02
SHARPNESS = "trace_sqrt_diag_hessian"
INPUTS = np.random.default_rng(1).choice([-1.0, 1.0], size=(EQUATIONS, WEIGHTS))
PROBLEM = ss.LeastSquares(
    lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), INPUTS, INPUTS[:, 0] - INPUTS[:, 1], ss.LabelNoise(1.0)
)
ADAM = ss.adam(c=2.0, eps=1e-2)


def rank(w: Any) -> Any:
    """The number of eigenvalues of H above 4·10⁻¹⁰ of the largest."""
    rows = jnp.asarray(INPUTS) * 2
    kernel = (rows * w["u"] ** 2) @ rows.T + (rows * w["v"] ** 2) @ rows.T
    values = jnp.linalg.eigvalsh(kernel)
    return jnp.sum(values > 4e-10 * values[-1]).astype(values.dtype)


def draw(slow: ss.Trajectory, fast: ss.Trajectory, path: Path) -> None:
    """The sharpness above, the rank below; what is discrete is marked, so that grey will do."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5.4, 4.2), sharex=True, height_ratios=[2, 1], layout="constrained"
    )
    for ax, name in ((above, SHARPNESS), (below, "rank")):
        values = fast.metrics[name]
        low, high = np.quantile(values, [0.05, 0.95], axis=0)
        ax.fill_between(fast.ts, low, high, color="0.75", lw=0, label="nine runs of ten")
        ax.plot(fast.ts, values.mean(axis=0), "o", ms=3.5, mfc="white", color="tab:orange", label="their mean")
        ax.plot(slow.ts, slow.metrics[name][0], "-", lw=1.4, color="tab:blue", label="slow SDE")
    above.set_ylabel("tr Diag$(H)^{1/2}$")
    above.set_ylim(bottom=0)
    above.set_title(
        f"Adam, $\\eta$ = {fast.stats['lr']:g}, {fast.paths} runs of {fast.stats['num_steps']} steps", fontsize=9
    )
    above.legend(frameon=False)
    below.set(xlabel="slow time $t = k\\eta^2$", ylabel="rank of $H$", ylim=(0, EQUATIONS + 1), yticks=[2, 6, 10])
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=None)
    figure = parser.parse_args().figure
    start = ss.to_manifold(PROBLEM, {"u": np.full(WEIGHTS, 0.7), "v": np.full(WEIGHTS, 0.5)})
    metrics = {SHARPNESS: getattr(ss.metrics, SHARPNESS), "rank": rank}
    slow = ss.simulate(PROBLEM, ADAM, start, END, save_at=401, metrics=metrics)
    for lr in RATES:
        fast = ss.run_discrete(PROBLEM, ADAM, start, END, lr=lr, paths=PATHS, save_at=51, metrics=metrics)
        gap = ss.compare(slow, fast).relative_gap(SHARPNESS)
        print(f"gap {100 * gap:.2g} %; validity {ss.validity(PROBLEM, ADAM, slow, lr).summary}")
        if figure is not None and lr == DRAWN:
            draw(slow, fast, figure)


if __name__ == "__main__":
    main()

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Local geometry: how uneven is the Hessian where an optimizer goes?
#
# **Question.** Adam divides each coordinate by its own scale. Does it also go where the scales are *less* different?
# And does it, later, among minimizers?
#
# **Theory.** Jiang, Malik and Li (2023) measure unevenness by
# $R_{\mathrm{med}} = \max_i|H_{ii}| / \mathrm{median}_i|H_{ii}|$, at equal training loss. For a two-layer linear
# network $f(x) = a^\top Wx$ of $m$ hidden units, inputs of mean square 1 with covariance $C$,
# $$H_{W_{ij}W_{ij}} = a_i^2, \qquad H_{a_ia_i} = w_i^\top C w_i, \qquad w_i \text{ the rows of } W.$$
# From a small random start gradient descent amplifies what it finds, so that the $a_i$ stay as different as Gaussian
# numbers; the signs that Adam begins with make all $|a_i|$ alike. Hence $R_{\mathrm{med}} = 1 + o(1)$ within a layer
# for Adam, at least of order $\ln m$ for SGD with momentum.
#
# Once the data are fitted, $W^\top a = \beta$, label noise moves the network along $\Gamma$: SGD down $\mathrm{tr}\,H$,
# Adam down $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$. With rows $w_i = c_i\beta$ and $s_i = a_ic_i$, $\sum_i s_i = 1$, in
# $d$ dimensions,
# $$\mathrm{tr}\,H = \sum_i d\,a_i^2 + |\beta|_C^2\,c_i^2 \ge 2\sqrt d\,|\beta|_C \sum_i |s_i|, \qquad
# \mathrm{tr}\,\mathrm{Diag}(H)^{1/2} = \sum_i d\,|a_i| + |\beta|_C|c_i| \ge 2\sqrt{d\,|\beta|_C}\,\sum_i |s_i|^{1/2}.$$
# To SGD's measure it does not matter how the units share the work. Adam's is concave in the shares: its minimum is
# *one* unit that does everything, and the most uneven Hessian there is. So the slow flow should undo what training did.

# %%
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import slowsde as ss

QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## Network and data

# %%
D, M, N = 8, 32, 16  # inputs, hidden units, samples
SEEDS = 3 if QUICK else 16
METRICS = (
    "loss",
    "r_med",
    "trace_hessian",
    "trace_sqrt_diag_hessian",
    "largest_eigenvalue",
    "adaptive_largest_eigenvalue",
    "adaptive_sharpness",
)


def predict(p, x):
    return p["a"] @ (p["W"] @ x)


def task(seed, noise, size=0.01, spread=1.0):  # weights of the given size; inputs with scales from 1 to `spread`
    rng = np.random.default_rng(seed)
    inputs, beta = rng.normal(size=(N, D)), rng.normal(size=D)
    inputs *= np.geomspace(1, spread, D) / np.sqrt(np.mean(inputs**2, axis=0))
    targets = inputs @ beta / np.sqrt(np.mean((inputs @ beta) ** 2))
    start = {"a": size * rng.normal(size=M), "W": size * rng.normal(size=(M, D))}
    return ss.LeastSquares(predict, inputs, targets, noise), start


def within_layers(problem, params):  # R_med of a and of W alone, along a trajectory
    hidden = np.einsum("tij,nj->tin", params["W"], problem.inputs)
    diagonals = {"a": np.mean(hidden**2, axis=-1)}
    columns = np.mean(np.asarray(problem.inputs) ** 2, axis=0)
    diagonals["W"] = (params["a"][..., None] ** 2 * columns).reshape(len(hidden), -1)
    return {f"r_med, {layer}": h.max(axis=1) / np.median(h, axis=1) for layer, h in diagonals.items()}


# %% [markdown]
# ## Training
#
# Mini-batches of four, from weights of size 0.01; SGD has momentum 0.9. Iterates are left where they are
# (`project=False`). An optimizer's geometry at a training loss is that of the first saved iterate at or below it.

# %%
LEVELS = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5)
OPTIMIZERS = {
    "SGD": (ss.sgd(b1=0.9), 0.05),
    "Adam": (ss.adam(ss.slow_rate(1e-3, 0.999), bias_correction=True), 1e-3),
}
STEPS = np.unique(np.concatenate([np.arange(0, 400, 2), np.geomspace(400, 6000, 150).round()]))


def train(name, seed, noise=None, **kind):
    optimizer, lr = OPTIMIZERS[name]
    problem, start = task(seed, noise or ss.MinibatchNoise(4), **kind)
    times = ss.slow_time(STEPS, lr)
    shared = {"lr": lr, "paths": 1, "project": False, "key": jax.random.key(seed)}
    run = ss.run_discrete(problem, optimizer, start, times[-1], save_at=times, metrics=METRICS, **shared)
    layers = within_layers(problem, {name: leaf[0] for name, leaf in run.params.items()})
    return {name: values[0] for name, values in run.metrics.items()} | layers, run


def at_levels(metrics):  # (levels,) of every metric, NaN where the loss is not reached
    reached = [np.flatnonzero(metrics["loss"] <= level) for level in LEVELS]
    return {name: np.array([v[i[0]] if i.size else np.nan for i in reached]) for name, v in metrics.items()}


def collect(**kind):  # metric -> (seeds, levels) for both optimizers
    found = {name: [at_levels(train(name, seed, **kind)[0]) for seed in range(SEEDS)] for name in OPTIMIZERS}
    return {name: {key: np.array([one[key] for one in each]) for key in each[0]} for name, each in found.items()}


def summary(x, digits=2):  # mean ± standard error over seeds
    return f"{np.mean(x):.{digits}f} ± {np.std(x, ddof=1) / np.sqrt(np.size(x)):.{digits}f}"


trained = collect()
print(f"at equal training loss, {SEEDS} seeds; last column: geometric mean of R_med of Adam over that of SGD")
print(f"{'loss':<8}" + "".join(f"{f'{name}: {key}':>18}" for key in ("R_med", "a", "W") for name in OPTIMIZERS))
for i, level in enumerate(LEVELS):
    keys = ("r_med", "r_med, a", "r_med, W")
    cells = "".join(f"{summary(trained[name][key][:, i], 1):>18}" for key in keys for name in OPTIMIZERS)
    ratio = np.log(trained["Adam"]["r_med"][:, i] / trained["SGD"]["r_med"][:, i])
    error = ratio.std(ddof=1) / np.sqrt(SEEDS)
    print(f"{level:<8g}{cells}     {np.exp(ratio.mean()):.2f} × {np.exp(error):.2f}^±1")

# %% [markdown]
# So it is: Adam's $R_{\mathrm{med}}$ is a third to a fifth of SGD's, at every loss, and within the layers it comes to
# 1.2 and 1.3 (SGD 15 and 16, the spread of 32 squared Gaussian numbers). What is left to Adam is the difference
# *between* the layers. Sharpness, at the same points:

# %%
SHARPNESS = METRICS[2:]
print(f"{'':<30}" + "".join(f"{f'{name}, L={level:g}':>20}" for level in LEVELS[1::3] for name in OPTIMIZERS))
for key in SHARPNESS:
    cells = "".join(f"{summary(trained[name][key][:, i]):>20}" for i in (1, 4) for name in OPTIMIZERS)
    print(f"{key:<30}{cells}")

# %% [markdown]
# No sharpness tells what $R_{\mathrm{med}}$ does: $\lambda_{\max}(H)$ and $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$ are
# almost equal, $\mathrm{tr}\,H$ differs by a quarter. The measures in the optimizer's own metric $S$ are those of SGD
# for SGD; for Adam they rise as gradients, and with them $v$, become small: far from $\Gamma$ they describe $v$ more
# than $H$.
#
# ## Where it holds
#
# The ratio of Adam's $R_{\mathrm{med}}$ to that of SGD at loss $10^{-3}$, for other starts and other data: inputs whose
# scales range from 1 to 3, and full batches.

# %%
kinds = {f"weights of size {size:g}": {"size": size} for size in (1e-3, 0.03, 0.1, 0.3)}
kinds |= {
    "inputs of scales 1 to 3": {"spread": 3.0},
    "full batch": {"noise": ss.GaussianNoise(np.zeros((M * D + M, 1)))},
}
for label, kind in {} if QUICK else kinds.items():
    other = collect(**kind)
    i = LEVELS.index(1e-3)
    r = {name: other[name]["r_med"][:, i] for name in OPTIMIZERS}
    ratio = np.log(r["Adam"] / r["SGD"])
    print(f"{label:<26} SGD {summary(r['SGD'], 1):>14}, Adam {summary(r['Adam'], 1):>14}, "
          f"ratio {np.exp(np.mean(ratio)):.2f} × {np.exp(np.std(ratio, ddof=1) / np.sqrt(SEEDS)):.2f}^±1")  # fmt: skip


# %% [markdown]
# It takes a small start. From weights of size 0.1, which are of the size of those that fit, Adam's $R_{\mathrm{med}}$
# is **no smaller** (1.10 times that of SGD), as there is no time for steps of equal size to make weights equal; from
# 0.3 both are far more uneven. With full batches it holds too (0.34), and inputs of different scales harm Adam little,
# SGD much.
#
# ## Along the slow flow
#
# The start is a point of $\Gamma$, the same for both: where the gradient flow from a small start ends. Or, for Adam,
# the even one where its own training ended. Label noise of standard deviation 1, one sample a step.

# %%
NOISE, FEW, PATHS = ss.LabelNoise(std=1.0, batch_size=1), 2 if QUICK else 8, 4
ADAM = ss.adam(5.0, eps=0.1)
FLOWS = {"SGD": (ss.sgd(), 3.0, (0.02,)), "Adam": (ADAM, 0.6, (0.01,) if QUICK else (0.01, 0.0025))}
slow, fast, own, times = {}, {}, {}, {}
for name, (optimizer, t1, rates) in FLOWS.items():
    times[name] = np.concatenate([[0.0], np.geomspace(2e-3, t1, 16)])
    shared = {"save_at": times[name], "metrics": METRICS[1:]}
    for seed in range(FEW):
        problem, start = task(seed, NOISE)
        origin = ss.to_manifold(problem, start)
        slow[name, seed] = ss.simulate(problem, optimizer, origin, t1, **shared).metrics
        for lr in rates:
            run = ss.run_discrete(problem, optimizer, origin, t1, lr=lr, paths=PATHS, **shared)
            fast[name, lr, seed] = run.metrics
        if name == "Adam":
            trained_end = {leaf: values[0] for leaf, values in train("Adam", seed)[1].final_params.items()}
            own[seed] = ss.simulate(problem, optimizer, trained_end, t1, **shared).metrics


def over_seeds(metrics, key):  # (FEW, T): means over paths, of a ratio the geometric one
    return np.array([np.exp(np.mean(np.log(metrics[seed][key]), axis=0)) for seed in range(FEW)])


def of(found, *which):
    return {seed: found[(*which, seed)] for seed in range(FEW)}


shown = {"SGD, slow": of(slow, "SGD"), "Adam, slow": of(slow, "Adam"), "Adam from its own end, slow": own}
shown |= {f"{name}, η={lr:g}": of(fast, name, lr) for name, (_, _, rates) in FLOWS.items() for lr in rates}
print(f"start -> end, {FEW} seeds, discrete runs {PATHS} each; R_med: geometric means, ×÷ their standard error")
print(f"{'':<30}{'R_med':>32}{'tr H':>32}{'tr Diag(H)^½':>34}")
for label, found in shown.items():
    logs = np.log(over_seeds(found, "r_med"))[:, [0, -1]]
    ends = [f"{np.exp(x.mean()):.3g} ×÷ {np.exp(x.std(ddof=1) / np.sqrt(FEW)):.2f}" for x in logs.T]
    line = f"{label:<30}{' -> '.join(ends):>32}"
    for key in ("trace_hessian", "trace_sqrt_diag_hessian"):
        line += f"{' -> '.join(summary(x, 1) for x in over_seeds(found, key)[:, [0, -1]].T):>32}"
    print(line)

# %%
STYLES = {"SGD": ("#10263f", "-", "o"), "Adam": ("#dd7a34", "--", "s")}
fig, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")


def band(ax, x, values, name, label, **kw):
    """Geometric mean over seeds and a band of ± 2 standard errors."""
    mean, error = np.log(values).mean(axis=0), np.log(values).std(axis=0, ddof=1) / np.sqrt(len(values))
    style = {"color": STYLES[name][0], "linestyle": STYLES[name][1], "label": label} | kw
    ax.plot(x, np.exp(mean), **style)
    ax.fill_between(x, *np.exp([mean - 2 * error, mean + 2 * error]), color=style["color"], alpha=0.18, linewidth=0)


for name in FLOWS:
    band(axes[0], LEVELS, trained[name]["r_med"], name, f"{name}, all weights", marker=STYLES[name][2], markersize=4)
    band(axes[0], LEVELS, trained[name]["r_med, W"], name, f"{name}, first layer", linewidth=0.9)
    for ax, key in zip(axes[1:], ("r_med", "trace_sqrt_diag_hessian"), strict=True):
        band(ax, times[name][1:], over_seeds(of(slow, name), key)[:, 1:], name, f"{name}, slow SDE")
        for lr, fill in zip(FLOWS[name][2], ("white", STYLES[name][0]), strict=False):
            mean = np.exp(np.log(over_seeds(of(fast, name, lr), key)).mean(axis=0))[1::2]
            marks = {"color": STYLES[name][0], "marker": STYLES[name][2], "markersize": 4, "markerfacecolor": fill}
            ax.plot(times[name][1::2], mean, linestyle="none", label=rf"{name}, $\eta$={lr:g}", **marks)
for ax, key in zip(axes[1:], ("r_med", "trace_sqrt_diag_hessian"), strict=True):
    kw = {"linestyle": ":", "color": "0.45", "linewidth": 1.8}
    band(ax, times["Adam"][1:], over_seeds(own, key)[:, 1:], "Adam", "Adam from its own end, slow SDE", **kw)
    ax.set(xscale="log", xlabel=ss.plot.TIME)
axes[0].set(xscale="log", yscale="log", xlabel="training loss (falls to the right)", ylabel=r"$R_{\mathrm{med}}$")
axes[0].set(title="training", ylim=(1, 100))
axes[0].invert_xaxis()
axes[1].set(yscale="log", ylabel=r"$R_{\mathrm{med}}$", title=r"label noise, along $\Gamma$", ylim=(1, 1e8))
axes[2].set(ylabel=ss.plot.LABELS["trace_sqrt_diag_hessian"], title=r"label noise, along $\Gamma$", ylim=(0, None))
axes[0].legend(fontsize="small", loc="upper right")
axes[2].legend(fontsize="small", loc="lower left")
if not QUICK:
    here = Path("docs") if Path("docs").is_dir() else Path("../docs")
    fig.savefig(here / "local_geometry.png", dpi=110)
plt.show()

# %% [markdown]
# **What it shows.** Training from a small start is as Jiang, Malik and Li say: the Hessian's diagonal is 4.5 times less
# uneven at loss $10^{-3}$ where Adam goes (0.22 ×÷ 1.18, 16 seeds) than where SGD with momentum does.
#
# Along $\Gamma$ it is **the other way round**. From one and the same minimizer label noise takes SGD's
# $R_{\mathrm{med}}$ from 14 to 79, as it balances the layers anew ($d\,a_i^2 = |\beta|_C^2 c_i^2$ at rest, a factor of
# $d = 8$ between their curvatures), and Adam's to $10^7$: it descends $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$, from 43 to
# 13, and that is least where few units do the work and the median weight none. Even from where its own training has
# made all units alike ($R_{\mathrm{med}} = 3$, near a maximum in the shares) the flow leaves that evenness, and has 53
# at the same time. So "Adam prefers an even Hessian" is a statement on the way *to* the minimizers, not along them:
# small $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$ is sparse, the opposite of even.
#
# Real Adam follows: in $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$ it ends at 18.4 ± 0.7 for $\eta = 0.01$, at 13.7 ± 0.9 for
# 0.0025, the slow SDE at 12.9 ± 0.9. $R_{\mathrm{med}}$ itself has a ceiling that rises as $\eta$ falls (3e3, then
# 1e5): the median weight is one that fluctuates about zero.
#
# What real networks do on the way, each layer by itself: [layer by layer](12_layer_by_layer.ipynb).

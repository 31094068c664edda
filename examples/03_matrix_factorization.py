# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Deep matrix factorization: what does Adam's bias do to the rank?
#
# **Question.** A product $W = W_L\cdots W_1$ fits a few linear measurements $\langle A_i, W\rangle$ of a matrix of low
# rank. Label noise then moves it along the exact fits. SGD and Adam flatten different things: who finds low rank? The
# paper on the slow SDE reports, for $L=2$ and $5$, that SGD does and that Adam tests worse.
#
# **Theory.** SGD descends $\mathrm{tr}\,H$, Adam $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$. For Gaussian $A_i$ and $L=2$,
# with columns $a$ and rows $b$, they are about
# $$d\,\|W_2\|_F^2 + d\,\|W_1\|_F^2 \qquad\text{and}\qquad d\sum_a |(W_2)_{\cdot a}| + d\sum_b |(W_1)_{b\cdot}|.$$
# The first is least, among the factorizations of a given $W$, at $2d\,\|W\|_*$, the nuclear norm, whatever rotation is
# put between the factors. The second is a group lasso over hidden units: it counts the units that are used. For $L$
# factors the nuclear norm becomes $\sum_i\sigma_i^{2-2/L}$, and what counts units becomes more concave still.

# %%
import functools
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import slowsde as ss

QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## Measurements, networks, starts
#
# Truths of rank one (or two), square Gaussian measurements without noise, weights normal of variance $1/d$ at first.
# Adam as people run it has $\beta_2 = 0.999$ at $\eta = 10^{-3}$, which is $c = (1-\beta_2)/\eta^2 = 1000$: its
# preconditioner follows at once. With $\varepsilon = 10^{-2}$ here; the table below changes that too.

# %%
STD, SEEDS = 2.0, 2 if QUICK else 8
ENDS = {"SGD": 200.0, "Adam": 5.0}
if QUICK:
    ENDS = {"SGD": 5.0, "Adam": 0.1}


def product(p):
    return functools.reduce(lambda right, left: left @ right, [p[name] for name in sorted(p)])


def predict(p, A):
    return (A * product(p)).sum()


def task(seed, d=8, rank=1, measurements=24, depth=2, scale=1.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(d, rank)) @ rng.normal(size=(rank, d))
    truth *= np.sqrt(d) / np.linalg.norm(truth)
    A = rng.normal(size=(measurements, d, d))
    start = {f"W{i + 1}": scale * rng.normal(size=(d, d)) / np.sqrt(d) for i in range(depth)}
    return ss.LeastSquares(predict, A, np.einsum("nij,ij->n", A, truth), noise=ss.LabelNoise(STD)), start, truth


def test_error(params, truth):  # relative, for leaves (..., d, d)
    return np.sum((np.asarray(product(params)) - truth) ** 2, axis=(-2, -1)) / np.sum(truth**2)


def optimizer(name, c=1000.0, eps=1e-2):
    return ss.sgd() if name == "SGD" else ss.adam(c, eps=eps)


# %% [markdown]
# ## Two and five factors
#
# Slow flows from the same point of $\Gamma$, for every seed: 8×8 from 24 measurements of 15 degrees of freedom, and,
# for five factors, 6×6 from 20 of 11.

# %%
NETWORKS = {"$L=2$": {}, "$L=5$": {"d": 6, "measurements": 20, "depth": 5}}
if QUICK:
    NETWORKS = {"$L=2$": {}}
METRICS = ("trace_hessian", "trace_sqrt_diag_hessian")
TIMES = {name: np.concatenate([[0.0], np.geomspace(1e-3, t1, 25)]) for name, t1 in ENDS.items()}


def curves(name, seed, settings):
    problem, start, truth = task(seed, **settings)
    trained = ss.to_manifold(problem, start, rtol=1e-5)
    run = ss.simulate(
        problem, optimizer(name), trained, ENDS[name], save_at=TIMES[name], metrics=METRICS, rtol=1e-4, throw=False
    )
    found = {metric: run.metrics[metric][0] for metric in METRICS}
    return found | {"test_error": test_error({key: leaf[0] for key, leaf in run.params.items()}, truth)}


slow = {
    (network, name): [curves(name, seed, settings) for seed in range(SEEDS)]
    for network, settings in NETWORKS.items()
    for name in ENDS
}


# %%
def summary(x, form=".3f"):
    x = np.asarray(x)
    return f"{np.mean(x):{form}} ± {np.std(x, ddof=1) / np.sqrt(np.size(x)):{form}}"


for network in NETWORKS:
    print(
        f"{network}, means over {SEEDS} seeds ± s.e.: at the start, where SGD ends, where Adam ends, paired difference"
    )
    for metric in (*METRICS, "test_error"):
        first, sgd = (np.array([run[metric][i] for run in slow[network, "SGD"]]) for i in (0, -1))
        adam = np.array([run[metric][-1] for run in slow[network, "Adam"]])
        print(f"  {metric:<26}", *(f"{summary(x):>19}" for x in (first, sgd, adam, adam - sgd)))

# %%
fig, grid = plt.subplots(
    len(NETWORKS), 3, figsize=(10.5, 2.9 * len(NETWORKS)), layout="constrained", squeeze=False, sharex=True
)
STYLES = {"SGD": ("#10263f", "-"), "Adam": ("#dd7a34", "--")}
LABELS = ss.plot.LABELS | {"test_error": "relative test error"}
for row, network in zip(grid, NETWORKS, strict=True):
    for ax, metric in zip(row, (*METRICS, "test_error"), strict=True):
        for name, (colour, dash) in STYLES.items():
            values = np.array([run[metric] for run in slow[network, name]])
            mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(SEEDS)
            ax.plot(TIMES[name], mean, dash, color=colour, label=f"{name} (± s.e. of {SEEDS} seeds)")
            ax.fill_between(TIMES[name], mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        ax.set(xscale="log", xlim=(1e-3, max(ENDS.values())), ylabel=f"{LABELS[metric]}, {network}")
for ax in grid[-1]:
    ax.set_xlabel(ss.plot.TIME)
grid[0, 0].legend(fontsize="small")
plt.show()

# %% [markdown]
# ## What turns the order?
#
# One change at a time, two factors: relative test error at the end and in how many seeds it is below $10^{-2}$. In the
# last row the optimizers themselves run, from the random start and not from $\Gamma$, with label noise from their
# first step on: Adam with $\beta_1=0.9$, and SGD, at the learning rates named, for as long on the slow clock.

# %%
CHANGES = {
    "as above": ({}, {}),
    "c = 1 for 1000": ({}, {"c": 1.0}),
    "ε = 1e-6 for 1e-2": ({}, {"eps": 1e-6}),
    "weights 0.3 times": ({"scale": 0.3}, {}),
    "20 measurements": ({"measurements": 20}, {}),
    "rank 2, 40 measurements": ({"rank": 2, "measurements": 40}, {}),
}
if QUICK:
    CHANGES = {name: CHANGES[name] for name in ("as above", "c = 1 for 1000")}


def end(name, seed, settings, numbers):
    problem, start, truth = task(seed, **settings)
    trained = ss.to_manifold(problem, start, rtol=1e-5)
    run = ss.simulate(problem, optimizer(name, **numbers), trained, ENDS[name], save_at=2, rtol=1e-3, throw=False)
    return test_error({key: leaf[0, -1] for key, leaf in run.params.items()}, truth)


def row(label, errors):
    found = [
        f"{summary(errors[name])}; {np.sum(np.asarray(errors[name]) < 1e-2)} of {len(errors[name])}" for name in ENDS
    ]
    paired = summary(np.subtract(errors["Adam"], errors["SGD"]))
    print(f"{label:<27}", *(f"{text:>24}" for text in (*found, paired)))


print(f"{'':<27}{'SGD':>25}{'Adam':>25}{'Adam − SGD':>25}")
for label, (settings, numbers) in CHANGES.items():
    row(label, {name: [end(name, seed, settings, numbers) for seed in range(SEEDS)] for name in ENDS})

# %%
RATES = {"SGD": 0.04, "Adam": 0.01}
STOPS = {"SGD": 20.0, "Adam": 0.5}
if QUICK:
    STOPS = {"SGD": 0.4, "Adam": 0.02}


def discrete(name, seed):
    problem, start, truth = task(seed)
    chosen = ss.sgd() if name == "SGD" else ss.adam(1000.0, eps=1e-2, bias_correction=True)
    run = ss.run_discrete(problem, chosen, start, STOPS[name], lr=RATES[name], paths=8, save_at=2, project=False)
    return np.mean(test_error(jax.tree.map(lambda leaf: leaf[:, -1], run.params), truth))


row("the optimizers themselves", {name: [discrete(name, seed) for seed in range(min(SEEDS, 4))] for name in ENDS})

# %% [markdown]
# **What it shows.** Each is best in its own measure. SGD ends with the smaller $\mathrm{tr}\,H$, by little for two
# factors (0.29 ± 0.11 of 44) and clearly for five (9.5 ± 0.8 of 40), where Adam's is **not monotone**: it rises again
# while $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$ still falls, as the paper saw. Adam ends with a third of SGD's
# $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$.
#
# The paper's last finding, that Adam tests worse, does **not** appear in the limit $\eta\to0$: at these sizes Adam's
# slow flow recovers the matrix from 24 measurements in all eight seeds and SGD's in two; from 20, and of rank two from
# 40, in all eight against two and seven. With five factors both do. The memory $c$, a smaller $\varepsilon$ and a
# smaller start change nothing. What takes the lead from Adam is **the learning rate**: in the last row, iterates at
# $\eta=0.01$ (SGD: $0.04$) from a random start, neither has recovered anything in four seeds, and Adam tests no better
# than SGD ($0.09\pm0.07$ worse). These iterates are not returned to $\Gamma$, so that what noise adds off $\Gamma$
# is in them, as it is in the test errors that one measures in practice. Whether that is all there is to the paper's
# figure, at its own sizes, is not settled here.

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Deep matrix factorization: what does Adam's bias do to the rank?
#
# **Question.** A product $W = W_3W_2W_1$ fits a few linear measurements $\langle A_i, W\rangle$ of a matrix of rank
# one. Label noise then moves it along the exact fits. SGD and Adam flatten different things: who finds low rank?
#
# **Theory.** SGD descends $\mathrm{tr}\,H$, Adam $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$. For Gaussian $A_i$, with
# columns $a$ and rows $b$,
# $$\mathrm{tr}\,H \approx d\,\|W_3W_2\|_F^2 + \|W_3\|_F^2\|W_1\|_F^2 + d\,\|W_2W_1\|_F^2,$$
# $$\mathrm{tr}\,\mathrm{Diag}(H)^{1/2} \approx d\sum_a |(W_3W_2)_{\cdot a}| +
# \sum_a |(W_3)_{\cdot a}| \sum_b |(W_1)_{b\cdot}| + d\sum_b |(W_2W_1)_{b\cdot}|.$$
# The first does not change when a rotation is put between the factors, the second does: it counts hidden units. For
# diagonal factors of equal size, $W$ with singular values $\sigma_i$, they are
# $$2d\sum_i\sigma_i^{4/3} + \Big(\sum_i\sigma_i^{2/3}\Big)^2 \qquad\text{and}\qquad
# 2d\sum_i\sigma_i^{2/3} + \Big(\sum_i\sigma_i^{1/3}\Big)^2.$$
# The sums with weight $2d$ are convex in $\sigma$ for SGD, concave for Adam: Adam should prefer few singular values
# more strongly, if having to align them with units does not get in the way.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import slowsde as ss

QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## Measurements, network, start
#
# A 5×5 matrix of rank one (9 degrees of freedom), 11 Gaussian measurements, 75 weights from a random start.

# %%
D, MEASUREMENTS, STD, SEEDS = 5, 11, 2.0, 2 if QUICK else 16


def product(p):
    return p["W3"] @ p["W2"] @ p["W1"]


def predict(p, A):
    return (A * product(p)).sum()


def task(seed):
    rng = np.random.default_rng(seed)
    truth = np.outer(rng.normal(size=D), rng.normal(size=D))
    truth *= np.sqrt(D) / np.linalg.norm(truth)
    A = rng.normal(size=(MEASUREMENTS, D, D))
    weights = {name: rng.normal(size=(D, D)) / np.sqrt(D) for name in ("W1", "W2", "W3")}
    problem = ss.LeastSquares(predict, A, np.einsum("nij,ij->n", A, truth), noise=ss.LabelNoise(STD))
    return problem, ss.to_manifold(problem, weights), truth


def test_error(params, truth):  # relative, for leaves (paths, T, D, D)
    return np.sum((product(params) - truth) ** 2, axis=(-2, -1)) / np.sum(truth**2)


# %% [markdown]
# ## Slow flows, and discrete runs beside them
#
# From the same trained start, for every seed. A run that fails is counted and left out.

# %%
OPTIMIZERS = {"SGD": (ss.sgd(), 40.0, 0.02), "Adam": (ss.adam(5.0, eps=0.1), 4.0, 0.004)}
RANK = ss.metrics.effective_rank(product)
METRICS = ("trace_hessian", "trace_sqrt_diag_hessian", RANK)
DISCRETE = range(min(SEEDS, 4))  # seeds with discrete runs
slow, fast, times = {}, {}, {}
for name, (optimizer, t1, lr) in OPTIMIZERS.items():
    t1 = t1 / 20 if QUICK else t1
    times[name] = np.concatenate([[0.0], np.geomspace(1e-3, t1, 31)])
    slow[name], fast[name] = {}, {}
    for seed in range(SEEDS):
        problem, trained, truth = task(seed)
        shared = {"save_at": times[name], "metrics": METRICS, "throw": False}
        run = ss.simulate(problem, optimizer, trained, t1, max_steps=3000, **shared)
        if run.result.any():
            print(f"{name}, seed {seed}: {ss.Result(int(run.result[0])).name} at {run.stats['failed_at']}")
            continue
        slow[name][seed] = run.metrics | {"test_error": test_error(run.params, truth)}
        if seed in DISCRETE:
            run = ss.run_discrete(problem, optimizer, trained, t1, lr=lr, paths=4, **shared)
            good = run.result == ss.Result.SUCCESS
            found = run.metrics | {"test_error": test_error(run.params, truth)}
            fast[name][seed] = {metric: values[good].mean(axis=0) for metric, values in found.items()}
    print(f"{name}: {len(slow[name])} of {SEEDS} slow flows, discrete runs for seeds {list(fast[name])}")

# %% [markdown]
# ## At the end
#
# Means over seeds ± standard error, and differences paired by seed.


# %%
def summary(x):
    return f"{np.mean(x):8.3f} ± {np.std(x, ddof=1) / np.sqrt(np.size(x)):.3f}"


NAMES = ("trace_hessian", "trace_sqrt_diag_hessian", RANK.name, "test_error")
both = sorted(set(slow["SGD"]) & set(slow["Adam"]))
print(f"{'':<26}{'start':>17}{'SGD':>18}{'Adam':>18}{'Adam − SGD':>18}   ({len(both)} seeds)")
for metric in NAMES:
    first = np.array([slow["SGD"][seed][metric][0, 0] for seed in both])
    sgd, adam = (np.array([slow[name][seed][metric][0, -1] for seed in both]) for name in ("SGD", "Adam"))
    print(f"{metric:<26}{summary(first):>17}{summary(sgd):>18}{summary(adam):>18}{summary(adam - sgd):>18}")
print("test error by seed:")
for name in OPTIMIZERS:
    print(f"  {name:<5}", *(f"{slow[name][seed]['test_error'][0, -1]:7.4f}" for seed in both))
print("discrete − slow at the end, mean of 4 runs, by seed:")
for name in OPTIMIZERS:
    for metric in NAMES:
        gaps = [fast[name][seed][metric][-1] - slow[name][seed][metric][0, -1] for seed in fast[name]]
        print(f"  {name:<5}{metric:<26}", *(f"{gap:+9.4f}" for gap in gaps))

# %%
fig, axes = plt.subplots(1, 4, figsize=(12.5, 3.5), layout="constrained")
STYLES = {"SGD": ("#10263f", "o", "-"), "Adam": ("#dd7a34", "s", "--")}
LABELS = ss.plot.LABELS | {RANK.name: "effective rank of $W$", "test_error": "relative test error"}
for ax, metric in zip(axes, NAMES, strict=True):
    for name, (colour, marker, dash) in STYLES.items():
        values = np.array([slow[name][seed][metric][0] for seed in both])
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(both))
        t = np.maximum(times[name], 1e-4)  # the start has no place on a logarithmic axis
        ax.plot(t, mean, color=colour, linestyle=dash, label=f"{name}, slow (± s.e.)")
        ax.fill_between(t, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        shared = [seed for seed in fast[name] if seed in both]
        shift = np.mean([fast[name][seed][metric] - slow[name][seed][metric][0] for seed in shared], axis=0)
        kw = {"linestyle": "none", "marker": marker, "markersize": 4, "markerfacecolor": "white", "markevery": 3}
        ax.plot(t, mean + shift, color=colour, label=f"{name}, slow + gap of discrete", **kw)
    ax.set(xscale="log", xlim=(1e-3, None), xlabel=ss.plot.TIME, ylabel=LABELS[metric])
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# **What it shows.** Each is best in its own measure, over 16 seeds: SGD ends with the smaller $\mathrm{tr}\,H$
# (Adam's exceeds it by 3.4 ± 0.4), Adam with the smaller $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$ (15.9 ± 0.6 against
# 35.1 ± 1.2).
#
# One might fear that a measure that depends on how the factors are rotated harms the rank. With these Gaussian
# measurements it **does not, it helps**: Adam ends at effective rank 1.10 ± 0.06, SGD at 1.55 ± 0.11, and the
# relative test error of Adam is smaller by 0.10 ± 0.03, with recovery to 1e-4 for 13 of 16 seeds (SGD, whose curves
# are almost flat by then: one). That is what the exponents above suggest, and aligning singular vectors with units
# does not prevent it. One seed (the fourth) fails for both. Other measurements, such as single entries of the matrix,
# single out axes and may decide otherwise: change `A` and see.
#
# Discrete runs (four for each of four seeds) end at the same place. The largest gaps, at
# $\mathrm{tr}\,\mathrm{Diag}(H)^{1/2}$ of SGD, may be those of weights near zero, about which iterates fluctuate.

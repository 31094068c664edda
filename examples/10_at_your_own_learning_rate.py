# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # At your own learning rate
#
# **Question.** The slow SDE is a limit $\eta \to 0$. A training run has its own $\eta$, at which the limit is off by a
# few percent of what moves. Can the answer *at that* $\eta$ be had without the run of $1/\eta^2$ steps?
#
# **Theory.** The mean of an observable over discrete runs is smooth in $\eta$, and its value at 0 is that of the slow
# SDE:
# $$\mathbb E f(\theta_k) = f(\zeta(t - \tau)) + D(\eta), \quad D(\eta) = a\eta + b\eta^2 + \dots, \quad t = k\eta^2,$$
# where the delay $\tau = 2\beta_1\eta^2/(1-\beta_1) + \eta\sum_i w_i/(2\lambda_i)$ is what a run takes to get going,
# without momentum and without fluctuations about $\Gamma$ at first. Runs at *larger* rates $2\eta, 4\eta, 8\eta$ cost
# $\frac14, \frac1{16}, \frac1{64}$ of the run at $\eta$, and with them $D(\eta)$ is an interpolation between 0 and
# those rates: `ss.predict`.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import slowsde as ss

QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## A tanh network and three optimizers
#
# Fifteen weights fit four samples; every step draws label noise anew. The optimizer is the same at every rate in that
# $c = (1 - \beta_2)/\eta^2$ is: an Optax transformation is given as a function of the rate.

# %%
rng = np.random.default_rng(0)
inputs, targets = rng.normal(size=(4, 3)), rng.normal(size=4)


def network(p, z):
    return p["a"] @ jnp.tanh(p["W"] @ z + p["b"])


problem = ss.LeastSquares(network, inputs, targets, ss.LabelNoise(std=0.5))
start = {"W": rng.normal(size=(3, 3)), "b": 0.1 * rng.normal(size=3), "a": rng.normal(size=3)}
start = ss.to_manifold(problem, start)

C, EPS, LR, END = 3.0, 0.05, 0.0125, 0.5
NAME = "trace_hessian"
corrected = ss.adam(C, eps=EPS, bias_correction=True)
cases = {
    "RMSProp": (ss.rmsprop(C, eps=EPS), {}),
    "Adam": (ss.adam(C, eps=EPS), {}),
    "optax.adam": (lambda lr: optax.adam(lr, b2=1 - C * lr**2, eps=EPS), {"like": corrected}),
}

# %% [markdown]
# ## Predicted, then run
#
# The rates are chosen by the library: none at which `ss.validity` says "not valid". Each prediction comes with two
# errors, of the paths and of the powers of $\eta$ that so few rates do not determine.

# %%
PATHS, HELD = (16, 16) if QUICK else (128, 1024)
found, fast, compared, plain = {}, {}, {}, {}
for name, (optimizer, like) in cases.items():
    given = {"lr": LR, "metrics": NAME, "save_at": 21} | like
    found[name] = ss.predict(problem, optimizer, start, END, paths=PATHS, **given)
    print(f"{name}: {found[name].table()}\n")
for name, (optimizer, like) in cases.items():
    given = {"lr": LR, "metrics": NAME, "save_at": 21, "key": jax.random.key(1)} | like
    real = optimizer if not like else optimizer(LR)
    fast[name] = ss.run_discrete(problem, real, start, END, paths=HELD, **given)
    compared[name], plain[name] = ss.compare(found[name], fast[name]), ss.compare(found[name].slow, fast[name])

# %%
print(f"{'':<12}{'gap of slow SDE':>16}{'of prediction':>15}{'within 2 errors':>17}{'cost':>7}{'as good as':>12}")
for name, prediction in found.items():
    moved = np.ptp(prediction.slow_mean[NAME]) / 100
    gaps = [np.sqrt(np.mean((side[name].gap[NAME]) ** 2)) / moved for side in (plain, compared)]
    within = np.abs(compared[name].gap[NAME]) <= 2 * compared[name].standard_error[NAME] + 1e-9
    print(f"{name:<12}{gaps[0]:>14.2f} %{gaps[1]:>13.2f} %{100 * within.mean():>15.0f} %{prediction.cost:>7.2f}"
          f"{prediction.worth(NAME):>7.0f} runs")  # fmt: skip

# %% [markdown]
# ## The gap as a function of the rate
#
# For Adam, at the end of the run: held runs at five rates, and predictions at rates where nothing was run.

# %%
optimizer, _ = cases["Adam"]
rates = np.array([0.025, 0.05])
asked = np.array([0.005, LR, 0.02]) if QUICK else np.array([0.0025, 0.005, 0.0075, 0.01, LR, 0.015, 0.02])
curve = [
    ss.predict(problem, optimizer, start, END, lr=lr, rates=rates, paths=PATHS, metrics=NAME, save_at=11)
    for lr in asked
]
held = {
    lr: ss.run_discrete(problem, optimizer, start, END, lr=lr, paths=HELD, metrics=NAME, save_at=2)
    for lr in ((LR, 0.05) if QUICK else (0.009, LR, 0.018, 0.025, 0.035, 0.05))
}

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
DARK, WARM = "#10263f", "#d1652a"
for ax, name in zip(axes, ("RMSProp", "optax.adam"), strict=False):
    prediction, run = found[name], fast[name]
    base, values = prediction.slow_mean[NAME], run.metrics[NAME]
    ax.axhline(0, color=DARK, linewidth=1.5, label=r"slow SDE ($\eta \to 0$)")
    gap, error = prediction.mean[NAME] - base, 2 * prediction.error[NAME]
    ax.fill_between(prediction.ts, gap - error, gap + error, color=WARM, alpha=0.25, linewidth=0)
    ax.plot(prediction.ts, gap, color=WARM, label=rf"predicted at $\eta$={LR} (± 2 errors)")
    bars = 2 * values.std(axis=0) / np.sqrt(len(values))
    ax.errorbar(
        run.ts,
        values.mean(axis=0) - base,
        bars,
        fmt="o",
        color="k",
        markersize=3,
        capsize=2,
        label=f"{HELD} runs there",
    )
    for coarse, dashes in zip(prediction.runs, ("--", ":"), strict=False):
        rate = coarse.stats["lr"]
        slow = np.interp(coarse.ts, prediction.slow.ts, prediction.slow.metrics[NAME][0])
        ax.plot(
            coarse.ts, coarse.metrics[NAME].mean(axis=0) - slow, dashes, color="0.5", label=rf"runs at $\eta$={rate:g}"
        )
    ax.set(title=name, xlabel=ss.plot.TIME, ylabel=r"$\mathrm{tr}\,H$, less that of the slow SDE")
    ax.legend(fontsize="small")
axes[0].set_ylim(-0.47, 0.02)  # room for the legend
limit = found["Adam"].slow.metrics[NAME][0, -1]
gap, error = np.array([(p.mean[NAME][-1] - limit, 2 * p.error[NAME][-1]) for p in curve]).T
axes[2].fill_between(np.append(0, asked), np.append(0, gap - error), np.append(0, gap + error), color=WARM, alpha=0.25)
axes[2].plot(np.append(0, asked), np.append(0, gap), color=WARM, label="predicted (± 2 errors)")
for lr, run in held.items():
    values = run.metrics[NAME][:, -1]
    style = {"markerfacecolor": "white"} if lr in rates else {}
    axes[2].errorbar(
        lr,
        values.mean() - limit,
        2 * values.std() / np.sqrt(HELD),
        fmt="o",
        color="k",
        markersize=4,
        capsize=2,
        **style,
    )
axes[2].plot([], [], "ok", markersize=4, label="runs (hollow: at rates it is made of)")
axes[2].plot(0, 0, "s", color=DARK, label="slow SDE")
axes[2].set(
    title=f"Adam at t = {END}", xlabel=r"learning rate $\eta$", ylabel=r"$\mathrm{tr}\,H$, less that of the slow SDE"
)
axes[2].legend(fontsize="small")
if not QUICK:
    here = Path("docs") if Path("docs").is_dir() else Path("../docs")
    fig.savefig(here / "at_your_own_rate.png", dpi=110)
plt.show()

# %% [markdown]
# **What it shows.** At $\eta = 0.0125$ the slow flow is off by 1.6 to 2.5 % of what $\mathrm{tr}\,H$ moves by, the
# prediction by 0.1 to 0.4 %, within its stated errors, for 0.31 of the steps of as many runs. By its errors it is as
# good as 114 runs of Adam, for the price of 40; for RMSProp, whose runs scatter by 0.4 % of $\mathrm{tr}\,H$ alone, as
# good as 21 only: there a few runs at $\eta$ itself do. `worth` tells beforehand, from the interpolated spread.
#
# The error of the paths is for more paths to lower. The other, of the powers of $\eta$ left out, says how much more a
# nearer rate could tell, and is estimated from how far the gaps bend: on 17 studies (three networks, six optimizers)
# held runs lay within twice both errors at 96 % of times where `validity` had nothing against the rates. Where it had,
# from $4\eta$ and $8\eta$, at 82 %, with errors of 0.4 instead of 0.1 % of what moves: so no rates are chosen there,
# and where not even $2\eta$ is left `predict` says which $\eta$ it can serve.

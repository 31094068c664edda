# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Beyond the edge
#
# **Question.** The slow SDE asks that the optimizer be stable about $\Gamma$: $\eta\lambda_{\max}(H) < 2$ for SGD.
# Networks are often trained where it is not: the loss grows sharper along the way until $\lambda_{\max} = 2/\eta$, and
# gradient descent goes on along that edge. What does the library say there, and what describes the optimizer instead?
#
# **Theory.** At the edge the iterates swing across the valley, and the swing pushes them towards flatter places. The
# *central flow* ([Cohen et al. 2024](https://arxiv.org/abs/2410.24206)) is the path of their means over time, with
# $\lambda = \lambda_{\max}(\nabla^2 L)$ and the variance $\sigma^2$ of the swing:
# $$\frac{dw}{ds} = -\nabla L - \tfrac12\sigma^2\nabla\lambda, \qquad s = k\eta, \qquad \sigma^2 \ge 0
# \text{ the least that keeps } \lambda \le 2/\eta.$$
# So $\sigma^2 = 2\langle\nabla\lambda, -\nabla L\rangle/|\nabla\lambda|^2$ at the edge where that is positive, 0 below.
# It has no noise of gradients, the slow SDE lives by it: one is a flow over $1/\eta$ steps, the other over $1/\eta^2$.

# %%
import os
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import slowsde as ss

jax.config.update("jax_enable_x64", True)
QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## A valley that sharpens along the way
#
# $L = \tfrac12 h\,(x - y/5)^2 + \tfrac1{40}(y - 1)^2$ with $h = 20(y^2 + z^2)$: the loss leads $y$ slowly to 1, and $h$
# grows with it. $\Gamma$ is the line $x = \tfrac15$, $y = 1$; along it $z$ is free, and the question is which $z$ an
# optimizer ends at.


# %%
def loss(w):
    x, y, z = w
    return 10 * (y**2 + z**2) * (x - y / 5) ** 2 + (y - 1) ** 2 / 40


ACROSS = np.array([[1.0], [-0.2], [0.0]])  # the noise kicks across the valley
noisy, still = ss.Problem(loss, ss.GaussianNoise(ACROSS)), ss.Problem(loss, ss.GaussianNoise(0.0))
on_manifold, END = np.array([0.2, 1.0, 1.2]), 2.0
Z = {"z": lambda w: w[2]}
slow = ss.simulate(noisy, ss.sgd(), on_manifold, END, metrics=Z | {"sharpness": ss.metrics.largest_eigenvalue})
sharpest = slow["sharpness"][0, 0]
print(f"λ_max = {sharpest:.1f} at the start on Γ: the edge is η = {2 / sharpest:.4f}")

# %% [markdown]
# ## What the library says
#
# `ss.validity` reads it off the slow trajectory, before any discrete run. Beside it is the gap that discrete runs then
# have, as a share of what $z$ moves by in the slow SDE.

# %%
PATHS = 16 if QUICK else 128
rates = (0.01, 0.035) if QUICK else (0.002, 0.004, 0.01, 0.02, 0.035, 0.05)
moved, fast = np.ptp(slow["z"]), {}
print(f"{'η':>6}{'of the edge':>13}   {'verdict':<13}{'gap at t = 2':>15}")
for lr in rates:
    said = ss.validity(noisy, ss.sgd(), slow, lr)
    how = {"lr": lr, "paths": PATHS, "metrics": Z, "save_at": 41, "project": False}
    fast[lr] = ss.run_discrete(noisy, ss.sgd(), on_manifold, END, **how)
    against = ss.compare(slow, fast[lr])
    gap, error = 100 * against.gap["z"][-1] / moved, 100 * against.standard_error["z"][-1] / moved
    print(f"{lr:>6}{said.ratios['sharpness'].max():>13.2f}   {said.verdict:<13}{gap:>8.1f} ± {error:.1f} %")
print(said.reasons[0])

# %% [markdown]
# ## A central flow in a few lines
#
# The least $\sigma^2$ switches on at the edge. A rate at which $\lambda$ is held to $2/\eta$ makes one formula of both
# cases: $\sigma^2 = \max(0,\, 2[\langle\nabla\lambda, -\nabla L\rangle + \kappa(\lambda - 2/\eta)]/|\nabla\lambda|^2)$.
# With $\eta = 0$ there is no edge, and it is the gradient flow.


# %%
def swing(w, edge):
    """σ² at a point, for the edge 2/η."""
    sharpness, slope = jax.value_and_grad(lambda w: jnp.linalg.eigvalsh(jax.hessian(loss)(w))[-1])(w)
    held = -slope @ jax.grad(loss)(w) + 0.2 * edge * (sharpness - edge)
    return jnp.maximum(0, 2 * held / (slope @ slope)), slope


def velocity(s, w, edge):
    variance, slope = swing(w, edge)
    return -jax.grad(loss)(w) - 0.5 * variance * slope


@jax.jit
def central_flow(start, times, edge):
    """(T, 3) positions at times s = kη."""
    control = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    term, saved = diffrax.ODETerm(velocity), diffrax.SaveAt(ts=times)
    return diffrax.diffeqsolve(
        term, diffrax.Tsit5(), 0.0, times[-1], 1e-3, start, edge, saveat=saved, stepsize_controller=control,
        max_steps=100_000,
    ).ys  # fmt: skip


# %% [markdown]
# ## Gradient descent past the edge
#
# Without noise, from starts on the way to $\Gamma$; means over time by a window of 61 steps. Errors are root mean
# square distances to these means along the run, as shares of how far the means get; ± one standard error over starts.

# %%
STEPS, STARTS = (1000, 2) if QUICK else (3000, 8)
WINDOW = np.hanning(63)[1:-1] / np.hanning(63).sum()
rng = np.random.default_rng(0)
starts = np.array([0.05, 0.1, 1.2]) + np.array([0.02, 0.02, 0.05]) * rng.normal(size=(STARTS, 3))


def descent(lr):
    """(starts, STEPS + 1, 3) iterates of gradient descent."""
    end = ss.slow_time(STEPS, lr)
    run = ss.run_discrete(still, ss.sgd(), starts, end, lr=lr, stacked=True, project=False, save_at=STEPS + 1)
    return np.asarray(run.params)


def over_time(iterates):
    """Means over the window, along the axis of steps."""
    return np.apply_along_axis(np.convolve, 1, iterates, WINDOW, mode="valid")


def flows(lr, edge):
    return np.array([central_flow(start, lr * jnp.arange(STEPS + 1), edge) for start in starts])[:, 30:-30]


def shown(values):
    return f"{100 * values.mean():>12.1f} ± {100 * values.std(ddof=1) / np.sqrt(STARTS):.1f} %"


iterates, means, centres, plain = {}, {}, {}, {}
print(f"{'':<13}{'gradient flow':>20}{'central flow':>20}{'z at the end:':>16}")
print(f"{'η':>6}{'2/η':>7}{'off by':>20}{'off by':>20}{'descent':>16}{'gradient':>10}{'central':>9}")
for lr in (0.03, 0.05, 0.06):
    iterates[lr] = descent(lr)
    means[lr], centres[lr], plain[lr] = over_time(iterates[lr]), flows(lr, 2 / lr), flows(lr, 1e9)
    way = np.linalg.norm(means[lr] - means[lr][:, :1], axis=-1).max(axis=1)
    off = [np.sqrt(np.mean(np.sum((f - means[lr]) ** 2, axis=-1), axis=1)) / way for f in (plain[lr], centres[lr])]
    ends = [paths[:, -1, 2].mean() for paths in (means[lr], plain[lr], centres[lr])]
    print(f"{lr:>6}{2 / lr:>7.1f}{shown(off[0]):>20}{shown(off[1]):>20}{ends[0]:>16.3f}{ends[1]:>10.3f}{ends[2]:>9.3f}")

# %% [markdown]
# ## Below the edge, with noise
#
# On $\Gamma$ the gradient vanishes, and $\lambda < 2/\eta$: the central flow stands still, as the gradient flow does.
# The runs do not.

# %%
lr = min(rates)
end = fast[lr]["z"][:, -1]
stands = np.asarray(central_flow(on_manifold, jnp.array([0.0, END / lr]), 2 / lr))[-1, 2]
print(f"η = {lr}, t = {END:g}, that is {ss.steps_in(END, lr)} steps")
print(f"runs          z = {end.mean():.4f} ± {end.std(ddof=1) / np.sqrt(PATHS):.4f}")
print(f"slow SDE      z = {slow['z'][0, -1]:.4f}")
print(f"central flow  z = {stands:.4f}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
DARK, WARM, lr = "#10263f", "#d1652a", 0.06
sharpness = jax.jit(jax.vmap(lambda w: jnp.linalg.eigvalsh(jax.hessian(loss)(w))[-1]))
steps = np.arange(STEPS + 1)
inner = steps[30:-30]
axes[0].plot(inner, sharpness(plain[lr][0]), "--", color="0.4", label="gradient flow")
axes[0].plot(steps, sharpness(iterates[lr][0]), color=WARM, alpha=0.35, linewidth=0.8, label="gradient descent")
axes[0].plot(inner, sharpness(means[lr][0]), color=WARM, label="its mean over time")
axes[0].plot(inner, sharpness(centres[lr][0]), color=DARK, label="central flow")
axes[0].axhline(2 / lr, color="k", linewidth=0.8, linestyle=":")
axes[0].annotate(r"$2/\eta$", (1.01, 2 / lr), xycoords=axes[0].get_yaxis_transform(), va="center")
axes[0].set(title=rf"no noise, $\eta$ = {lr}", xlabel="step $k$", ylabel=r"sharpness $\lambda_{\max}$")
axes[1].plot(inner, plain[lr][0, :, 2], "--", color="0.4", label="gradient flow")
axes[1].plot(steps, iterates[lr][0, :, 2], color=WARM, alpha=0.35, linewidth=0.8)
axes[1].plot(inner, means[lr][0, :, 2], color=WARM, label="gradient descent, mean over time")
axes[1].plot(inner, centres[lr][0, :, 2], color=DARK, label="central flow")
axes[1].set(title=rf"no noise, $\eta$ = {lr}", xlabel="step $k$", ylabel=r"$z$")
lr = min(rates)
middle, spread = fast[lr]["z"].mean(axis=0), 2 * fast[lr]["z"].std(axis=0)
axes[2].axhline(1.2, color="0.4", linestyle="--", label="gradient and central flow")
axes[2].fill_between(fast[lr].ts, middle - spread, middle + spread, color=WARM, alpha=0.2, linewidth=0)
axes[2].plot(fast[lr].ts, middle, "o", color=WARM, markersize=3, label=f"{PATHS} runs (mean ± 2 s.d.)")
axes[2].plot(slow.ts, slow["z"][0], color=DARK, label="slow SDE")
axes[2].set(title=rf"noise, $\eta$ = {lr}", xlabel=ss.plot.TIME, ylabel=r"$z$")
for ax in axes:
    ax.legend(fontsize="small")
if not QUICK:
    here = Path("docs") if Path("docs").is_dir() else Path("../docs")
    fig.savefig(here / "beyond_the_edge.png", dpi=110)
plt.show()

# %% [markdown]
# **What it shows.** The library says beforehand where it has nothing to say: its first ratio is the share of the edge,
# and the gap of discrete runs grows with it, from 5 % of what $z$ moves by where the verdict is "comfortable" to more
# than the whole of it near the edge and past it. Past the edge believe no number of the slow SDE: its start on $\Gamma$
# is a place which the optimizer leaves.
#
# There the central flow takes over. At $\eta = 0.05$ and $0.06$ it is off by 3 to 4 % of the way, where the gradient
# flow is off by 19 and 35 %, and it ends at the right $z$ to 0.01, the flatter the larger $\eta$. Below the edge
# ($\eta = 0.03$) it is the gradient flow, and both are right over these 3000 steps. Over half a million steps with
# noise both are wrong: they stay at $z = 1.2$, where runs go to 0.662 and the slow SDE to 0.688.
#
# | steps | at the edge of stability | well below it |
# |---|---|---|
# | about $1/\eta$ | central flow | gradient flow |
# | about $1/\eta^2$, with noise | neither: run the optimizer, or lower $\eta$ | slow SDE, corrected by `ss.predict` |
#
# Two limits of the comparison: this valley sharpens slowly, over hundreds of steps, and has one direction at the edge.
# The central flow is a law of means over time and needs the first; for several directions $\sigma^2$ becomes a matrix.

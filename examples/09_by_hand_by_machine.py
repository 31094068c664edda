# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # By hand, by machine
#
# **Question.** You have a formula for the loss. What is the slow SDE, as a formula?
#
# **Theory.** On $\Gamma$, the zeros of $m$ functions with gradients $N$ ($m\times p$), everything is rational in $N$
# and the metric $S$: with $K = NSN^\top$ the projector is $\Pi = 1 - SN^\top K^{-1}N$, the fluctuations' covariance
# solves a linear equation $m\times m$, and under label noise, $\Sigma = \alpha H$, all that is left is
# $\dot\zeta = -\tfrac{\alpha}{4}\,\Pi S\,\nabla\langle H, S\rangle$ with $S$ held fixed. `ss.derive` does this with
# SymPy. Three formulas by hand, by `derive`, and beside discrete runs.

# %%
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
from scipy.integrate import solve_ivp

import slowsde as ss

QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
PATHS = 64 if QUICK else 512
delta, epsilon, c, lam = sp.symbols("delta epsilon c lambda", positive=True)

# %% [markdown]
# ## A valley with walls of any shape
#
# $L = \tfrac12 h(y)x^2$, Gaussian noise on both coordinates. By hand: on $\Gamma = \{x = 0\}$ the curvature is $h(y)$,
# $x$ fluctuates with variance $\eta S_x\sigma_x^2/(2h)$, and the mean force of $\tfrac12 h'(y)x^2$ along the valley is
# $\tfrac12h'\cdot S_x\sigma_x^2/(2h)$ per $\eta$. So
# $dy = -\tfrac14 S_xS_y\sigma_x^2(\ln h)'\,dt + S_y\sigma_y\,dW$. By machine, with $h$ left open:

# %%
x, y, sx, sy = sp.symbols("x y sigma_x sigma_y")
h = sp.Function("h")
begun = time.perf_counter()
valley = ss.derive(h(y) * x**2 / 2, [x, y], ss.adam(c, eps=epsilon), sp.diag(sx, sy))
reduced = valley.reduced([y])
assert time.perf_counter() - begun < 2
reduced

# %% [markdown]
# A function and numbers put in give an Ornstein–Uhlenbeck process, whose mean and variance are elementary, and a
# problem for the discrete optimizer:

# %%
settings = {h(y): sp.exp(y**2 / 2), sx: 0.8, sy: 0.5, c: 2, epsilon: 0.05}
special = valley.on(settings)
law = special.reduced([y]).expanded()
at_rest = dict(zip(special.state, special.equilibrium, strict=True))
rate = float((law.drift[0] / y).subs(at_rest))
power = float(sum(e**2 for e in law.diffusion).subs(at_rest))
print(f"dy = {rate:.4f} y dt + {power**0.5:.4f} dW")
metrics = {"y": lambda p: p[1]}
origin = np.array([0.0, 2.0])
fast_valley = ss.run_discrete(
    special.as_problem(), special.as_optimizer(), origin, 2.0, lr=0.02, paths=PATHS, save_at=21, metrics=metrics
)
t = fast_valley.ts
mean = 2 * np.exp(rate * t)
spread = np.sqrt(power * np.expm1(2 * rate * t) / (2 * rate))
y_runs = fast_valley.metrics["y"]
error = y_runs.std(axis=0, ddof=1) / np.sqrt(PATHS)
print(f"at t = 2: mean {mean[-1]:.4f}, {PATHS} runs {y_runs.mean(axis=0)[-1]:.4f} ± {error[-1]:.4f}; "
      f"spread {spread[-1]:.4f}, runs {y_runs.std(axis=0)[-1]:.4f}")  # fmt: skip

# %% [markdown]
# ## uv = 1
#
# One sample, the model $uv$, label noise $\delta$. By hand for SGD: $\mathrm{tr}\,H = u^2+v^2$, whose gradient is
# $2(u, v)$. Its part along $\Gamma$ is what is left without that along $(v, u)$, which does not change $u^2 - v^2$ at
# all: $d(u^2 - v^2)/dt = -\tfrac{\delta^2}{4}\cdot 4(u^2-v^2)$. For Adam (here with $c = \infty$, $\epsilon \to 0$)
# $S$ depends on the point, and by hand it takes a page.

# %%
u, v = sp.symbols("u v", positive=True)
w, s = sp.symbols("w s")
laws = {
    "SGD": ss.derive([u * v - 1], [u, v], ss.sgd(), ss.LabelNoise(delta)),
    "Adam": ss.derive([u * v - 1], [u, v], ss.adam(sp.oo, eps=epsilon), ss.LabelNoise(delta)).on({epsilon: 0}),
    "AdamE": ss.derive([u * v - 1], [u, v], ss.adame(sp.oo, lam, eps=epsilon), ss.LabelNoise(delta)).on({epsilon: 0}),
}
titles = {"SGD": "u² − v²", "Adam": "u − v", "AdamE": "u^(2 − 2λ) − v^(2 − 2λ)"}
observed = {"SGD": u**2 - v**2, "Adam": u - v, "AdamE": u ** (2 - 2 * lam) - v ** (2 - 2 * lam)}
for name, whole in laws.items():
    print(f"{name:<6} w = {titles[name]}:   {whole.reduced({w: observed[name]})},   potential {whole.potential()}")
for name in ("SGD", "Adam"):
    rest = laws[name].potential().stationary_points()
    print(f"{name:<6} u = eˢ, v = e⁻ˢ:   {laws[name].reduced({u: sp.exp(s), v: sp.exp(-s)})}   at rest {rest}")

# %% [markdown]
# One law for all: $u^{2-2\lambda} - v^{2-2\lambda}$ decays at the rate $(1-\lambda)\,\delta^{2-4\lambda}$, AdamE with
# $\lambda = 0$ being SGD and $\lambda = \tfrac12$ Adam, whose rate ½ does not depend on the noise. The equations for
# $u$ and $v$ themselves:

# %%
laws["AdamE"]

# %%
number = {delta: 0.7}
start = np.array([2.0, 0.5])
slow_path = {"save_at": 21, "metrics": {"w2": lambda p: p[0] ** 2 - p[1] ** 2, "w1": lambda p: p[0] - p[1]}}
problem = laws["SGD"].on(number).as_problem()
discrete = {
    "SGD": ss.run_discrete(problem, ss.sgd(), start, 4.0, lr=0.02, paths=64, **slow_path),
    "Adam": ss.run_discrete(problem, ss.adam(20.0, eps=1e-4), start, 4.0, lr=0.005, paths=64, **slow_path),
}
formula = {"SGD": 3.75 * np.exp(-0.49 * discrete["SGD"].ts), "Adam": 1.5 * np.exp(-0.5 * discrete["Adam"].ts)}
for (name, run), key in zip(discrete.items(), ("w2", "w1"), strict=True):
    values = run.metrics[key]
    gap, uncertainty = values.mean(axis=0) - formula[name], values.std(axis=0, ddof=1) / 8
    worst = np.argmax(np.abs(gap))
    print(f"{name:<5} largest gap {gap[worst]:+.4f} ± {uncertainty[worst]:.4f} of {formula[name][0]}")

# %% [markdown]
# ## Two neurons, any activation
#
# $a_1\varphi(w_1z) + a_2\varphi(w_2z)$ fits two labels; $\varphi$ is left open. With two equations in four unknowns
# there are names for the parts: $K = NSN^\top$, the force $T$, and multipliers $\mu$ that hold it against $\Gamma$.

# %%
a1, a2, w1, w2, x1, x2, y1, y2 = sp.symbols("a1 a2 w1 w2 x1 x2 y1 y2")
phi = sp.Function("varphi")
weights, adam = [a1, a2, w1, w2], ss.adam(c, eps=epsilon)
residuals = [a1 * phi(w1 * z) + a2 * phi(w2 * z) - label for z, label in ((x1, y1), (x2, y2))]
begun = time.perf_counter()
network = ss.derive(residuals, weights, adam, ss.LabelNoise(delta))
assert time.perf_counter() - begun < 30
network

# %%
data = {x1: 1.0, x2: -0.6, y1: 0.8, y2: -0.1, delta: 0.6, epsilon: 0.02, c: 5}
tanh = network.on({phi: sp.tanh, **data})
problem, optimizer = tanh.as_problem(), tanh.as_optimizer()
begin = ss.to_manifold(problem, np.array([1.4, -0.6, 0.9, 0.5]))
field = tanh.lambdify()
v0 = np.array([float(e.subs(dict(zip(weights, begin, strict=True)))) for e in tanh.equilibrium])


def flow(time, state):  # the derived formulas, with no library in between
    drift, _, v_drift = field(state[:4], state[4:])
    return np.concatenate([drift, v_drift])


times = np.linspace(0, 3, 31)
by_formula = solve_ivp(flow, (0, 3), np.concatenate([begin, v0]), t_eval=times, rtol=1e-9, atol=1e-11).y[:4].T
slow = ss.simulate(problem, optimizer, begin, 3.0, save_at=times)
fast = ss.run_discrete(problem, optimizer, begin, 3.0, lr=0.01, paths=16 if QUICK else 64, save_at=times)
print(f"formulas against simulate: {np.max(np.abs(by_formula - slow.params[0])):.1e}")
print(f"against discrete runs:     {np.max(np.abs(by_formula - fast.params.mean(axis=0))):.1e}, moved by "
      f"{np.max(np.abs(by_formula[-1] - by_formula[0])):.2f}")  # fmt: skip

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
DARK, WARM = "#10263f", "#d1652a"
axes[0].plot(t, mean, color=DARK, label="formula")
axes[0].fill_between(t, mean - 2 * spread, mean + 2 * spread, color=DARK, alpha=0.15, linewidth=0)
axes[0].plot(t, y_runs.mean(axis=0), "o", color=WARM, markerfacecolor="white", markersize=4, label="discrete Adam")
for sign in (-2, 2):
    axes[0].plot(t[1:], (y_runs.mean(axis=0) + sign * y_runs.std(axis=0))[1:], "_", color=WARM, markersize=6)
axes[0].set(title=r"valley: $dy = -\frac{1}{4}S_xS_y\sigma_x^2(\ln h)'dt + S_y\sigma_y dW$", ylabel="$y$, ± 2 s.d.")
for (name, run), key, style in zip(discrete.items(), ("w2", "w1"), ("-", "--"), strict=True):
    label = {"SGD": r"SGD: $u^2 - v^2 \propto e^{-\delta^2t}$", "Adam": r"Adam: $u - v \propto e^{-t/2}$"}[name]
    axes[1].plot(run.ts, formula[name] / formula[name][0], style, color=DARK, label=label)
    marker = {"SGD": "o", "Adam": "s"}[name]
    values = run.metrics[key].mean(axis=0) / formula[name][0]
    axes[1].plot(run.ts, values, marker, color=WARM, markerfacecolor="white", markersize=4, label=f"discrete {name}")
axes[1].set(title="$uv = 1$", yscale="log", ylabel="over its start")
axes[1].yaxis.set_major_formatter("{x:g}")
axes[1].yaxis.set_minor_formatter("{x:g}")
for k, (symbol, style) in enumerate(zip(("a_1", "a_2", "w_1", "w_2"), ("-", "--", "-.", ":"), strict=True)):
    axes[2].plot(times, by_formula[:, k], style, color=DARK, label=f"${symbol}$, formula")
    axes[2].plot(times[::3], fast.params.mean(axis=0)[::3, k], "o", color=WARM, markerfacecolor="white", markersize=4)
axes[2].set(title=r"two neurons, $\varphi = \tanh$, Adam", ylabel="weights")
for ax, place in zip(axes, ("lower left", "upper right", (0.3, 0.22)), strict=True):
    ax.set_xlabel(ss.plot.TIME)
    ax.legend(fontsize="small", loc=place, ncols=2 if ax is axes[2] else 1)
if not QUICK:
    here = Path("docs") if Path("docs").is_dir() else Path("../docs")
    fig.savefig(here / "by_hand.png", dpi=110)
plt.show()

# %% [markdown]
# **What it shows.** Formulas that take a page by hand come out in a second, with $h$, $\varphi$ and $\lambda$ still
# open. Integrated on their own they are what `simulate` computes, to $6\cdot10^{-7}$. Discrete runs come as near as
# $\eta$ and $1/c$ let them: within 1.2 % of the start for SGD ($\eta = 0.02$), 2.2 % for Adam ($\eta = 0.005$, $c = 20$
# for $\infty$) and 5 % of what moved on the network ($\eta = 0.01$).

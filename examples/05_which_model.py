# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Which model of an optimizer is right, and when?
#
# **Question.** Three continuous models describe the same optimizer. Which of them should be believed after a few steps,
# after $1/\eta$ steps, after $1/\eta^2$ steps, and what does each cost?
#
# **Theory.** Full-batch Adam with learning rate $\eta$ and $1-\beta_2 = c\eta^2$, fresh noise on every label, from a
# start that does *not* fit the data.
#
# - The *backward-error ODE* (Cattaneo, Klusowski, Shigida 2024) knows no noise. It follows the noise-free iterates to
#   $O(\eta^2)$ over $O(1/\eta)$ steps, momentum and bias correction included.
# - The *conventional SDE* (Li, Tai, E 2017 for SGD; Malladi, Lyu, Panigrahi, Arora 2022 for Adam) keeps the gradient
#   and adds noise of the right covariance. For Adam the momentum is a state: in slow time $t = k\eta^2$,
#   $d\theta = -\tfrac1\eta S m\,dt$, $dm = \tfrac{1-\beta_1}{\eta^2}\big((\nabla L - m)\,dt + \eta B\,dW\big)$. To
#   leading order it drops out, $d\theta = -\tfrac1\eta S\nabla L\,dt + SB\,dW$. Proved over $O(1/\eta)$ steps.
# - The *slow SDE* (Li, Wen, Lyu 2025) is the limit $\eta \to 0$ over $O(1/\eta^2)$ steps. It starts *on* the manifold
#   $\Gamma$ of minimizers and stays there.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import slowsde as ss

QUICK = "SLOWSDE_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## One problem, three models
#
# A diagonal network $f(z) = \langle z, u^2 - v^2\rangle$ with six parameters and two equations. All four runs start at
# the same point off $\Gamma$ with $m = v = 0$, and observables are those of the iterates themselves: nothing is
# returned to $\Gamma$. Adam has its $\epsilon$ inside the root, as the backward-error ODE has it.

# %%
inputs = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
problem = ss.LeastSquares(lambda w, z: z @ (w[:3] ** 2 - w[3:] ** 2), inputs, np.ones(2), ss.LabelNoise(std=1.0))
theta0 = np.array([1.3, 0.9, 0.9, 0.4, 0.8, 0.5])
C, B1, EPS, END, PATHS = 2.0, 0.9, 0.1, 1.0, 64 if QUICK else 1024
METRICS = ("trace_hessian", "loss")
OPTIMIZERS = {"Adam": ss.adam_eps_inside(C, b1=B1, eps=EPS, bias_correction=False), "SGD": ss.sgd()}
CONVENTIONAL = {
    "Adam": {
        "conventional SDE": {},
        "without m": {"momentum": False},
        "without m, Euler": {"momentum": False, "solver": "euler"},
    },
    "SGD": {"conventional SDE": {}, "without m, Euler": {"solver": "euler"}},
}
RATES = {"Adam": (0.04,) if QUICK else (0.04, 0.02, 0.01), "SGD": (0.04,) if QUICK else (0.08, 0.04, 0.02)}


def horizons(lr):
    """A few steps, 1/η and 1/η² steps."""
    return {"O(1)": 4, "O(1/η)": round(1 / lr), "O(1/η²)": round(END / lr**2)}


def four_runs(name, lr):
    """The optimizer and its models, saved at the same steps, on the slow clock."""
    end = ss.steps_in(END, lr)
    k = np.unique(np.concatenate([[0, *horizons(lr).values()], np.geomspace(1, end, 14).round()])).astype(int)
    times, optimizer = ss.slow_time(k, lr), OPTIMIZERS[name]
    common = {"save_at": times, "metrics": METRICS, "v0": np.zeros(6) if name == "Adam" else None}
    found = {
        "discrete": ss.run_discrete(problem, optimizer, theta0, times[-1], lr=lr, paths=PATHS, project=False, **common),
        **{
            model: ss.conventional_sde(
                problem, optimizer, theta0, times[-1], lr=lr, paths=PATHS, key=jax.random.key(1), **common, **how
            )
            for model, how in CONVENTIONAL[name].items()
        },
        "slow SDE": ss.simulate(problem, optimizer, theta0, times[-1], **common),
    }
    if name == "Adam":
        ode = ss.backward_error(
            problem, theta0, ss.ode_time(end, lr), lr=lr, b1=B1, b2=1 - C * lr**2, eps=EPS,
            bias_correction=False, save_at=ss.ode_time(k, lr), metrics=METRICS,
        )  # fmt: skip
        found["backward-error ODE"] = ss.on_slow_clock(ode)
    return found


runs = {(name, lr): four_runs(name, lr) for name, rates in RATES.items() for lr in rates}

# %% [markdown]
# ## Gaps at three horizons
#
# Model minus optimizer, in tr *H* and in the loss, ± one standard error.

# %%
MODELS = ("backward-error ODE", "conventional SDE", "without m", "without m, Euler", "slow SDE")
SYMBOLS = {"trace_hessian": "tr H", "loss": "loss"}
print(f"{'':<28}{'steps':>7}{'the optimizer':>18}" + "".join(f"{model:>20}" for model in MODELS))
for (name, lr), found in runs.items():
    compared = {model: ss.compare(found[model], found["discrete"]) for model in MODELS if model in found}
    for observable, symbol in SYMBOLS.items():
        for horizon, steps in horizons(lr).items():
            row = int(np.argmin(np.abs(ss.steps_in(found["discrete"].ts, lr) - steps)))
            values = found["discrete"].metrics[observable][:, row]
            line = f"{f'{name} η={lr:g}':<12}{symbol:<6}{horizon:<10}{steps:>7}"
            line += f"{f'{values.mean():.3f} ± {values.std() / np.sqrt(PATHS):.3f}':>18}"
            for model in MODELS:
                if model in compared:
                    gap, error = (getattr(compared[model], of)[observable][row] for of in ("gap", "standard_error"))
                    line += f"{f'{-gap:+.3f} ± {error:.3f}':>20}"
                else:
                    line += f"{'-':>20}"
            print(line)
    print()

# %% [markdown]
# - **A few steps.** The backward-error ODE is right for Adam, and ever more so as $\eta$ falls. The conventional SDE
#   is about half a step late. Without $m$ it is wrong in the first $1/(1-\beta_1) = 10$ steps: it sets off at full
#   speed where Adam has yet to gather it. For SGD its error falls with $\eta$, and Euler's scheme with steps of
#   $\eta^2$ has none, being SGD itself. The slow SDE starts on $\Gamma$, with zero loss, whatever $\eta$ is.
# - **$1/\eta$ steps.** The iterates have come to $\Gamma$ and begin to drift. The backward-error ODE stays where it
#   landed. The SDEs have the drift; the one with momentum is within its error bars of Adam, as it has also landed where
#   Adam does.
# - **$1/\eta^2$ steps.** The drift is everything. The backward-error ODE never sees it, at any $\eta$. The slow SDE and
#   the conventional SDE *both* have it to $O(\eta)$: this problem gives no reason to call the conventional SDE wrong
#   here, though its proof stops at $1/\eta$. It also has the loss, which the slow SDE has at zero.
#
# ## What they cost

# %%
print(f"{'steps of the solver':<22}" + "".join(f"{f'{name} η={lr:g}':>14}" for name, lr in runs))
for model in ("discrete", *MODELS):
    counts = [found[model].stats if model in found else {} for found in runs.values()]
    print(f"{model:<22}" + "".join(f"{c.get('solver_steps', c.get('num_steps', '-')):>14}" for c in counts))

# %% [markdown]
# The conventional SDE resolves every step of the optimizer, with one gradient each where $m$ is a state and two where
# not, so that it costs as much as the run it describes, or more; so does the backward-error ODE. The slow SDE takes the
# same few dozen steps whatever $\eta$ is (and one path where nothing diffuses). That is the difference over long
# times: not that others are wrong, but that the slow SDE is short, and says *where* the drift goes: down
# $\langle H, S\rangle$.

# %%
STYLES = {
    "backward-error ODE": {"color": "#8a5a9e", "linestyle": ":", "linewidth": 2.2},
    "conventional SDE": {"color": "#3b7f8c", "linestyle": "--", "linewidth": 1.8},
    "without m": {"color": "#3b7f8c", "linestyle": ":", "linewidth": 1.4},
    "slow SDE": {"color": "black", "linestyle": "-", "linewidth": 1.6},
}
POINTS = {"color": "#d1652a", "marker": "o", "markersize": 5, "markerfacecolor": "white", "linestyle": "none"}


def draw(ax, name, observable):
    """All models against the number of steps, at the smallest learning rate."""
    lr = min(RATES[name])
    found = runs[name, lr]
    k = ss.steps_in(found["discrete"].ts, lr)
    values = found["discrete"].metrics[observable]
    mean, spread = values.mean(axis=0), values.std(axis=0)
    ax.fill_between(
        k[1:], *np.quantile(values, (0.025, 0.975), axis=0)[:, 1:], color="#d1652a", alpha=0.15, linewidth=0
    )
    label = f"{name}, mean ± 2 s.e. of {PATHS} runs"  # the band holds 95 % of them
    ax.errorbar(k[1:], mean[1:], 2 * spread[1:] / np.sqrt(PATHS), capsize=2, label=label, **POINTS, zorder=5)
    for model, style in STYLES.items():
        if model in found:
            steps = ss.steps_in(found[model].ts, lr)
            ax.plot(steps[1:], found[model].metrics[observable].mean(axis=0)[1:], label=model, **style)
    for steps, text in ((1 / lr, r"$1/\eta$"), (1 / lr**2, r"$1/\eta^2$")):
        ax.axvline(steps, color="0.7", linewidth=0.8, zorder=0)
        ax.annotate(text, (steps, 1), xycoords=ax.get_xaxis_transform(), xytext=(0, 2), textcoords="offset points",
                    ha="center", color="0.4", fontsize="small")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel(rf"steps $k$, $\eta$={lr:g}")
    ax.set_ylabel(ss.plot.LABELS[observable])


fig, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
draw(axes[0], "Adam", "trace_hessian")
draw(axes[1], "Adam", "loss")
draw(axes[2], "SGD", "trace_hessian")
for ax in axes[[0, 2]]:
    ax.set_ylim(bottom=-1)
    ax.legend(fontsize="small", loc="lower left")

# %% [markdown]
# The loss of Adam, in the middle, shows what each model leaves out (the bands hold 95 % of the runs): the
# backward-error ODE the noise, the conventional SDE without $m$ the momentum, with which Adam starts late and then
# swings past $\Gamma$, the slow SDE everything that is not on $\Gamma$.

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
import functools
import os
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

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
if QUICK:
    CONVENTIONAL = {name: {"conventional SDE": {}} for name in CONVENTIONAL}
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

# %% [markdown]
# ## The backward-error ODE on its own ground
#
# Without noise and over $O(1/\eta)$ steps it should beat its own first-order part, $\dot\theta = -M_n/R_n$. Cattaneo,
# Klusowski and Shigida show it for a network (their $h$ is our $\eta$, $\rho$ is $\beta_2$): full batch,
# $\beta = 0.9$, $\rho = 0.95$, $\epsilon = 10^{-6}$ inside the root. Here that is an MLP of 386 weights, 36–8–10 with
# tanh and cross-entropy, on 100 of scikit-learn's digits cut to their middle $6\times6$ pixels. The iterates are those
# of `optax.adam`, in double precision; the distance is $\|\theta_n - \tilde\theta(nh)\|_\infty$, over all weights.

# %%
BETA, RHO, EPSILON = 0.9, 0.95, 1e-6
images, labels = load_digits(return_X_y=True)
images, labels = images[:100].reshape(-1, 8, 8)[:, 1:-1, 1:-1].reshape(100, -1) / 16, labels[:100]


def mlp_loss(p):
    logits = jnp.tanh(images @ p["W"] + p["b"]) @ p["V"] + p["c"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def mlp_start(rng, inputs=36, hidden=8, classes=10):
    W, V = rng.normal(size=(inputs, hidden)), rng.normal(size=(hidden, classes))
    return {"W": W / np.sqrt(inputs), "b": np.zeros(hidden), "V": V / np.sqrt(hidden), "c": np.zeros(classes)}


@functools.partial(jax.jit, static_argnames=("loss", "steps"))
def optax_adam(loss, params, h, b1, b2, steps):
    """The first iterates of Optax's Adam, ε inside the root, the start first."""
    optimizer = optax.adam(h, b1, b2, eps=0.0, eps_root=EPSILON)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps + 1)[1]


def iterates(loss, params0, h, b1, b2, steps):
    with jax.enable_x64(True):
        params0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), params0)
        return jax.tree.map(np.asarray, optax_adam(loss, params0, h, b1, b2, steps))


STEP_SIZES = 1e-3 / 2.0 ** np.arange(3 if QUICK else 7)
HORIZON = np.linspace(0, 0.05, 51)  # times nh; at the largest h every step
ORDERS = {"first order": False, "second order": True}


def distances(h):  # over HORIZON, for both orders
    adam = iterates(mlp_loss, start, h, BETA, RHO, round(HORIZON[-1] / h))
    n = np.rint(HORIZON / h).astype(int)
    found = {}
    for order, corrected in ORDERS.items():
        ode = ss.backward_error(
            mlp_loss, start, HORIZON[-1], lr=h, b1=BETA, b2=RHO, eps=EPSILON, corrected=corrected, save_at=HORIZON
        )
        gaps = jax.tree.map(lambda a, b: np.abs(a[0] - b[n]).reshape(n.size, -1).max(axis=1), ode.params, adam)
        found[order] = np.max(jax.tree.leaves(gaps), axis=0)
    return found | {"expansion": ode.stats["expansion"].max()}


start = mlp_start(np.random.default_rng(0))
gaps = {h: distances(h) for h in STEP_SIZES}


def slope(order, rates):  # of log max distance in log h, and its standard error
    x, y = np.log(rates), np.log([gaps[h][order].max() for h in rates])
    (slope, _), residual, *_ = np.polyfit(x, y, 1, full=True)
    return slope, np.sqrt(residual[0] / (x.size - 2) / np.sum((x - x.mean()) ** 2))


print(f"largest distance over n ≤ {HORIZON[-1]:g}/h")
print(f"{'h':>10}{'steps':>8}" + "".join(f"{order:>16}" for order in ORDERS) + f"{'|term in h|/|term without|':>30}")
for h in STEP_SIZES:
    errors = "".join(f"{gaps[h][order].max():>16.2e}" for order in ORDERS)
    print(f"{h:>10.2e}{round(HORIZON[-1] / h):>8}{errors}{gaps[h]['expansion']:>30.3f}")
FITTED = STEP_SIZES[-min(4, STEP_SIZES.size) :]
for order in ORDERS:
    print(f"{order}: slope {slope(order, FITTED)[0]:.3f} ± {slope(order, FITTED)[1]:.3f} for h ≤ {FITTED[0]:.2e}")

# %%
SHADES = plt.get_cmap("cividis")(np.linspace(0.85, 0.0, STEP_SIZES.size))
fig, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained", width_ratios=(1, 1, 0.9))
for ax, order in zip(axes, ORDERS, strict=False):
    for h, color in zip(STEP_SIZES, SHADES, strict=True):
        ax.plot(HORIZON[1:] / h, gaps[h][order][1:], color=color, label=f"{h:.1e}")
    ax.set(xscale="log", yscale="log", ylim=(1e-7, 0.1), xlabel="steps $n$", title=f"{order} ODE".replace(" ", "-", 1))
    ax.set_ylabel(r"$\|\theta_n - \tilde\theta(nh)\|_\infty$")
axes[0].legend(title="$h$", fontsize="small", loc="lower right", ncols=2)
for order, (marker, style) in zip(ORDERS, (("s", "--"), ("o", "-")), strict=True):
    errors, (power, error) = np.array([gaps[h][order].max() for h in STEP_SIZES]), slope(order, FITTED)
    axes[2].plot(STEP_SIZES, errors, marker=marker, color="black", linestyle="none", markerfacecolor="white")
    middle = np.exp(np.mean(np.log([gaps[h][order].max() for h in FITTED])))
    line = middle * (FITTED / np.exp(np.mean(np.log(FITTED)))) ** power
    axes[2].plot(FITTED, line, color="black", linestyle=style, label=f"{order}: slope {power:.3f} ± {error:.3f}")
axes[2].set(
    xscale="log", yscale="log", ylim=(2e-5, 0.1), xlabel="$h$", ylabel=r"$\max_n\|\theta_n - \tilde\theta(nh)\|_\infty$"
)
axes[2].legend(fontsize="small", loc="upper left")
plt.show()

# %% [markdown]
# The orders are 1 and 2, for $h \le 1.25\cdot10^{-4}$: the largest distance falls with slopes 0.945 ± 0.005 and 1.99 ±
# 0.07, and at $h = 1.6\cdot10^{-5}$ the second-order ODE is 17 times the nearer. Not at rates that one trains with. At
# $h = 5\cdot10^{-4}$ and $10^{-3}$ it is no nearer than the first-order one: the expansion asks that a gradient hardly
# change within $1/(1-\rho) = 20$ steps, and with $\sqrt\epsilon = 10^{-3}$ those do that pass through zero.
# `stats["expansion"]`, the last column, tells: the correction gains where it is below 0.15 or so.
#
# ## Where the term in $h$ pushes
#
# As $n$ grows the term becomes $-\tfrac{h}{2}\big[\tfrac{1+\beta}{1-\beta} - \tfrac{1+\rho}{1-\rho}\big(1 -
# \tfrac{\epsilon}{r_j^2}\big)\big]\,\partial_j\|\nabla E\|_{1,\epsilon}/r_j$. With small $\epsilon$ its sign is that of
# $\rho - \beta$: for $\rho > \beta$ Adam should climb in $\|\nabla E\|_1$, for $\rho < \beta$ descend. The paper's
# picture is $E = \tfrac12(\tfrac32 - 2\theta_1\theta_2)^2$ from $(2.8, 3.5)$. There $\|\nabla E\|_1 =
# \sqrt{8E}\,(|\theta_1| + |\theta_2|)$, so that at *equal loss* the one-norm says where a path is on its level line, a
# hyperbola.


# %%
def product_loss(w):
    return 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2


ORIGIN, END_TIME = np.array([2.8, 3.5]), 2.8
PANELS = {
    r"$\rho = 0.95$, $h = 0.01$": {f"β = {b:g}": (0.01, b, 0.95) for b in (0.5, 0.9, 0.98)},
    r"$\beta = 0.9$, $h = 0.01$": {f"ρ = {b:g}": (0.01, 0.9, b) for b in (0.5, 0.8, 0.95)},
    r"$\beta = 0.9$, $\rho = 0.95$": {f"h = {h:g}": (h, 0.9, 0.95) for h in (0.0025, 0.005, 0.01)},
}


def product_flow(h, b1, b2, end=END_TIME, **kw):
    options = {"lr": h, "b1": b1, "b2": b2, "eps": EPSILON, "save_at": 281, "throw": False}
    with warnings.catch_warnings():  # where the expansion fails the flow is not drawn
        warnings.simplefilter("ignore", UserWarning)
        ode = ss.backward_error(product_loss, ORIGIN, end, **options, **kw)
    holds = np.maximum.accumulate(np.nan_to_num(ode.stats["expansion"], nan=np.inf)) < 0.9
    return ode.params[0][holds]


def falling(ws):  # up to where the loss first rises
    return ws[: 1 + np.argmax(np.append(np.diff(product_loss(ws.T)) >= 0, True))]


def at_loss(ws, levels):  # ‖∇E‖₁/√(8E) = |θ₁| + |θ₂| where the loss first is at each level, NaN where it never is
    ws = falling(ws)[::-1]  # between steps linear in √E, which is nearly linear in θ
    sums = np.abs(ws).sum(axis=1)
    return np.interp(np.sqrt(levels), np.sqrt(product_loss(ws.T)), sums, left=np.nan, right=np.nan)


settings = list(dict.fromkeys(setting for panel in PANELS.values() for setting in panel.values()))
first_order = product_flow(0.01, 0.9, 0.95, end=2.25, corrected=False)  # the same for all
second_order = {setting: product_flow(*setting) for setting in settings}
adam = {s: iterates(product_loss, ORIGIN, *s, round(END_TIME / s[0])) for s in settings}
LEVELS = np.array([10.0, 1.0, 0.3, 0.1])
plain = at_loss(first_order, LEVELS)
print("one-norm of the gradient at equal loss against the first-order flow, in %: Adam / second-order flow")
print(f"{'':<32}" + "".join(f"{f'E = {level:g}':>18}" for level in LEVELS))
for h, b1, b2 in sorted(settings, key=lambda s: (s[2] - s[1], s[0])):
    cells = [100 * (at_loss(ws, LEVELS) / plain - 1) for ws in (adam[h, b1, b2], second_order[h, b1, b2])]
    line = "".join(
        f"{' / '.join(f'{x:+.2f}' if np.isfinite(x) else '-' for x in pair):>18}" for pair in zip(*cells, strict=True)
    )
    print(f"{f'β = {b1:g}, ρ = {b2:g}, h = {h:g}':<32}{line}")

# %%
LOOKS = (("#8a5a9e", "^", ":"), ("black", "o", "-"), ("#d1652a", "s", "-."))
fig, axes = plt.subplots(2, 3, figsize=(12.5, 7.6), layout="constrained", height_ratios=(1.25, 1))
grid = np.geomspace(20, 0.03, 60)
curve = np.linspace(0.1, 5, 400)
for (title, panel), (plane, norm) in zip(PANELS.items(), axes.T, strict=True):
    whole = plane.inset_axes((0.66, 0.06, 0.33, 0.33))
    for ax in (plane, whole):
        ax.plot(curve, 0.75 / curve, color="0.75", linewidth=4, solid_capstyle="butt", zorder=0)
        ax.plot(*first_order.T, color="0.45", linestyle="--", linewidth=1.4, label="first-order ODE")
    for (label, setting), (color, marker, style) in zip(panel.items(), LOOKS, strict=True):
        ws, flow = falling(adam[setting]), second_order[setting]
        every = {"markevery": max(1, round(0.02 / setting[0])), "markersize": 4.5, "markerfacecolor": "white"}
        for ax in (plane, whole):
            ax.plot(*flow.T, color=color, linestyle=style, linewidth=1.6)
        plane.plot(*ws.T, color=color, marker=marker, linestyle="none", label=f"Adam, {label}", **every)
        flow_gap, gap = (100 * (at_loss(path, grid) / at_loss(first_order, grid) - 1) for path in (flow, ws))
        norm.plot(grid, flow_gap, color=color, linestyle=style, label=f"second-order ODE, {label}")
        norm.plot(grid[::4], gap[::4], color=color, marker=marker, linestyle="none", markersize=4.5, mfc="white")
    whole.plot(*ORIGIN, marker="*", color="black", markersize=7)
    whole.set(xlim=(0, 3.8), ylim=(0, 3.8), xticks=(), yticks=())
    plane.set(xlim=(0.5, 1.0), ylim=(1.2, 1.75), title=title, xlabel=r"$\theta_1$", ylabel=r"$\theta_2$")
    plane.legend(fontsize="small", loc="upper left")
    norm.axhline(0, color="0.45", linestyle="--", linewidth=1.4)
    norm.set(xscale="log", xlim=(20, 0.03), ylim=(-1.6, 2.6), xlabel="loss $E$ (falls to the right)")
    norm.set_ylabel(r"$\|\nabla E\|_1$ at equal loss, against" + "\nthe first-order ODE (%)")
    norm.legend(fontsize="small", loc="upper left")
plt.show()

# %% [markdown]
# **What it shows.** The sign is as the paper says, for Adam itself as for its second-order flow. At $\rho = 0.95 >
# \beta = 0.9$ the one-norm at equal loss is *larger* than along the first-order flow, by 0.6 % at $E = 1$ and 1.4 % at
# $E = 0.1$ ($h = 0.01$); with $\beta = 0.5$ more so. At $\rho = 0.5$ or 0.8, below $\beta$, and at $\beta = 0.98 >
# \rho$ it is *smaller*, by 0.4 to 0.8 % at $E = 0.1$. The effect falls with $h$, a little faster than in proportion at
# $E = 1$: 0.61, 0.27, 0.12 %. So the two momenta choose the minimizer, here by a little: a smaller one-norm is a more
# balanced $(\theta_1, \theta_2)$. Of Adam's deviation the second-order flow has 67 to 85 % at $E = 1$; it is drawn
# while the term in $h$ is less than 0.9 of the one without, and for $\beta = 0.5$ that is too long: it overshoots.

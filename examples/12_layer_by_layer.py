# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Layer by layer: how uneven is the Hessian of a network where an optimizer goes?
#
# **Question.** In [local geometry](07_local_geometry.ipynb) Adam trains a two-layer linear network to a more even
# Hessian than SGD does. Does it in networks that are used, and in each of their layers?
#
# **Theory.** There is none beyond the linear network: this is the experiment of Jiang, Malik and Li (2023), in small.
# For each layer by itself, $R_{\mathrm{med}} = \max_i|H_{ii}| / \mathrm{median}_i|H_{ii}|$ over its weights $i$, at
# equal training loss. They report smaller values for adaptive methods than for SGD with momentum.
#
# **Networks**, biases left out:
#
# - *Convolutional*: two layers of 3×3 filters, 4 and 8 channels, the second with stride 2, GELU, and a dense layer,
#   1604 weights, on 200 of scikit-learn's digits.
# - *Transformer*: one block, width 12, two causal heads, 24 hidden GELUs, RMS norms without weights, 1944 weights. It
#   predicts the next of 512 letters of the Zen of Python, in 32 windows of 16.
#
# Optax's SGD (momentum 0.9), Adam and RMSProp start from the same weights and draw the same mini-batches. The training
# loss is that of all data, a geometric running mean of five records; an optimizer is *at* a loss where it first is
# there or below.

# %%
import codecs
import contextlib
import io
import itertools
import os
from pathlib import Path
from typing import Any, NamedTuple

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
# ## Networks and training


# %%
def patches(x, stride):  # 3×3 neighbourhoods, (n, h, w, c) -> (n, h/stride, w/stride, 9c)
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def convolutional(p, x):
    x = jax.nn.gelu(patches(x, 1) @ p["conv 1"])
    x = jax.nn.gelu(patches(x, 2) @ p["conv 2"])
    return x.reshape(len(x), -1) @ p["dense"]


def normed(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def attention(p, x, heads=2):
    query, key, value = ((normed(x) @ p[name]).reshape(*x.shape[:2], heads, -1) for name in ("query", "key", "value"))
    scores = jnp.einsum("nthd,nshd->nhts", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(np.tri(x.shape[1], dtype=bool), scores, -jnp.inf))
    return jnp.einsum("nhts,nshd->nthd", weights, value).reshape(x.shape) @ p["output"]


def transformer(p, x):
    x = p["tokens"][x] + p["positions"]
    x = x + attention(p, x)
    x = x + jax.nn.gelu(normed(x) @ p["mlp 1"]) @ p["mlp 2"]
    return normed(x) @ p["logits"]


def digits(n=200):
    images, labels = load_digits(return_X_y=True)
    return images[:n].reshape(-1, 8, 8, 1).astype("float32") / 16, labels[:n]


def letters(windows=32, length=16):
    with contextlib.redirect_stdout(io.StringIO()):
        import this  # which prints itself
    text = [c for c in codecs.decode(this.s, "rot13").lower().replace("\n", " ") if c.isalpha() or c == " "]
    numbers = np.unique(text, return_inverse=True)[1]
    return tuple(numbers[i : i + windows * length].reshape(windows, length) for i in (0, 1))


class Network(NamedTuple):
    logits: Any
    layers: dict  # shapes; weights start with variance 1/inputs
    data: tuple
    batch: int
    records: int  # of the training loss, one every `every` steps
    every: int
    levels: tuple
    seeds: int
    rates: dict


NETWORKS = {
    "convolutional network": Network(
        convolutional, {"conv 1": (9, 4), "conv 2": (36, 8), "dense": (128, 10)}, digits(),
        batch=20, records=150 if QUICK else 450, every=2, levels=(1.0,) if QUICK else (1.0, 0.3, 0.1, 0.03),
        seeds=2 if QUICK else 8, rates={"SGD": 0.03, "Adam": 3e-3, "RMSProp": 1e-3},
    ),
    "transformer": Network(
        transformer,
        {"tokens": (25, 12), "positions": (16, 12), **dict.fromkeys(("query", "key", "value", "output"), (12, 12)),
         "mlp 1": (12, 24), "mlp 2": (24, 12), "logits": (12, 25)}, letters(),
        batch=8, records=20 if QUICK else 250, every=4, levels=(2.8,) if QUICK else (2.5, 1.5, 0.7),
        seeds=2 if QUICK else 5, rates={"SGD": 0.1, "Adam": 3e-3, "RMSProp": 3e-3},
    ),
}  # fmt: skip
OPTAX = {
    "SGD": lambda lr: optax.sgd(lr, momentum=0.9),
    "Adam": optax.adam,
    "RMSProp": lambda lr: optax.rmsprop(lr, decay=0.99),
}


def cross_entropy(network, p, inputs, targets):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network.logits(p, inputs), targets))


def starts(network):  # of all seeds, stacked
    def one(seed):
        rng = np.random.default_rng(seed)
        fan_in = {name: 1 if name in ("tokens", "positions") else shape[0] for name, shape in network.layers.items()}
        return {k: (rng.normal(size=s) / np.sqrt(fan_in[k])).astype("float32") for k, s in network.layers.items()}

    return jax.tree.map(lambda *leaves: np.stack(leaves), *(one(seed) for seed in range(network.seeds)))


def train_network(network, name):
    """Every recorded iterate of every seed, and the loss of all data there: leaves (seeds, records, ...)."""
    optimizer, (inputs, targets) = OPTAX[name](network.rates[name]), network.data

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (network.batch,), 0, len(inputs))
        gradient = jax.grad(
            lambda p: cross_entropy(network, p, jnp.asarray(inputs)[batch], jnp.asarray(targets)[batch])
        )
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def record(carry, key):
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key, network.every))
        return carry, (carry[0], cross_entropy(network, carry[0], inputs, targets))

    def run(params, key):
        return jax.lax.scan(record, (params, optimizer.init(params)), jax.random.split(key, network.records))[1]

    keys = jax.vmap(jax.random.key)(np.arange(network.seeds))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(starts(network), keys))


# %% [markdown]
# ## The diagonal of the Hessian
#
# Exact: $H_{ii} = \partial_s^2 L(\theta + se_i)$ at $s = 0$ by two forward derivatives for each weight. Hutchinson's
# estimate, the mean of $z \circ Hz$ over random signs $z$, is the alternative for large networks. Both, and the
# library's `r_med` of all weights, at a start of the convolutional network:


# %%
def hessian_diagonal(network):
    """The compiled function of one seed's weights: diag ∇²L, layer by layer."""
    layers = tuple(network.layers)[-2:] if QUICK else network.layers

    def curvatures(params, name):
        layer = params[name]

        def loss(weights):
            return cross_entropy(network, params | {name: weights}, *network.data)

        def along(i):  # the tangents alone are of every i: what comes before this layer is computed once
            unit = jnp.zeros(layer.size).at[i].set(1).reshape(layer.shape)
            return jax.jvp(lambda w: jax.jvp(loss, (w,), (unit,))[1], (layer,), (unit,))[1]

        block = max(b for b in range(1, 65) if layer.size % b == 0)  # no remainder, which would be compiled again
        return jax.lax.map(along, jnp.arange(layer.size), batch_size=block)

    return jax.jit(lambda params: {name: curvatures(params, name) for name in layers})


def log_r_med(diagonal):
    h = np.abs(diagonal)
    return np.log10(h.max() / np.median(h))


def hutchinson(network, params, probes):
    def loss(p):
        return cross_entropy(network, p, *network.data)

    def probe(key):
        keys = jax.random.split(key, len(params))
        z = {
            k: jax.random.rademacher(one, leaf.shape, leaf.dtype)
            for one, (k, leaf) in zip(keys, params.items(), strict=True)
        }
        return jax.tree.map(jnp.multiply, z, jax.jvp(jax.grad(loss), (params,), (z,))[1])

    products = jax.jit(lambda keys: jax.lax.map(probe, keys))(jax.random.split(jax.random.key(0), probes))
    return {k: np.asarray(leaf.mean(axis=0)) for k, leaf in products.items()}


def library_r_med(network, params):
    """Of all weights, in float64."""
    problem = ss.Problem(lambda p: cross_entropy(network, p, *network.data), ss.GaussianNoise(0.0))
    options = {"lr": 0.1, "paths": 1, "save_at": 2, "project": False, "metrics": ("r_med",)}
    return ss.run_discrete(problem, ss.sgd(), params, ss.slow_time(1, 0.1), **options).metrics["r_med"][0, 0]


if not QUICK:
    network = NETWORKS["convolutional network"]
    one = {k: leaf[0] for k, leaf in starts(network).items()}
    exact = hessian_diagonal(network)(one)
    whole = log_r_med(np.concatenate(list(exact.values())))
    print(f"log10 R_med of all weights: {whole:.5f}, by the library {np.log10(library_r_med(network, one)):.5f}")
    print(f"{'':<16}" + "".join(f"{layer:>10}" for layer in network.layers))
    print(f"{'exact':<16}" + "".join(f"{log_r_med(exact[layer]):>10.2f}" for layer in network.layers))
    for probes in (100, 1000):
        estimate = hutchinson(network, one, probes)
        cells = "".join(f"{log_r_med(estimate[layer]):>10.2f}" for layer in network.layers)
        print(f"{f'{probes} probes':<16}{cells}")

# %% [markdown]
# The estimate is no substitute here. The error of an entry is as large as the rest of its row, whatever the entry is:
# noise raises the largest entry of one layer and the median of another. After 1000 probes (the exact diagonal is 1604
# second derivatives) the dense layer has 1.10 for 0.69. All numbers below are exact.
#
# ## At equal training loss


# %%
def summary(x):  # mean ± standard error over seeds
    return f"{np.mean(x):.2f} ± {np.std(x, ddof=1) / np.sqrt(np.size(x)):.2f}"


def at_equal_loss(network):  # layer, optimizer -> log10 R_med (seeds, levels), NaN where a level is not reached
    diagonal, shape = hessian_diagonal(network), (network.seeds, len(network.levels))
    found = {key: np.full(shape, np.nan) for key in itertools.product(network.layers, OPTAX)}
    for name in OPTAX:
        params, losses = train_network(network, name)
        smooth = np.exp(np.mean(np.lib.stride_tricks.sliding_window_view(np.log(losses), 5, axis=1), axis=-1))
        for seed, level in itertools.product(range(network.seeds), range(len(network.levels))):
            reached = np.flatnonzero(smooth[seed] <= network.levels[level])
            # The middle one of the five records.
            point = {k: leaf[seed, reached[0] + 2] for k, leaf in params.items()} if reached.size else None
            for layer, h in diagonal(point).items() if point else ():
                found[layer, name][seed, level] = log_r_med(h)
    return found


r_med = {name: at_equal_loss(network) for name, network in NETWORKS.items()}
for title, network in NETWORKS.items():
    print(f"{title}: log10 R_med ± s.e. over {network.seeds} seeds, and differences to SGD, seed by seed")
    print(f"{'loss':<6}{'layer':<12}" + "".join(f"{name:>15}" for name in (*OPTAX, "Adam − SGD", "RMSProp − SGD")))
    for (i, level), layer in itertools.product(enumerate(network.levels), network.layers):
        columns = [r_med[title][layer, name][:, i] for name in OPTAX]
        columns += [columns[1] - columns[0], columns[2] - columns[0]]
        print(f"{level:<6g}{layer:<12}" + "".join(f"{summary(x):>15}" for x in columns))
    print()

# %%
COLORS = {"SGD": ("#10263f", "-", "o"), "Adam": ("#dd7a34", "--", "s"), "RMSProp": ("#3b7f8c", ":", "^")}
panels = [(title, layer) for title, network in NETWORKS.items() for layer in network.layers]
fig, axes = plt.subplots(2, 6, figsize=(13, 5), layout="constrained", sharey=True)
for ax, (title, layer) in zip(axes.flat, panels, strict=True):
    for name, (color, style, marker) in COLORS.items():
        values, levels = r_med[title][layer, name], NETWORKS[title].levels
        mean, error = values.mean(axis=0), 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        ax.plot(levels, 10**mean, color=color, linestyle=style, marker=marker, markersize=4, label=name)
        ax.fill_between(levels, 10 ** (mean - error), 10 ** (mean + error), color=color, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", title=f"{title.split()[0]}: {layer}")
    ax.set_xticks(levels, labels=[f"{level:g}" for level in levels])
    ax.xaxis.set_minor_formatter("")
    ax.invert_xaxis()
for ax in axes[-1]:
    ax.set_xlabel("training loss")
for ax in axes[:, 0]:
    ax.set_ylabel(r"$R_{\mathrm{med}}$")
axes[0, 0].legend(fontsize="small")
if not QUICK:
    here = Path("docs") if Path("docs").is_dir() else Path("../docs")
    fig.savefig(here / "layer_by_layer.png", dpi=110)
plt.show()


# %% [markdown]
# **What it shows.** In the *convolutional* network the paper's finding appears, in all three layers and at every loss:
# $R_{\mathrm{med}}$ of Adam and RMSProp is smaller than that of SGD by 0.33 to 0.88 in $\log_{10}$, 2 to 8 times, and
# by 2.6 standard errors or more. The dense layer differs most, and the two adaptive methods hardly differ from each
# other.
#
# In the *transformer* it does **not**. All layers of all optimizers are rather even, $R_{\mathrm{med}}$ from 2.5 to 16.
# At loss 2.5 the two layers of the MLP are where adaptive methods have the smaller values, by a factor of 1.4 to 1.5,
# which is two standard errors. Later it is the other way round in the keys, values and outputs of the attention: at
# loss 0.7 Adam and RMSProp are *larger* there, by 0.09 to 0.25, three standard errors or more. In the other layers
# differences are within about two standard errors, but for RMSProp's second MLP layer ($-0.09 \pm 0.02$). One block of
# width 12 is not the paper's transformer, and each optimizer has one rate here; but "adaptive methods go where
# $R_{\mathrm{med}}$ is smaller" is no law of each layer of each network.

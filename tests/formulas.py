"""Losses as formulas, with numbers for what they leave open; and random points of Γ to hold them against numbers at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy

import slowsde as ss
from slowsde.derivation.points import Numbers, random_points

x, y, u, v = sympy.symbols("x y u v")
p, q = sympy.symbols("p q", positive=True)
delta, epsilon, c, lam, omega, sx, sy = sympy.symbols("delta epsilon c lambda omega sigma_x sigma_y")
h, phi, k = (sympy.Function(name) for name in ("h", "phi", "k"))
a1, a2, w1, w2 = NET = sympy.symbols("a1 a2 w1 w2")
x1, x2, y1, y2 = sympy.symbols("x1 x2 y1 y2")
G = sympy.Matrix(2, 2, sympy.symbols("g11 g12 g21 g22"))
W = sympy.Matrix(2, 2, sympy.symbols("w11 w12 w21 w22"))
A, B = (sympy.Matrix(2, 1, sympy.symbols(f"{s}1 {s}2")) for s in "ab")
ADAM = ss.adam(c, eps=epsilon)
SETTINGS = {epsilon: 0.07, c: 1.3, delta: 0.6, sx: 0.8, sy: 0.5, lam: 0.3, omega: 0.4}
NUMBERS = {
    x1: 0.9,
    x2: -0.7,
    y1: 0.4,
    y2: 0.3,
    h: lambda z: 1 + z**2,
    k: lambda a, b: 1 + a**2 * sympy.exp(b),
    phi: lambda z: sympy.tanh(z) + z**2 / 2,
}


def network(z: Any) -> Any:
    return a1 * phi(w1 * z) + a2 * phi(w2 * z)


class Case(NamedTuple):
    """A loss, its parameters, an optimizer and a noise."""

    expr: Any
    symbols: Any
    optimizer: Any
    noise: Any
    manifold: Any = None

    def derive(self, **settings: Any) -> ss.Derivation:
        return ss.derive(*self[:4], manifold=self.manifold, **settings)


ELLIPSE = (x**2 + 4 * y**2 - 1) ** 2 / 4
CIRCLE = (x**2 + y**2 - 1) ** 2 / 4
ROTATED = 2 * x**2 + x * y + y**2 - 1  # nothing about it is diagonal
LABEL = ss.LabelNoise(delta)
OBLIQUE = sympy.Matrix([[sx, sy / 3], [0, sy]])


def dense_metric(v: Any) -> Any:
    """A full matrix, positive for v < 1."""
    stack = np.array if getattr(v, "dtype", None) == np.dtype(object) else jnp.array
    return stack([[2.0 + v[1], v[0] / 2], [v[0] / 2, 1 + v[0] ** 2]])


DENSE = ss.AGM(lambda g: g * g, dense_metric, c)
NETWORK = [network(x1) - y1, network(x2) - y2]
RANK_ONE = list(A * B.T - sympy.Matrix([[1, y2], [y1, y1 * y2]]))  # four equations, three of them independent
FULL = list(G * W - sympy.Matrix([[2, y1], [y2, 1]]))
CASES = {
    "valley": Case(h(y) * x**2 / 2, [x, y], ADAM, sympy.diag(sx, sy)),
    "valley, correlated noise that depends on y": Case(
        sympy.exp(y) * x**2 / 2, [x, y], ADAM, sympy.Matrix([[sx, y], [0, sy * sympy.cos(y)]])
    ),
    "valley of two coordinates": Case(k(y, u) * x**2 / 2, [x, y, u], ADAM, sympy.Matrix([[sx, 0], [sy, 1], [0, sy]])),
    "sphere": Case((x**2 + y**2 + u**2 - 1) ** 2 / 4, [x, y, u], ADAM, sx),
    "bent valley": Case(h(y) * (x - sympy.sin(y)) ** 2 / 2, [x, y], ADAM, OBLIQUE),
    "bent valley, given": Case(
        sympy.exp(x) * (x - sympy.sin(y)) ** 2 * (1 + y**2), [x, y], ADAM, OBLIQUE, {x: sympy.sin(y)}
    ),
    "circle": Case(CIRCLE, [x, y], ss.sgd(), sx),
    "ellipse": Case(ELLIPSE, [x, y], ADAM, OBLIQUE),
    "ellipse, as an equation": Case(sympy.exp(y) * ELLIPSE, [x, y], ADAM, OBLIQUE, [x**2 + 4 * y**2 - 1]),
    "ellipse, dense metric": Case(ELLIPSE, [x, y], DENSE, OBLIQUE),
    "oblique ellipse": Case([ROTATED], [x, y], ADAM, OBLIQUE),
    "uv = 1, SGD": Case([u * v - 1], [u, v], ss.sgd(), LABEL),
    "uv = 1, Adam": Case([u * v - 1], [u, v], ADAM, LABEL),
    "uv = 1, AdamE": Case([u * v - 1], [u, v], ss.adame(c, lam, eps=epsilon), LABEL),
    "uv = 1, c = ∞": Case([p * q - 1], [p, q], ss.adam(sympy.oo, eps=epsilon), LABEL),
    "uv = 1, ε inside": Case([u * v - 1], [u, v], ss.adam_eps_inside(c, eps=epsilon, bias_correction=False), LABEL),
    "uv = 1, decay": Case([u * v - 1], [u, v], ss.adam(c, eps=epsilon, weight_decay=omega), LABEL),
    "u² − v², two samples": Case(
        [x1 * (u**2 - v**2) + x * y - y1, x2 * (u**2 - v**2) + x * y - y2], [u, v, x, y], ADAM, ss.LabelNoise(delta, 1)
    ),
    "u² − v², noise unlike on two samples": Case(
        [x1 * (u**2 - v**2) + x * y - y1, x2 * (u**2 - v**2) + x * y - y2],
        [u, v, x, y],
        ADAM,
        ss.LabelNoise([delta, 2]),
    ),
    "network, one sample": Case(NETWORK[:1], NET, ADAM, LABEL),
    "network": Case(NETWORK, NET, ADAM, LABEL),
    "network, SGD": Case(NETWORK, NET, ss.sgd(weight_decay=omega), LABEL),
    "network, noise along Γ": Case(NETWORK, NET, ADAM, sympy.diag(sx, sy, delta, 1)),
    "factorization of rank one": Case(RANK_ONE, [*A, *B], ADAM, LABEL),
    "factorization of rank one, layers": Case(RANK_ONE[:2], [A, B], ss.adalayer(c, eps=epsilon), LABEL),
    "factorization of rank one, noise along Γ": Case(RANK_ONE[:2], [A, B], ss.adam_mini(c, eps=epsilon), sx),
    "factorization, 2×2": Case(FULL, [G, W], ss.sgd(), LABEL),
    "factorization, 2×2, rows": Case(FULL, [G, W], ss.adam_mini(c, eps=epsilon), LABEL),
    "adam_mini, partition": Case(
        [a1 * w1 + a2 * w2 - y1], NET, ss.adam_mini(c, np.array([0, 1, 0, 1]), eps=epsilon), LABEL
    ),
    "Shampoo": Case([G.det() - 1], [G], ss.shampoo(c, eps=epsilon), LABEL),
    "Adafactor": Case([G.det() - 1], [G], ss.adafactor(c, eps=epsilon), LABEL),
    "Shampoo on a vector": Case([u * v - 1], [u, v], ss.shampoo(c, eps=epsilon, exponent=0.5), LABEL),
}


def with_numbers(derivation: ss.Derivation) -> ss.Derivation:
    """With the numbers above for all that it leaves open."""
    known = derivation.within.free_symbols
    inner = derivation.within.formula.names.inner
    symbols = {k: value for k, value in (SETTINGS | NUMBERS).items() if isinstance(k, sympy.Symbol)}
    functions = {k: value for k, value in NUMBERS.items() if k not in symbols and k in derivation.within.functions}
    wanted = {k: value for k, value in symbols.items() if inner(k) in known - set(derivation.within.formula.symbols)}
    return derivation.on(wanted | functions)


def points_of(derivation: ss.Derivation, count: int = 20, seed: int = 3) -> list[np.ndarray]:
    """Random points of Γ, once every symbol has a number."""
    within, rng = derivation.within, np.random.default_rng(seed)
    equations = sympy.Matrix(within.manifold.equations)
    numbers = Numbers(within.formula.symbols, (), ())
    found: list[np.ndarray] = []
    jacobian = equations.jacobian(within.formula.symbols)
    found = random_points(equations, jacobian, within.formula.symbols, numbers, rng, 4 * count, 1000)
    # Where the equations are nearly dependent, numbers have few digits whoever computes them.
    function = numbers.function(jacobian)
    found = sorted(found, key=lambda point: np.linalg.cond(function(point)))
    return found[:count]


def as_params(derivation: ss.Derivation, point: np.ndarray) -> Any:
    """A flat point as the params of `as_problem`."""
    shapes = derivation.within.formula.shapes
    if shapes is None:
        return point
    ends = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
    return [part.reshape(s) for part, s in zip(np.split(point, ends), shapes, strict=True)]


def random_state(optimizer: ss.AGM, params: Any, rng: np.random.Generator) -> Any:
    """A state that gradients could have made: the mean of V over three of them."""
    gradients = [jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), params) for _ in range(3)]
    with jax.enable_x64(True):
        states = [optimizer.V(jax.tree.map(jnp.asarray, g)) for g in gradients]
        return jax.tree.map(lambda *leaves: np.asarray(sum(leaves) / 3), *states)

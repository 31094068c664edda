"""What a step of the Euler solver of `simulate` costs above a hand-written `lax.scan` of the same arithmetic.

    python benchmarks/overhead.py [--repeats 15] [--quick]

The scans below are independent of the library's step: a few lines each, one for a loss with a dense Hessian and one
for least squares through the n×n kernel. They do what the scheme asks for and no more: per step one eigendecomposition
of H' at the start for Π, the Lyapunov weights and the drift −½ΠST[C], projected noise keyed by path and step (the
library's own keys, so that the paths must agree to rounding, which is checked), Gauss–Newton in the metric S with one
eigendecomposition an iteration until a step is shorter than √eps, and the exact relaxation of v. What the library does
besides is overhead: Diffrax's loop, looking up the step, the guard against a lost rank (one more third derivative) and
the checks of the return, and at the saved times the residual and spectrum there.

`solver` is the compiled solve alone; `call` is `simulate` itself, by the difference of a run of n steps and one of 2n
of half the length, so that set-up and what is computed from the saved states cancel. Compilation is not counted; the
candidates take turns in one process and medians are given.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from problems import EPS, VALLEY_START, VALLEY_V0, C, network, valley

import slowsde as ss
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import working_precision
from slowsde.dynamics.diffusion import solve_sde, step_grid
from slowsde.dynamics.slow_sde import slow_sde
from slowsde.dynamics.solvers.brownian import step_keys
from slowsde.dynamics.start import start_on_manifold
from slowsde.support.pieces import Pieces

KEY, T = jr.key(0), 0.1
Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def newton(move: Callable[[Any], Any], y: Any) -> Any:
    """y − move(y) until a move is so short that the next would be rounding."""
    short = jnp.sqrt(jnp.finfo(y.dtype).eps) * (1 + jnp.linalg.norm(y))

    def step(carry: Any) -> Any:
        delta = move(carry[0])
        return carry[0] - delta, jnp.linalg.norm(delta)

    return jax.lax.while_loop(lambda carry: carry[1] > short, step, step((y, jnp.inf)))[0]


def relax(v: Any, factor: Any, h: Any) -> Any:
    target = jnp.sum(factor**2, axis=1)
    return target + (v - target) * jnp.exp(-C * h)


def dense_step(loss: Any, factor: Any) -> Step:
    """For a loss of rank one, Adam's S = Diag(1/(√v + ε)) and a constant noise factor."""
    gradient, hessian = jax.grad(loss), jax.hessian(loss)

    def normal(x: Any, root: Any) -> Any:
        values, vectors = jnp.linalg.eigh(root[:, None] * hessian(x) * root)
        return values[-1], vectors[:, -1]

    def step(x: Any, v: Any, h: Any, dW: Any) -> Any:
        root = (jnp.sqrt(v) + EPS) ** -0.5
        value, q = normal(x, root)
        noise = root[:, None] * factor
        b = q @ noise
        tangential = noise - q[:, None] * b
        mixed = q[:, None] * (tangential @ b) / value
        weighted = (b @ b) / (2 * value) * q[:, None] * q + mixed + mixed.T
        C_ = root[:, None] * weighted * root
        force = root * jax.grad(lambda y: jnp.sum(hessian(y) * C_))(x)
        start = x - 0.5 * h * root * (force - q * (q @ force)) + root * (tangential @ dW)

        def move(y: Any) -> Any:
            value, q = normal(y, root)
            return root * q * (q @ (root * gradient(y))) / value

        return newton(move, start), relax(v, factor, h)

    return step


def kernel_step(residuals: Any, factor: Any) -> Step:
    """For least squares ½|r|² with J = ∂r/∂x of full row rank, through K = J S Jᵀ."""
    jacobian = jax.jacrev(residuals)

    def normal(x: Any, root: Any) -> Any:
        half = jacobian(x) * root
        return half, *jnp.linalg.eigh(half @ half.T)

    def step(x: Any, v: Any, h: Any, dW: Any) -> Any:
        root = (jnp.sqrt(v) + EPS) ** -0.5
        half, values, vectors = normal(x, root)
        Q = half.T @ (vectors / jnp.sqrt(values))
        noise = root[:, None] * factor
        b = Q.T @ noise
        tangential = noise - Q @ b
        left = root[:, None] * jnp.concatenate([Q, 2 * Q @ (b / values[:, None])], axis=1)
        right = root[:, None] * jnp.concatenate([Q @ (b @ b.T / (values[:, None] + values)), tangential], axis=1)

        def pairing(y: Any) -> Any:
            along = jax.vmap(lambda u: jax.jvp(residuals, (y,), (u,))[1], 1)
            return jnp.sum(along(left) * along(right))

        force = root * jax.grad(pairing)(x)
        start = x - 0.5 * h * root * (force - Q @ (Q.T @ force)) + root * (tangential @ dW)

        def move(y: Any) -> Any:
            half, values, vectors = normal(y, root)
            return root * (half.T @ (vectors @ ((vectors.T @ residuals(y)) / values)))

        return newton(move, start), relax(v, factor, h)

    return step


def make_dense(sde: Any, factor: Any) -> Step:
    return dense_step(sde.loss.value, factor)


def make_kernel(sde: Any, factor: Any) -> Step:
    return kernel_step(sde.loss.residuals, factor)


def scan(step: Step, x0: Any, v0: Any, keys: Any, h: float, columns: int, paths: int) -> Callable[[], Any]:
    @jax.jit
    def run(x0: Any, v0: Any, keys: Any) -> Any:
        def path(index: Any) -> Any:
            def body(state: Any, key: Any) -> Any:
                dW = jnp.sqrt(h) * jr.normal(jr.fold_in(key, index), (columns,), x0.dtype)
                return step(state[0], state[1], h, dW), None

            return jax.lax.scan(body, (x0, v0), keys)[0]

        return jax.vmap(path)(jnp.arange(paths))

    return lambda: run(x0, v0, keys)


def medians(candidates: list[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Median seconds of each, taking turns, after a warm-up that compiles."""
    for candidate in candidates:
        jax.block_until_ready(candidate())
    seconds = np.zeros((repeats, len(candidates)))
    for row in seconds:
        for column, candidate in enumerate(candidates):
            begun = time.perf_counter()
            jax.block_until_ready(candidate())
            row[column] = time.perf_counter() - begun
    return np.median(seconds, axis=0)


def report(name: str, case: Any, make_step: Any, paths: int, steps: int, saves: int, repeats: int) -> float:
    """One line of the table; the ratio of the solver to the scan."""
    problem, optimizer, params, v0 = case
    with working_precision("float64"):
        chart, x0 = Coordinates.of(params), jnp.asarray(ravel(params))
        slow, start, v0 = start_on_manifold(slow_sde(problem, optimizer, chart), x0, v0, None)
        times = np.linspace(0, T, saves)
        grid, h = step_grid(times, 0.0, T, T / steps), T / steps
        assert grid.size == steps + 1
        factor = slow.sde.factor(start.point)
        x, v = start.point, ravel_pytree(v0)[0]
        by_hand = scan(make_step(slow.sde, factor), x, v, step_keys(KEY, grid, h), h, factor.shape[1], paths)
        state = slow.initial(start.point, v0)

        def solver() -> Any:
            return solve_sde(slow, state, KEY, times, grid, h, paths=paths, pieces=Pieces("", False))

        same = np.max(np.abs(np.asarray(solver()[0].x[:, -1] - by_hand()[0])))
        assert same < 1e-9, f"the paths differ by {same}"

        def call(n: int) -> Callable[[], Any]:
            return lambda: (
                ss.simulate(
                    problem, optimizer, params, T, v0=v0, paths=paths, key=KEY, save_at=times, dt=T / n, progress=False
                ).result
            )

        hand, alone, once, twice = medians([by_hand, solver, call(steps), call(2 * steps)], repeats)
    unit = 1e6 / (steps * paths)
    print(
        f"{name:<16}{x0.size:5d}{paths:7d}{steps:7d}{saves:7d}{hand * unit:12.3f}{alone * unit:10.3f}"
        f"{(twice - once) * unit:10.3f}{alone / hand:9.2f}{(twice - once) / hand:9.2f}",
        flush=True,
    )
    return alone / hand


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats")
    options = parser.parse_args()
    repeats = 5 if options.quick else options.repeats
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}; μs for a path and step, float64")
    print(
        f"{'problem':<16}{'p':>5}{'paths':>7}{'steps':>7}{'saved':>7}{'by hand':>12}{'solver':>10}{'call':>10}"
        f"{'ratio':>9}{'of call':>9}"
    )
    small = (*valley(), VALLEY_START, VALLEY_V0)
    circle = (
        ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(0.5)),
        small[1],
        np.array([1.0, 0.0]),
        None,
    )
    wide = (*network(), None)
    rows = [
        ("valley", small, 64, 1000, 2),
        ("valley", small, 64, 1000, 101),
        ("valley", small, 1024, 200, 2),
        ("circle", circle, 64, 1000, 2),
        ("circle", circle, 1024, 200, 2),
        ("network", wide, 16, 50, 2),
        ("network", wide, 64, 50, 2),
    ]
    for name, case, paths, steps, saves in rows[::2] if options.quick else rows:
        report(name, case, make_kernel if name == "network" else make_dense, paths, steps, saves, repeats)


if __name__ == "__main__":
    main()

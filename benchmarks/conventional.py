"""The conventional SDE by every scheme, against its own exact moments and those of the optimizer, in a quadratic.

    python benchmarks/conventional.py [--markdown]

L = ½λθ², noise of variance 1, S = I. A step is then linear in (θ, m) and in the noise, so that its moments follow from
its derivatives, without a path: relative errors of the stationary E θ² and of E θ after 1/ηλ steps or more (in units of
its start), in %, at one, two and four steps of the solver for one of the optimizer.

Behind that first moments of discrete Adam, where the step is not linear: errors of the SDE in %, by runs, and of its
means alone without a scheme (SciPy, with S of the mean v).
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm, solve_continuous_lyapunov, solve_discrete_lyapunov

import slowsde as ss
from manifolds.support.coordinates import Coordinates
from slowsde.dynamics.conventional import Conventional, DriftHeun
from slowsde.dynamics.conventional_momentum import SCHEMES, Momentum
from slowsde.dynamics.slow_sde import SlowSDE

CURVATURE, NOISE = np.array([1.0, 5.0]), 10.0  # of the quadratic of Adam
SUBSTEPS = (1, 2, 4)
GRADIENTS = {"splitting": 1, "heun": 2, "euler": 1}
CASES = [(b1, a) for b1 in (0.0, 0.5, 0.875) for a in (0.1, 0.35, 0.9)]  # β1 and ηλ
Moments = tuple[float, float]  # stationary E θ², E θ at the end from θ = 1


class _Increments:
    """What a solver of Diffrax asks of a term: its part of the step."""

    def __init__(self, value: Any):
        self.value = value

    def contr(self, t0: Any, t1: Any) -> Any:
        return self.value


class _Terms:
    def __init__(self, h: Any, dW: Any):
        self.terms = _Increments(h), _Increments(dW)


def stepped(b1: float, lam: float, lr: float, scheme: str) -> Any:
    """The step (state, h, ΔW) -> state, of states (θ, m) or (θ,)."""
    problem = ss.Problem(lambda x: 0.5 * lam * jnp.sum(x**2), ss.GaussianNoise(np.eye(1)))
    chart = Coordinates.of(np.ones(1))
    model = Conventional(SlowSDE(problem, ss.sgd(b1=b1), problem.flat_loss(chart)), jnp.asarray(lr))

    def with_momentum(state: Any, h: Any, dW: Any) -> Any:
        x, _, m = SCHEMES[scheme](Momentum(model), 0.0, h, dW, (state[:1], None, state[1:]))
        return jnp.concatenate([x, m])

    def without(state: Any, h: Any, dW: Any) -> Any:
        y1, *_ = DriftHeun(model, scheme == "heun").step(_Terms(h, dW), 0.0, h, (state, None), None, None, False)
        return y1[0]

    return with_momentum if b1 > 0 else without


def of_scheme(b1: float, lam: float, lr: float, scheme: str, substeps: int, steps: int) -> Moments:
    step, h, size = stepped(b1, lam, lr, scheme), lr**2 / substeps, 2 if b1 > 0 else 1
    zero = jnp.zeros(size), jnp.zeros(1)
    forward = np.asarray(jax.jacfwd(lambda s: step(s, h, zero[1]))(zero[0]))
    shake = np.asarray(jax.jacfwd(lambda w: step(zero[0], h, w))(zero[1])) * np.sqrt(h)
    return _moments(forward, shake, steps * substeps)


def _moments(forward: np.ndarray, shake: np.ndarray, steps: int) -> Moments:
    unstable = np.abs(np.linalg.eigvals(forward)).max() >= 1
    second = np.nan if unstable else solve_discrete_lyapunov(forward, shake @ shake.T)[0, 0]
    return float(second), float(np.linalg.matrix_power(forward, steps)[0, 0])


def of_sde(b1: float, lam: float, lr: float, steps: int) -> Moments:
    """Exactly, of (θ, m) or of θ alone."""
    if b1 == 0:
        return lr / (2 * lam), float(np.exp(-lam * lr * steps))
    rate = (1 - b1) / lr**2
    field, noise = np.array([[0, -1 / lr], [rate * lam, -rate]]), np.diag([0, (rate * lr) ** 2])
    return float(solve_continuous_lyapunov(field, -noise)[0, 0]), float(expm(field * steps * lr**2)[0, 0])


def of_optimizer(b1: float, lam: float, lr: float, steps: int) -> Moments:
    new = 1 - b1
    forward, shake = np.array([[1 - lr * new * lam, -lr * b1], [new * lam, b1]]), np.array([[-lr * new], [new]])
    return _moments(forward, shake, steps)


def row(b1: float, a: float, scheme: str, lr: float = 0.125**0.5) -> list[str]:
    lam, steps = a / lr, max(round(1 / lr), round(1 / a))
    exact, discrete = of_sde(b1, lam, lr, steps), of_optimizer(b1, lam, lr, steps)
    cells = [f"{b1:g}", f"{a:g}", scheme, f"{GRADIENTS[scheme]}"]
    found = [of_scheme(b1, lam, lr, scheme, substeps, steps) for substeps in SUBSTEPS]
    errors = [*(f[0] / exact[0] - 1 for f in found), *(f[1] - exact[1] for f in found)]
    errors += [exact[0] / discrete[0] - 1, exact[1] - discrete[1]]
    return cells + [f"{round(100 * error, 1) + 0.0:+.1f}" for error in errors]  # + 0.0 makes 0 of −0


def means(steps: np.ndarray, lr: float, b1: float, v0: float, start: float, m0: float = 0.0) -> np.ndarray:
    """(steps, 2) E θ of the SDE of Adam with S of the mean v, to rounding; from m0 times the gradient."""

    def field(t: float, y: np.ndarray) -> np.ndarray:
        x, m, v = y.reshape(3, 2)
        slope = CURVATURE * x
        return np.concatenate([-m / lr / np.sqrt(v), (1 - b1) / lr**2 * (slope - m), NOISE**2 + slope**2 - v])

    y0 = np.concatenate([np.full(2, start), m0 * CURVATURE * start, np.full(2, v0)])
    return solve_ivp(field, (0, steps[-1] * lr**2), y0, rtol=1e-9, t_eval=steps * lr**2).y[:2].T


def first_moments(paths: int) -> None:
    """E = ½(θ1² + 5θ2²), β1 = .875, η² = .125."""
    problem = ss.Problem(lambda x: 0.5 * jnp.sum(CURVATURE * x**2), ss.GaussianNoise(NOISE * np.eye(2)))
    b1, lr, steps, v0, start = 0.875, 0.125**0.5, np.array([4, 8, 12, 16, 24]), 100.0, 10.0
    adam, times = ss.adam(1.0, b1=b1, eps=1e-6), ss.slow_time(steps, lr)
    given: dict[str, Any] = {"lr": lr, "v0": np.full(2, v0), "paths": paths, "save_at": times}

    def mean(run: Any, **how: Any) -> np.ndarray:
        return run(problem, adam, np.full(2, start), times[-1], **given, **how).params.mean(axis=0)

    exact = mean(ss.run_discrete, project=False)
    about = steps, lr, b1, v0, start
    found = {"exact": means(*about), "exact, m half on": means(*about, (1 - b1) / 2)}
    for solver, substeps in (("splitting", 1), ("splitting", 8), ("heun", 1)):
        found[f"{solver}, {substeps}"] = mean(ss.conventional_sde, solver=solver, substeps=substeps)
    found["without m"] = mean(ss.conventional_sde, momentum=False)
    print("\nsteps" + "".join(f"{k:>16}" for k in steps))
    for name, values in {"Adam": exact, **found}.items():
        cells = values if name == "Adam" else 100 * (values / exact - 1)
        print(f"{name:<18}" + "".join(f"{a:>8.2f}{b:>8.2f}" for a, b in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/")
    parser.add_argument("--paths", type=int, default=32768, help="of the runs of Adam and of its SDE")
    arguments = parser.parse_args()
    markdown = arguments.markdown
    heads = ["β1", "ηλ", "scheme", "gradients", *(f"E θ², {n}" for n in SUBSTEPS), *(f"E θ, {n}" for n in SUBSTEPS)]
    heads += ["SDE − optimizer: E θ²", "E θ"]
    line = "| {} |".format(" | ".join(["{}"] * len(heads))) if markdown else "{:>11}" * len(heads)
    print(line.format(*heads))
    if markdown:
        print("|---" * len(heads) + "|")
    with jax.enable_x64(True):
        for b1, a in CASES:
            for scheme in ("splitting", "heun", "euler") if b1 > 0 else ("heun", "euler"):
                print(line.format(*row(b1, a, scheme)))
    first_moments(arguments.paths)


if __name__ == "__main__":
    main()

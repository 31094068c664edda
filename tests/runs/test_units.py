"""The same problem in other units of its parameters or of its loss has the same runs, in those units."""

import importlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf
import slowsde as ss
from slowsde.runs.frame import diverged

RNG = np.random.default_rng(0)
INPUTS = RNG.choice([-1.0, 1.0], size=(6, 12))
TARGETS = INPUTS[:, 0] - INPUTS[:, 1]
WEIGHTS = np.outer([0.7, 0.5], np.ones(12)) + 0.02 * RNG.normal(size=(2, 12))
POINT, SIGMA = np.array([0.3, 1.0]), np.array([0.8, 0.5])
ETA, T = 0.05, 0.1
# Parameters times s, and predictions, targets and labels' noise times √q: the loss times q.
UNITS = [(1e-8, 1.0), (1e-3, 1.0), (1e8, 1.0), (1.0, 1e-8), (1.0, 1e8), (1e-6, 1e6)]


class Network(eqx.Module):
    """A diagonal network in other units. They are arrays, so that all units share what is compiled."""

    s: jax.Array
    q: jax.Array

    def __call__(self, w: Any, z: Any) -> Any:
        w = w / self.s
        return jnp.sqrt(self.q) * (z @ (w[0] ** 2 - w[1] ** 2))


class Valley(eqx.Module):
    s: jax.Array
    q: jax.Array

    def __call__(self, x: Any) -> Any:
        x = x / self.s
        return self.q * 0.5 * jnp.exp(0.5 * x[1] ** 2) * x[0] ** 2


def network(s: float, q: float) -> tuple[ss.LeastSquares, Any]:
    model = Network(np.asarray(s), np.asarray(q))  # pyright: ignore[reportArgumentType]
    return ss.LeastSquares(model, INPUTS, q**0.5 * TARGETS, ss.LabelNoise(q**0.5)), s * WEIGHTS


def valley(s: float, q: float) -> tuple[ss.Problem, Any]:
    loss = Valley(np.asarray(s), np.asarray(q))  # pyright: ignore[reportArgumentType]
    return ss.Problem(loss, ss.GaussianNoise(q / s * np.diag(SIGMA))), s * POINT


def sgd(s: float, q: float) -> tuple[ss.AGM, float]:
    """The optimizer in these units, and its learning rate over that in the others."""
    return ss.sgd(), s**2 / q


def adam(s: float, q: float) -> tuple[ss.AGM, float]:
    return ss.adam(2.0 / s**2, eps=1e-2 * q / s), s


def flow(p: Any, o: Any, x: Any, rate: float) -> Any:
    return ss.simulate(p, o, x, T * rate**2, save_at=3).params


def sde(p: Any, o: Any, x: Any, rate: float) -> Any:
    return ss.simulate(p, o, x, T * rate**2, save_at=3, dt=0.02 * rate**2, paths=2).params


def discrete(p: Any, o: Any, x: Any, rate: float) -> Any:
    return ss.run_discrete(p, o, x, T * rate**2, lr=ETA * rate, paths=2, save_at=3).params


def rival(p: Any, o: Any, x: Any, rate: float) -> Any:
    return ss.conventional_sde(p, o, x, T * rate**2, lr=ETA * rate, paths=2, save_at=3).params


def rest(p: Any, o: Any, x: Any, rate: float) -> Any:
    return ss.stationary_point(p, o, x).params


Kind = Callable[..., Any]
RUNS: dict[str, tuple[Kind, Kind, Kind, float]] = {
    "flow of Adam": (network, flow, adam, 1e-10),
    "rest of SGD": (network, rest, sgd, 1e-9),
    "Adam": (network, discrete, adam, 1e-11),
    "conventional SDE of Adam": (network, rival, adam, 1e-12),
    "SDE of SGD": (valley, sde, sgd, 1e-12),
}
MORE: dict[str, tuple[Kind, Kind, Kind, float]] = {
    "flow of SGD": (network, flow, sgd, 1e-10),
    "rest of Adam": (network, rest, adam, 1e-9),
    "SGD": (network, discrete, sgd, 1e-11),
    "conventional SDE of SGD": (network, rival, sgd, 1e-12),
    "SDE of Adam": (valley, sde, adam, 1e-12),
}


@pytest.mark.parametrize("name", [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_run_in_other_units_is_the_run(name: str) -> None:
    problem, run, optimizer, tolerance = (RUNS | MORE)[name]

    def found(s: float, q: float) -> np.ndarray:
        (p, start), (o, rate) = problem(s, q), optimizer(s, q)
        return np.asarray(run(p, o, start, rate)) / s

    expected = found(1.0, 1.0)
    for units in UNITS:
        np.testing.assert_allclose(found(*units), expected, atol=tolerance, rtol=0, err_msg=f"{units}")


def test_the_verdict_of_validity_is_the_same_in_other_units() -> None:
    def ratios(s: float, q: float) -> np.ndarray:
        (p, start), (o, rate) = network(s, q), adam(s, q)
        slow = ss.simulate(p, o, start, T * rate**2, save_at=3)
        found = ss.validity(p, o, slow, lr=ETA * rate).ratios
        return np.concatenate([np.ravel(found[name]) for name in sorted(found)])

    expected = ratios(1.0, 1.0)
    for units in UNITS[::2]:
        np.testing.assert_allclose(ratios(*units), expected, rtol=1e-8)


def test_the_backward_error_flow_is_the_same_in_other_units() -> None:
    def end(s: float, q: float) -> np.ndarray:
        options: dict[str, Any] = {"lr": 0.01 * s, "b2": 0.95, "eps": 0.1 * (q / s) ** 2, "save_at": 2}
        return ss.backward_error(valley(s, q)[0], s * POINT, 0.1 * s, **options).params / s

    expected = end(1.0, 1.0)
    for units in UNITS:
        np.testing.assert_allclose(end(*units), expected, rtol=1e-9)


def test_tolerances_against_one_would_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a unit in a tolerance does: in units of 1e-8 a start off Γ is left where it is, or refused."""
    s = 1e-8

    def loss(x: Any) -> Any:
        return 0.25 * (jnp.sum((x / s) ** 2) - 1) ** 2

    def arrives(function: Any) -> bool:
        try:
            return bool(abs(np.linalg.norm(mf.limit_map(function, s * np.array([0.6, 0.3]))) / s - 1) < 1e-9)
        except mf.ManifoldError:
            return False

    assert arrives(loss)
    for name in ("limit_map", "return_map"):
        module = importlib.import_module(f"manifolds.maps.{name}")
        monkeypatch.setattr(module, "extent", lambda x, ord=None: 1 + jnp.linalg.norm(x, ord=ord))
    assert not arrives(lambda x: loss(x))  # a new function, so that it is compiled anew


@pytest.mark.parametrize(("inputs", "targets"), [(1.0, 1.0), (1.0, 1e-4), (1e4, 1.0), (1.0, 1e4)])
def test_what_does_not_interpolate_is_refused_in_any_units(inputs: float, targets: float) -> None:
    z = inputs * np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    y = targets * np.array([1.0, 0.98, 1.0])  # the first two contradict each other
    problem = ss.LeastSquares(lambda w, z: z @ (w[:2] ** 2 - w[2:] ** 2), z, y, ss.LabelNoise(targets))
    start = np.sqrt(targets / inputs) * np.array([1.2, 1.1, 0.3, 0.4])
    with pytest.raises(ValueError, match="do not interpolate"):
        ss.simulate(problem, ss.sgd(), start, 1e-3, route="dense")


def test_noise_vanishes_by_what_it_is_and_not_by_the_curvature() -> None:
    steep = ss.Problem(lambda x: 0.5e14 * (1 + x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(np.eye(2)))
    assert ss.simulate(steep, ss.sgd(), np.array([0.0, 1.0]), 1e-3, dt=1e-3, save_at=2, paths=1).paths == 1
    for s in (1e-6, 1.0, 1e6):
        model = Network(np.asarray(s), np.asarray(1.0))  # pyright: ignore[reportArgumentType]
        fitted = ss.LeastSquares(model, INPUTS, TARGETS, ss.MinibatchNoise(1))
        with pytest.raises(ValueError, match="The noise vanishes"):
            ss.simulate(fitted, ss.sgd(), s * WEIGHTS, s**4, dt=s**4)


@pytest.mark.parametrize("s", [1e-8, 1.0, 1e8])
def test_a_path_diverges_against_its_start(s: float) -> None:
    path = s * np.array([1.0, 1e9, 1e11, 1.0])[None, :, None]
    assert diverged(path, s * np.ones(1)).tolist() == [[False, False, True, True]]
    assert not diverged(np.ones((1, 4, 1)), np.zeros(1)).any()

"""The backward-error ODE of Adam and RMSProp against the methods written out, and its order against mutants."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

module: Any = importlib.import_module("slowsde.dynamics.backward_flow")
START = np.array([2.8, 3.5])
B1, B2, T = 0.9, 0.95, 1.5
STEP_SIZES = (1e-3, 5e-4, 2.5e-4)
TARGETS, SLOPES = np.array([1.5, 8.0, -4.0]), np.array([2.0, 1.4, 2.5])
BATCHES = [lambda w, y=y, a=a: 0.5 * (y - a * w[0] * w[1]) ** 2 for y, a in zip(TARGETS, SLOPES, strict=True)]


def loss(w: Any) -> Any:
    return 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2


def gradient(w: Any, y: Any = 1.5, a: Any = 2.0) -> Any:
    return -a * (y - a * w[0] * w[1]) * w[::-1]


ORDERS = {
    "in turn": np.arange(round(T / STEP_SIZES[-1])) % 3,
    "at random": np.random.default_rng(0).integers(0, 3, round(T / STEP_SIZES[-1])),
}


@functools.cache
def iterates(
    h: float,
    eps: float,
    method: str = "adam",
    *,
    order: str = "",
    normalized: bool = True,
    outside: bool = False,
) -> np.ndarray:
    """Every iterate up to time T, of the full batch or of the batches in `order`."""
    b1 = B1 if method == "adam" else 0.0
    x, m, v = START.copy(), np.zeros(2), np.zeros(2)
    found = [x]
    for k in range(round(T / h)):
        g = gradient(x, TARGETS[ORDERS[order][k]], SLOPES[ORDERS[order][k]]) if order else gradient(x)
        m, v = b1 * m + (1 - b1) * g, B2 * v + (1 - B2) * g**2
        m_hat, v_hat = (m / (1 - b1 ** (k + 1)), v / (1 - B2 ** (k + 1))) if normalized else (m, v)
        x = x - h * m_hat / (np.sqrt(v_hat) + np.sqrt(eps) if outside else np.sqrt(v_hat + eps))
        found.append(x)
    return np.array(found)


def flow(h: float, eps: float, function: Any = loss, **kw: Any) -> ss.Trajectory:
    return ss.backward_error(function, START, T, lr=h, b1=B1, b2=B2, eps=eps, save_at=7, **kw)


def gaps(eps: float, function: Any = loss, *, discrete: dict[str, Any] | None = None, **kw: Any) -> np.ndarray:
    """The largest distance over time between flow and iterates, at every step size."""
    found = []
    for h in STEP_SIZES:
        ode = flow(h, eps, function, **kw)
        exact = iterates(h, eps, kw.get("method", "adam"), **(discrete or {}))
        found.append(np.abs(ode.params[0] - exact[np.rint(ode.ts / h).astype(int)]).max())
    return np.array(found)


def slope(errors: np.ndarray) -> float:
    return float(np.polyfit(np.log(STEP_SIZES), np.log(errors), 1)[0])


@pytest.mark.parametrize("method", ["adam", "rmsprop"])
@pytest.mark.parametrize("eps", [1e-2, pytest.param(1e2, marks=pytest.mark.slow)])
def test_the_correction_makes_order_one_order_two(method: str, eps: float) -> None:
    corrected, plain = gaps(eps, method=method), gaps(eps, method=method, corrected=False)
    assert abs(slope(corrected) - 2) < 0.1
    assert abs(slope(plain) - 1) < 0.1
    assert np.all(corrected < 0.05 * plain)


@pytest.mark.parametrize(("order", "normalized"), [("in turn", True), ("at random", False)])
def test_mini_batches_are_followed_to_order_two(order: str, normalized: bool) -> None:
    """Three batches whose gradients differ as much as they have in common, with and without bias correction."""
    visits = None if order == "in turn" else ORDERS[order]
    options = {"order": visits, "bias_correction": normalized, "discrete": {"order": order, "normalized": normalized}}
    corrected, plain = gaps(1.0, BATCHES, **options), gaps(1.0, BATCHES, corrected=False, **options)
    assert abs(slope(corrected) - 2) < 0.15
    assert slope(plain) < 1.2
    assert corrected[-1] < 0.1 * plain[-1]


def test_rmsprop_as_usually_written_is_followed_to_order_two() -> None:
    """v starts at zero and is not corrected: the first steps are 1/√(1−ρ) times as long."""
    assert abs(slope(gaps(1e2, method="rmsprop", bias_correction=False, discrete={"normalized": False})) - 2) < 0.1


def test_a_wrong_sign_an_outer_epsilon_or_a_missing_half_would_be_of_order_one(monkeypatch: Any) -> None:
    right = module.BackwardFlow.field
    assert slope(gaps(1e2, discrete={"outside": True})) < 1.2

    def wrong_sign(self: Any, n: Any, x: Any, first: Any, second: Any) -> Any:
        m, r, _ = self.heading(x, first, second)
        return -2 * m / r - right(self, n, x, first, second)

    with monkeypatch.context() as patch:
        patch.setattr(module.BackwardFlow, "field", wrong_sign)
        assert slope(gaps(1e2, lambda w: loss(w))) < 1.1  # a new function, so that it is compiled anew
    lag = module.mean_lag
    with monkeypatch.context() as patch:
        patch.setattr(module, "mean_lag", lambda b, n: lag(b, n) - 0.5 * (b == B2))
        assert slope(gaps(1e2, lambda w: loss(w))) < 1.2
    assert slope(gaps(1e2, lambda w: loss(w))) > 1.9


def test_the_transient_of_the_mean_lag_is_needed(monkeypatch: Any) -> None:
    """It acts on the first 1/(1−ρ) steps, where the flow is right to O(h³); with c_b(∞) to O(h²) only."""

    def errors(function: Any) -> np.ndarray:
        """After 20 steps."""
        flows = [
            ss.backward_error(function, START, 20 * h, lr=h, b1=B1, b2=B2, eps=1e-2, save_at=2) for h in STEP_SIZES
        ]
        return np.array(
            [np.abs(f.params[0, -1] - iterates(h, 1e-2)[20]).max() for h, f in zip(STEP_SIZES, flows, strict=True)]
        )

    right = errors(loss)
    monkeypatch.setattr(module, "mean_lag", lambda b, n: b / (1 - b) + 0 * n)
    wrong = errors(lambda w: loss(w))  # a new function, so that it is compiled anew
    assert abs(slope(right) - 3) < 0.1
    assert abs(slope(wrong) - 2) < 0.1
    assert np.all(wrong > 20 * right)


def test_mean_lag_is_the_sum_that_it_stands_for() -> None:
    for b, n in [(0.9, 0), (0.9, 7), (0.0, 3), (0.999, 2000)]:
        ages = np.arange(n + 1)
        weights = b**ages * (1 - b) / (1 - b ** (n + 1))
        with jax.enable_x64(True):
            np.testing.assert_allclose(module.mean_lag(b, n), weights @ ages, rtol=1e-9, atol=1e-12)


def test_discrete_runs_with_epsilon_inside_are_the_method_written_out() -> None:
    """`run_discrete` without noise, on the slow clock, is on the ODE's clock after a change of clocks."""
    h, steps = 0.01, 100
    problem = ss.Problem(loss, ss.GaussianNoise(0.0))
    optimizer = ss.adam_eps_inside(ss.slow_rate(h, B2), B1, eps=1.0)
    run = ss.run_discrete(
        problem, optimizer, START, ss.slow_time(steps, h), lr=h, paths=1, save_at=5, project=False, metrics=("loss",)
    )
    exact = iterates(h, 1.0)[ss.steps_in(run.ts, h)]
    np.testing.assert_allclose(run.params[0], exact, rtol=1e-10)
    ode = ss.backward_error(problem, START, 1.0, lr=h, b1=B1, b2=B2, eps=1.0, save_at=5, metrics=("loss",))
    np.testing.assert_allclose(ss.on_slow_clock(ode).ts, run.ts, rtol=1e-12)
    np.testing.assert_allclose(ss.on_ode_clock(run).ts, ode.ts, rtol=1e-12)
    np.testing.assert_allclose(ode.metrics["loss"][0], [loss(w) for w in ode.params[0]], rtol=1e-9)
    assert ss.compare(ss.on_slow_clock(ode), run).relative_gap("loss") < 0.01
    np.testing.assert_allclose(ode.v[0], [gradient(w) ** 2 for w in ode.params[0]], rtol=1e-9)


def test_batches_may_be_one_function_and_params_any_pytree() -> None:
    def batch_loss(params: Any, i: Any) -> Any:
        (x, y), a = jnp.asarray(TARGETS)[i] + jnp.zeros(2), jnp.asarray(SLOPES)[i]
        return 0.25 * ((x - a * params["u"] * params["w"][0]) ** 2 + (y - a * params["u"] * params["w"][0]) ** 2)

    params = {"u": np.array(2.8), "w": np.array([3.5])}
    one = ss.backward_error(batch_loss, params, 0.2, lr=0.01, b2=B2, eps=1.0, batches=3, save_at=[0.1, 0.2])
    listed = ss.backward_error(BATCHES, START, 0.2, lr=0.01, b2=B2, eps=1.0, save_at=[0.1, 0.2])
    assert one.params["w"].shape == (1, 2, 1)
    np.testing.assert_allclose(one.params["u"], listed.params[..., 0], rtol=1e-9)
    np.testing.assert_allclose(one.v["w"][..., 0], listed.v[..., 1], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be a positive number"),
        ({"b2": 1.0}, r"b2=1.0 must lie in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be a positive number"),
        ({"method": "sgd"}, "method='sgd' is not one of"),
        ({"t1": 1e-4}, "t1=0.0001 is less than one step"),
        ({"batches": 0}, "batches=0 must be a positive integer"),
        ({"order": [0, 1]}, "a batch number for each of the 10 steps"),
        ({"order": np.ones(10, int)}, "batch numbers from 1 to 1, but there are 1 batches"),
        ({"save_at": [0.01, 0.011]}, "fewer than that many steps"),
        ({"loss": lambda w: w}, r"loss returns shape \(2,\)"),
        ({"loss": []}, "loss is an empty sequence"),
        ({"loss": "adam"}, "loss='adam' must be a function"),
        ({"loss": lambda w: jnp.log(-jnp.sum(w))}, "not finite at params0"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"loss": loss, "params0": START, "t1": 0.1, "lr": 0.01} | options
    with pytest.raises(ValueError, match=message):
        ss.backward_error(**call)


def test_a_flow_that_is_too_stiff_says_when() -> None:
    """Where the gradient vanishes the flow has rates h λ²/ε: with ε = 1e-12 no explicit solver follows."""
    with pytest.raises(ss.RunError, match=r"at time .*MAX_STEPS") as caught:
        ss.backward_error(lambda w: 0.5 * jnp.sum(w**2), np.array([0.05]), 0.2, lr=0.01, b2=0.5, eps=1e-12, save_at=21)
    partial = caught.value.trajectory
    good = np.isfinite(partial.params[0, :, 0])
    assert good[:4].all()
    assert not good[-1]
    assert partial.stats["failed_at"][0] == partial.ts[np.argmin(good)]

"""The backward-error ODE where it goes on from moments, without second moments, and where it fails and says so."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

START = np.array([2.8, 3.5])
B1, B2, T = 0.9, 0.95, 1.0
STEP_SIZES = (2e-3, 1e-3, 5e-4)


def loss(w: Any) -> Any:
    return 0.5 * (1.5 - 2 * w[0] * w[1]) ** 2


def gradient(w: Any) -> Any:
    return -2 * (1.5 - 2 * w[0] * w[1]) * w[::-1]


def iterates(x: Any, h: float, steps: int, method: str, corrects: bool, state: Any = (0.0, 0.0, 0)) -> Any:
    """Every iterate, and the state (m, v, k) after the last."""
    b1, adaptive = (0.0 if method == "gradient descent" else B1), method == "adam"
    (m, v, k), found = state, [x]
    for _ in range(steps):
        g, k = gradient(x), k + 1
        m, v = b1 * m + (1 - b1) * g, B2 * v + (1 - B2) * g**2
        m_hat, v_hat = (m / (1 - b1**k), v / (1 - B2**k)) if corrects else (m, v)
        x = x - h * (m_hat / np.sqrt(v_hat + 1e-2) if adaptive else m_hat)
        found.append(x)
    return np.array(found), (m, v, k)


def slope(errors: Any) -> float:
    return float(np.polyfit(np.log(STEP_SIZES), np.log(errors), 1)[0])


@pytest.mark.parametrize(("method", "corrects"), [("gradient descent", True), ("heavy ball", False)])
def test_methods_without_a_second_moment_are_followed_to_order_two(method: str, corrects: bool) -> None:
    def error(h: float, corrected: bool) -> float:
        # A step of gradient descent moves |∇E| times as far as one of Adam.
        h, end = h / 10, T / 10
        exact, _ = iterates(START, h, round(end / h), method, corrects)
        ode = ss.backward_error(loss, START, end, lr=h, b1=B1, method=method, save_at=6, corrected=corrected)
        assert ode.v is None
        return float(np.abs(ode.params[0] - exact[np.rint(ode.ts / h).astype(int)]).max())

    errors, plain = ([error(h, corrected) for h in STEP_SIZES] for corrected in (True, False))
    assert abs(slope(errors) - 2) < 0.15
    assert abs(slope(plain) - 1) < 0.15
    assert errors[-1] < 0.1 * plain[-1]


def test_it_goes_on_from_moments_and_a_step_number_to_order_two() -> None:
    """Adam after 15 steps, still in its transient; with half the momentum it is off at once."""

    def error(h: float, wrong: str = "") -> float:
        begin = 15
        before, (m, v, k) = iterates(START, h, begin, "adam", True)
        after, _ = iterates(before[-1], h, round(T / h), "adam", True, (m, v, k))
        given: dict[str, Any] = {"m0": 0.5 * m if wrong == "m0" else m, "v0": v, "step": begin}
        t1 = (begin + round(T / h)) * h
        ode = ss.backward_error(loss, before[-1], t1, lr=h, b1=B1, b2=B2, eps=1e-2, save_at=6, **given)
        assert ode.ts[0] == pytest.approx(begin * h)
        assert ode.stats["num_steps"] == round(T / h)
        return float(np.abs(ode.params[0] - after[np.rint(ode.ts / h).astype(int) - begin]).max())

    errors = [error(h) for h in STEP_SIZES]
    assert abs(slope(errors) - 2) < 0.2
    assert error(STEP_SIZES[-1], "m0") > 10 * errors[-1]


def test_a_run_in_two_parts_is_the_run_in_one() -> None:
    """The moments of the method at the break; the parts then differ from the whole by their errors alone, O(h²)."""
    h, begin = 1e-3, 400
    exact, _ = iterates(START, h, 800, "adam", True)
    _, (m, v, k) = iterates(START, h, begin, "adam", True)
    options: dict[str, Any] = {"lr": h, "b1": B1, "b2": B2, "eps": 1e-2, "save_at": 2}
    second = ss.backward_error(loss, exact[begin], 0.8, m0=m, v0=v, step=k, **options)
    whole = ss.backward_error(loss, START, 0.8, **options)
    gap = np.abs(whole.params[0, -1] - exact[-1]).max()
    assert np.abs(second.params[0, -1] - exact[-1]).max() < 2 * gap
    np.testing.assert_allclose(second.v[0, -1], whole.v[0, -1], rtol=1e-3)


def diagonal() -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.choice([-1.0, 1.0], size=(6, 12))
    targets = inputs[:, 0] - inputs[:, 1]
    start = np.concatenate([np.full(12, 0.7), np.full(12, 0.5)]) + 0.1 * rng.normal(size=24)
    return lambda w: 0.5 * jnp.mean((inputs @ (w[:12] ** 2 - w[12:] ** 2) - targets) ** 2), start


@pytest.mark.parametrize(("eps", "fails"), [(1.0, False), (1e-2, True)])
def test_it_warns_where_the_corrected_flow_is_worse_than_the_plain_one(eps: float, fails: bool) -> None:
    """A diagonal network, β2 = .99, η = .0025: about half as far off with ε = 1, fifteen times as far with .01."""
    function, start = diagonal()
    lr, b2, t1 = 0.0025, 0.99, 1.5
    optimizer = ss.adam_eps_inside(ss.slow_rate(lr, b2), B1, eps)
    still = ss.Problem(function, ss.GaussianNoise(0.0))
    times = ss.slow_time(np.arange(0, round(t1 / lr) + 1, round(0.1 / lr)), lr)
    exact = ss.run_discrete(still, optimizer, start, times[-1], lr=lr, paths=1, save_at=times, project=False)
    options: dict[str, Any] = {"lr": lr, "b1": B1, "b2": b2, "eps": eps, "save_at": times / lr, "rtol": 1e-7}

    def error(corrected: bool) -> float:
        found = ss.backward_error(function, start, t1, corrected=corrected, **options)
        return float(np.abs(found.params - exact.params).max())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        worse = error(True) > error(False)
    assert any("the expansion fails" in str(warning.message) for warning in caught) == fails
    assert worse == fails


def test_the_expansion_of_gradient_descent_is_half_of_its_sharpness() -> None:
    """|½h∇²E∇E|/|∇E| = ½hλ in a bowl; beyond the edge of stability, ½hλ > 1, the flow comes to rest where the method
    does not."""
    options: dict[str, Any] = {"method": "gradient descent", "save_at": 3}
    bowl = ss.backward_error(lambda w: 15 * jnp.sum(w**2), np.ones(2), 0.1, lr=0.01, **options)
    np.testing.assert_allclose(bowl.stats["expansion"][1:], 0.15, rtol=1e-6)
    with pytest.warns(
        UserWarning, match=r"by t=0.05 the term in lr is as large as the one without \(up to 1.5 times\)"
    ):
        ss.backward_error(lambda w: 150 * jnp.sum(w**2), np.ones(2), 0.1, lr=0.01, **options)


@pytest.mark.parametrize(
    ("function", "method", "message"),
    [
        (lambda w: -jnp.sum(w**2), "gradient descent", r"the first at time 12: DIVERGED, the flow ran away"),
        (lambda w: jnp.sum(jnp.sqrt(w)), "adam", r"the first at time 2: NON_FINITE, the flow leaves the domain"),
    ],
)
def test_a_flow_that_leaves_says_when(function: Any, method: str, message: str) -> None:
    with pytest.raises(ss.RunError, match=message):
        ss.backward_error(function, np.ones(1), 20.0, lr=0.01, b2=B2, eps=1e-2, method=method, save_at=11)


def test_a_loss_without_a_bound_is_told_and_a_far_minimum_is_not() -> None:
    options: dict[str, Any] = {"lr": 0.01, "b2": B2, "eps": 1e-2, "save_at": 11}
    with pytest.warns(UserWarning, match=r"From t=10 on it is 10 times .* to -452 at t=20: is it bounded below\?"):
        ss.backward_error(lambda w: -jnp.sum(w**2), np.ones(1), 20.0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss.backward_error(lambda w: 0.01 * jnp.sum((w - 100) ** 2), np.ones(1), 20.0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, "step=-1 must be a whole number"),
        ({"step": 3}, "step=3 with m0=None: pass the moment that adam had"),
        ({"m0": np.ones(2)}, "m0 was given, but step=0 is before the first gradient"),
        ({"method": "rmsprop", "m0": np.ones(2), "v0": np.ones(2), "step": 3}, "rmsprop has no such moment"),
        ({"m0": np.ones(3), "v0": np.ones(2), "step": 3}, r"m0 has leaves of shape \(3,\)"),
        ({"m0": np.ones(2), "v0": -np.ones(2), "step": 3}, "v0 must be finite and not negative"),
        ({"m0": np.ones(2), "v0": np.ones(2), "step": 10}, "t1=0.1 must be finite and larger than t0=0.1"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"t1": 0.1, "lr": 0.01} | options
    with pytest.raises(ValueError, match=message):
        ss.backward_error(loss, START, **call)

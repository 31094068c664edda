"""Functions that do the same are known as one, and compile once; those that might not are kept apart."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss
from manifolds.support.same_functions import first_alike

WEIGHT = 2.0


def by_default(a: Any) -> Any:
    return lambda w, z, a=a: jnp.sum(a * z * w**2)


def by_closure(a: Any) -> Any:
    return lambda w, z: a * z @ w**2


def scaled(a: Any, w: Any, z: Any) -> Any:
    return a * z @ w**2


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any

    def predict(self, w: Any, z: Any) -> Any:
        return self.a * z @ w**2


@dataclasses.dataclass
class Open:
    a: float

    def predict(self, w: Any, z: Any) -> Any:
        return self.a * z @ w**2


def same(one: Any, other: Any) -> bool:
    return first_alike(one) is first_alike(other)


ARRAY = jnp.ones(2)


@pytest.mark.parametrize("value", [2.0, 0, True, "a", None, (1, 2.0), ARRAY])
def test_equal_and_unchanging_is_one(value: Any) -> None:
    assert same(by_default(value), by_default(value))
    assert same(functools.partial(scaled, value), functools.partial(scaled, value))
    assert same(Frozen(value).predict, Frozen(value).predict)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), (2.0, 3.0), ((1,), (1.0,)), (ARRAY, jnp.ones(2))]
)
def test_different_values_stay_apart(one: Any, other: Any) -> None:
    assert not same(by_default(one), by_default(other))
    assert not same(functools.partial(scaled, one), functools.partial(scaled, other))
    assert not same(Frozen(one).predict, Frozen(other).predict)


def test_what_may_change_stays_apart() -> None:
    changing = np.ones(2)
    for one, other in (
        (by_closure(2.0), by_closure(2.0)),
        (by_default(changing), by_default(changing)),
        (by_default([1.0]), by_default([1.0])),
        (Open(1.0).predict, Open(1.0).predict),
        *[tuple((lambda w, z: WEIGHT * z @ w) for _ in range(2))],
        *[tuple((lambda w, z: scaled(1.0, w, z)) for _ in range(2))],
        *[tuple(jax.jit(scaled) for _ in range(2))],
    ):
        assert not same(one, other)


def test_a_fresh_lambda_compiles_nothing() -> None:
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **about: compiled.append(event) if "backend_compile" in event else None
    )
    inputs = np.array([[1.0, 0.5, 0.2], [0.2, -1.0, 1.0]])

    def call(a: float) -> Any:
        problem = ss.LeastSquares(by_default(a), inputs, a * inputs.sum(axis=1), ss.LabelNoise(0.5, batch_size=1))
        adam = ss.AGM(V=lambda g: g**2, S=lambda v: 1 / (jnp.sqrt(v) + 0.1), c=1.0)
        return ss.coefficients(problem, adam, np.ones(3)).drift

    first = call(2.0)
    compiled.clear()
    np.testing.assert_array_equal(call(2.0), first)
    assert not compiled
    assert np.max(np.abs(call(3.0) - first)) > 1e-3
    assert compiled

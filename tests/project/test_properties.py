"""Whatever is asked: a run, or a ValueError; never another exception. (To where long work would start.)"""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import slowsde as ss
from slowsde.support import arguments

quick = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
SCALARS = st.one_of(
    NUMBERS, st.integers(-3, 10**9), st.booleans(), st.none(), st.text(max_size=3), st.complex_numbers()
)
DTYPES = st.sampled_from(["float64", "float32", "float16", "int32", "bool", "complex128", "U1", "O"])
ARRAYS = st.builds(
    lambda dtype, shape, fill: np.full(shape, fill).astype(dtype),
    DTYPES,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    st.sampled_from([0.0, 1.0, 0.5]),
)
ANYTHING = st.one_of(SCALARS, ARRAYS, st.lists(NUMBERS, max_size=4), st.dictionaries(st.text(max_size=2), SCALARS))


SETTINGS = ("t0", "paths", "key", "dt", "rtol", "tol", "max_steps", "rank", "throw", "solver", "memory")


class Reached(BaseException):
    """All checks are passed: what follows is compiled."""


@pytest.fixture(autouse=True)
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*args: Any, **options: Any) -> Any:
        raise Reached

    monkeypatch.setattr(sys.modules["slowsde.dynamics.checks"], "check_numbers", reached)
    monkeypatch.setattr(sys.modules["slowsde.dynamics.checks"], "_paces", lambda optimizer, ts: np.ones(len(ts)))


def attempt(call: Any) -> bool:
    """Whether a call gets as far as it goes; False for a ValueError, and any other exception comes through."""
    try:
        call()
    except Reached:
        return True
    except ValueError:
        return False
    return True


def line(w: Any, z: Any) -> Any:
    return z @ w


@quick
@given(inputs=ANYTHING, targets=ANYTHING)
def test_the_data_of_least_squares(inputs: Any, targets: Any) -> None:
    def run() -> None:
        problem = ss.LeastSquares(lambda w, z: jnp.sum(z) * w[0], inputs, targets, ss.LabelNoise(0.5))
        ss.simulate(problem, ss.sgd(), np.ones(3), 1.0)

    attempt(run)


INPUTS = np.array([[1.0, 0.5, 0.0], [0.2, -1.0, 1.0]])


@quick
@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
def test_the_shape_of_targets(shape: tuple[int, ...]) -> None:
    def run() -> None:
        ss.simulate(ss.LeastSquares(line, INPUTS, np.ones(shape), ss.LabelNoise(0.5)), ss.sgd(), np.ones(3), 1.0)

    assert attempt(run) == (shape in ((2,), (2, 1), (2, 1, 1)))


@quick
@given(std=ANYTHING, batch_size=SCALARS, kind=st.one_of(st.sampled_from(["normal", "rademacher"]), SCALARS))
def test_label_noise(std: Any, batch_size: Any, kind: Any) -> None:
    def run() -> None:
        noise = ss.LabelNoise(std, batch_size, kind)
        ss.simulate(ss.LeastSquares(line, INPUTS, np.ones(2), noise), ss.sgd(), np.ones(3), 1.0)

    attempt(run)


@quick
@given(save_at=ANYTHING, t0=SCALARS, t1=SCALARS)
def test_saved_times(save_at: Any, t0: Any, t1: Any) -> None:
    found: list[np.ndarray] = []
    if attempt(lambda: found.append(arguments.save_times(save_at, t0, t1))) and found:
        assert found[0].ndim == 1
        assert np.all(np.diff(found[0]) > 0)
        assert t0 <= found[0][0] <= found[0][-1] <= t1


@quick
@given(
    options=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("t0", "paths", "key", "dt", "rtol", "tol", "max_steps", "rank", "throw", "solver", "memory"), SCALARS
        )
        | {"save_at": ANYTHING, "v0": ANYTHING, "metrics": ANYTHING, "route": SCALARS, "dtype": SCALARS},
    ),
    t1=SCALARS,
)
def test_settings_of_runs(options: dict[str, Any], t1: Any) -> None:
    problem = ss.LeastSquares(line, INPUTS, np.ones(2), ss.LabelNoise(0.5))
    attempt(lambda: ss.simulate(problem, ss.adam(1.0), np.ones(3), t1, **options))
    kept = {"t0", "paths", "key", "max_steps", "rank", "throw", "memory", "save_at", "v0", "metrics", "route", "dtype"}
    other = {name: value for name, value in options.items() if name in kept}
    attempt(lambda: ss.run_discrete(problem, ss.adam(1.0), np.ones(3), t1, lr=0.1, **other))


@quick
@given(c=ANYTHING, b1=ANYTHING, eps=ANYTHING, decay=ANYTHING, mask=ANYTHING, schedule=ANYTHING, correction=SCALARS)
def test_settings_of_optimizers(
    c: Any, b1: Any, eps: Any, decay: Any, mask: Any, schedule: Any, correction: Any
) -> None:
    attempt(lambda: ss.adam(c, b1, eps))
    attempt(lambda: ss.sgd(weight_decay=decay, mask=mask))
    attempt(lambda: ss.sgd(schedule=schedule, bias_correction=correction))
    attempt(lambda: ss.adam_mini(1.0, blocks=decay))
    attempt(lambda: ss.grouped({"a": ss.sgd()}, decay, learning_rates=mask))


@quick
@given(params=ANYTHING)
def test_parameters(params: Any) -> None:
    problem = ss.Problem(lambda x: jnp.sum(jnp.asarray(x)) ** 2, ss.GaussianNoise(0.3))
    attempt(lambda: ss.simulate(problem, ss.sgd(), params, 1.0))

"""Work that would not end in a life is refused before it starts; a run that ran away is no success."""

import re
import time
from typing import Any

import numpy as np
import pytest

import slowsde as ss
from slowsde.support import effort

VALLEY = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=ss.GaussianNoise(0.3))
START = np.array([0.1, 1.0])


def discrete(**options: Any) -> Any:
    return ss.run_discrete(VALLEY, ss.sgd(), START, 1.0, **{"lr": 0.05} | options)


def slow(**options: Any) -> Any:
    return ss.simulate(VALLEY, ss.sgd(), START, 1.0, **options)


def rival(**options: Any) -> Any:
    return ss.conventional_sde(VALLEY, ss.sgd(), START, 1.0, **{"lr": 0.05} | options)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (discrete, {"lr": 1e-7}, "lr=1e-07 to t1=1 would take 1e+14 steps, more than max_steps=1e+09"),
        (discrete, {"lr": 1e-200}, "lr=1e-200 must be positive, and so must be lr²"),
        (discrete, {"lr": 0.05, "max_steps": 100}, "would take 400 steps, more than max_steps=100"),
        (discrete, {"paths": 10**9}, "1,000,000,000 paths of 2 parameters at 101 times would take 14.5 TB"),
        (slow, {"paths": 10**9}, "1,000,000,000 paths of 2 parameters at 101 times would take 14.5 TB"),
        (slow, {"dt": 1e-14}, "1e+14 steps of dt=1e-14 would take 4.8 PB"),
        (slow, {"save_at": 10**13}, "save_at=10000000000000 would take 80 TB"),
        (slow, {"paths": 1000, "memory": 1e6}, "and memory= allows 1 MB"),
        (rival, {"lr": 1e-7}, "1e+14 steps, more than max_steps"),
        (rival, {"lr": 1e-4, "max_steps": 10**12, "memory": 1e9}, "steps of dt=1e-08 would take 4.8 GB"),
        (rival, {"paths": 10**9}, "1,000,000,000 paths"),
    ],
)
def test_endless_work_is_refused_with_its_size(call: Any, options: dict[str, Any], message: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=re.escape(message)):
        call(**options)
    assert time.perf_counter() - started < 2


def test_a_dense_hessian_of_too_many_parameters_is_refused() -> None:
    problem = ss.Problem(lambda x: x[0] ** 2 + 0 * x[1], noise=ss.GaussianNoise(np.ones((100_000, 1))))
    with pytest.raises(ValueError, match=r"Hessians of 100,000 parameters would take 320 GB.*LeastSquares"):
        ss.simulate(problem, ss.sgd(), np.ones(100_000), 1.0)


def test_the_advice_works() -> None:
    with pytest.raises(ValueError, match=r"raise the bound by memory=1e\+06") as caught:
        rival(t0=0.0, save_at=2, lr=0.5, paths=1000, memory=1e5)
    bound = float(re.search(r"memory=(\S+) ", str(caught.value)).group(1))  # pyright: ignore[reportOptionalMemberAccess]
    assert rival(save_at=2, lr=0.5, paths=1000, memory=bound).paths == 1000


def test_what_a_machine_has_is_known() -> None:
    assert 1e8 < effort.machine_memory() < 1e16


def test_a_discrete_run_that_ran_away_is_no_success() -> None:
    """η λ = 6 at lr = 0.1: the iterates grow by a factor of 5 a step, and are finite still after 60 of them."""
    options: dict[str, Any] = {"lr": 0.1, "paths": 3, "project": False, "save_at": 7}
    flat = ss.Problem(lambda x: 30 * x[0] ** 2 + 0 * x[1], noise=ss.GaussianNoise(0.1))
    with pytest.raises(ss.RunError, match=r"3 of 3 paths failed.*DIVERGED, the path ran away") as caught:
        ss.run_discrete(flat, ss.sgd(), START, 0.6, **options)
    found = caught.value.trajectory
    assert set(found.result) == {ss.Result.DIVERGED}
    reached = np.isfinite(found.params[..., 0])
    assert reached[:, 0].all()
    assert not reached[:, -1].any()
    assert np.all(np.abs(found.params[reached]) < 1e10)
    assert np.all((found.stats["failed_at"] > 0) & (found.stats["failed_at"] <= 0.6))


def test_a_conventional_sde_that_ran_away_is_no_success() -> None:
    flat = ss.Problem(lambda x: 30 * x[0] ** 2 + 0 * x[1], noise=ss.GaussianNoise(0.1))
    found = ss.conventional_sde(flat, ss.sgd(), START, 0.6, lr=0.1, solver="euler", paths=2, save_at=7, throw=False)
    assert set(found.result) == {ss.Result.DIVERGED}


def test_sgd_has_no_c_that_bounds_its_rate() -> None:
    weak = ss.Problem(lambda x: 0.05 * (1 + x[1] ** 2) * x[0] ** 2, noise=ss.GaussianNoise(0.01))
    assert ss.run_discrete(weak, ss.sgd(), START, 40.0, lr=2.0, paths=2, save_at=3).paths == 2

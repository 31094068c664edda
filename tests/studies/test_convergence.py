"""Convergence studies: the fitted order and its interval on synthetic errors of known law, and on real runs."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from scipy.stats import binom
from test_label_noise import TwiceTheDrift, diagonal_network

import slowsde as ss
from slowsde.studies.convergence import study_of_runs
from slowsde.studies.order_fit import fit_order

mpl.use("agg")
import matplotlib.pyplot as plt

LRS = np.array([0.08, 0.04, 0.02, 0.01])
STUDIES = 400
START = {"u": np.array([1.0, 0.9, 0.6]), "v": np.array([0.3, 0.5, 0.8])}


def covered(order: float, draw: Callable[[np.random.Generator], np.ndarray], covariance: np.ndarray) -> int:
    """How many of the synthetic studies have the true order in their 95 % interval; none may be refused."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(STUDIES):
        fit = fit_order(LRS, draw(rng), covariance)
        assert not fit.refusal
        hits += fit.interval[0] < order < fit.interval[1]
    return hits


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("noise", [0.01, 0.08])
def test_interval_covers_the_order_where_the_noise_is_known(order: float, noise: float) -> None:
    """Widened where χ² per degree of freedom exceeds one by chance, it covers 96.8 %: more than it promises."""
    exact = -3.0 * LRS**order
    spread = noise * np.abs(exact)
    hits = covered(order, lambda rng: exact + spread * rng.normal(size=LRS.size), np.diag(spread**2))
    low, high = binom.interval(0.999, STUDIES, 0.95)
    assert low <= hits <= high


def test_interval_covers_the_order_where_the_errors_share_the_noise_of_one_slow_ensemble() -> None:
    """Taken for independent, shared noise would bend all slopes one way."""
    exact, shared, own = 3.0 * LRS, 0.05 * LRS.min() * 3.0, 0.01 * LRS * 3.0
    covariance = shared**2 + np.diag(own**2)
    hits = covered(1.0, lambda rng: exact + shared * rng.normal() + own * rng.normal(size=LRS.size), covariance)
    low, high = binom.interval(0.999, STUDIES, 0.95)
    assert low <= hits <= high


def test_interval_covers_the_order_where_the_misfit_is_much_larger_than_the_noise() -> None:
    """Then the scatter itself and Student's t make the interval, whose coverage is exactly 95 %."""
    covariance = np.diag((1e-4 * LRS) ** 2)
    hits = covered(1.0, lambda rng: LRS * np.exp(0.02 * rng.normal(size=LRS.size)), covariance)
    low, high = binom.interval(0.99, STUDIES, 0.95)
    assert low <= hits <= high


def test_the_fit_is_exact_on_a_power_law() -> None:
    fit = fit_order(LRS, 7.0 * LRS**0.75, np.diag((0.02 * LRS) ** 2))
    assert fit.order == pytest.approx(0.75, abs=1e-12)
    assert fit.misfit < 1e-12
    assert fit_order(LRS, 7.0 * LRS**0.75, np.zeros((4, 4))).order == pytest.approx(0.75, abs=1e-9)
    two = fit_order(LRS[:2], 7.0 * LRS[:2], np.diag((0.02 * LRS[:2]) ** 2))
    assert two.interval[0] < 1 < two.interval[1]
    assert np.isnan(two.misfit)


def test_weights_are_those_of_the_standard_errors() -> None:
    """An outlier of a large standard error hardly moves the slope, one of a small standard error does."""
    errors = LRS * np.array([1.0, 1.0, 1.0, 1.3])
    loose = fit_order(LRS, errors, np.diag((np.array([0.01, 0.01, 0.01, 0.2]) * LRS) ** 2))
    tight = fit_order(LRS, errors, np.diag((0.01 * LRS) ** 2))
    assert abs(loose.order - 1) < 0.01 < 0.1 < abs(tight.order - 1)
    assert tight.interval[1] - tight.interval[0] > 0.3  # the misfit counts


def study(errors: np.ndarray, spread: float = 1.0, paths: int = 400) -> ss.ConvergenceStudy:
    """A study of given errors whose standard errors are `spread`, from samples of just those moments."""
    samples = np.tile([1.0, -1.0], paths // 2) * np.sqrt(paths - 1) * spread

    def run(values: np.ndarray, label: str, **stats: Any) -> ss.Trajectory:
        values = values.reshape((len(values), -1))
        n, times = values.shape
        return ss.Trajectory(
            np.linspace(0.5, 1, times), np.zeros((n, times, 1)), None, {"q": values}, stats, np.zeros(n, int), label
        )

    runs = [run(5 + e + samples, "discrete", lr=lr) for lr, e in zip(LRS, errors, strict=True)]
    return study_of_runs(run(np.array([[5.0]]), "slow"), [0] * LRS.size, runs)


def test_errors_and_standard_errors_are_those_of_the_samples() -> None:
    found = study(np.array([-80.0, -40.0, -20.0, -10.0]))
    np.testing.assert_allclose(found.errors["q"], [-80, -40, -20, -10])
    np.testing.assert_allclose(found.standard_errors["q"], 1.0)
    np.testing.assert_array_equal(found.reference["q"], 5.0)
    np.testing.assert_array_equal(found.reference_error["q"], 0.0)
    assert found.order["q"] == pytest.approx(1.0)
    low, high = found.order_interval["q"]
    assert low < 1 < high < low + 0.3


def test_the_spread_of_the_slow_paths_counts() -> None:
    rng = np.random.default_rng(0)
    slow = ss.Trajectory(
        np.array([1.0]), np.zeros((100, 1, 1)), None, {"q": rng.normal(size=(100, 1))}, {}, np.zeros(100, int)
    )
    runs = [
        ss.Trajectory(
            np.array([1.0]),
            np.zeros((100, 1, 1)),
            None,
            {"q": rng.normal(size=(100, 1))},
            {"lr": lr},
            np.zeros(100, int),
        )
        for lr in LRS
    ]
    found = study_of_runs(slow, [0] * 4, runs)
    np.testing.assert_allclose(found.standard_errors["q"], np.sqrt(2) / 10, rtol=0.2)
    np.testing.assert_allclose(found.covariance["q"][0, 1], found.reference_error["q"][0] ** 2)


def test_no_order_is_given_for_unresolved_errors() -> None:
    found = study(np.array([80.0, 40.0, 3.0, -0.5]))
    assert np.isnan(found.order["q"])
    assert np.isnan(found.order_interval["q"]).all()
    table = found.table()
    assert "no order" in table
    assert "lr=0.02 (3.0 s.e.; about 854 paths" in table
    assert "lr=0.01 (0.5 s.e.; more than 7680 paths" in table
    assert "lr=0.04" not in table


def test_no_order_is_given_for_errors_of_both_signs() -> None:
    found = study(np.array([80.0, 40.0, -20.0, -10.0]))
    assert np.isnan(found.order["q"])
    assert "changes its sign (lr=0.08, 0.04" in found.table()


def test_no_order_is_given_for_rounding_errors() -> None:
    found = study(np.array([3.0, 2.0, 1.5, 1.0]) * 1e-12, spread=0.0)
    assert np.isnan(found.order["q"])
    assert "rounding" in found.table()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrs": (0.1,)}, "lrs="),
        ({"lrs": (0.1, 0.1)}, "lrs="),
        ({"lrs": (0.1, -0.1)}, "lrs="),
        ({"lrs": (0.1, np.nan)}, "lrs="),
        ({"lrs": "fast"}, "lrs="),
        ({"lrs": (0.1, 2.0), "t1": 9.0, "optimizer": ss.adam(c=1.0)}, "β2"),
        ({"lrs": (0.1, 0.9), "t1": 0.5}, "one step"),
        ({"paths": 1}, "paths="),
        ({"paths": (8, 1)}, "paths="),
        ({"paths": (8, 8, 8)}, "paths="),
        ({"paths": 8.0}, "paths="),
        ({"observables": ()}, "observables="),
        ({"observables": "no such metric"}, "no such metric"),
        ({"optimizer": "sgd"}, "optimizer="),
        ({"optimizer": ss.adam(c=jnp.inf)}, "c=inf"),
        ({"problem": diagonal_network(None)}, "noise"),
        ({"problem": diagonal_network(ss.GaussianNoise(1.0)), "slow_paths": 1}, "slow_paths="),
        ({"t1": -1.0}, "t1="),
        ({"key": 3.5}, "key="),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    good = {
        "problem": diagonal_network(ss.LabelNoise(1.0)),
        "optimizer": ss.sgd(),
        "params0": START,
        "t1": 1.0,
        "lrs": (0.1, 0.05),
        "paths": 8,
        "observables": "trace_hessian",
    }
    with pytest.raises(ValueError, match=message):
        ss.convergence_study(**(good | changes))


OBSERVABLES = ("trace_hessian", "trace_sqrt_diag_hessian")


@pytest.fixture(scope="module")
def sgd_study() -> ss.ConvergenceStudy:
    problem = diagonal_network(ss.LabelNoise(1.0))
    start = ss.to_manifold(problem, START)
    return ss.convergence_study(problem, ss.sgd(), start, 0.2, lrs=LRS, paths=256, observables=OBSERVABLES)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_sgd_approaches_its_slow_flow_at_order_one(sgd_study: ss.ConvergenceStudy, name: str) -> None:
    low, high = sgd_study.order_interval[name]
    assert high - low < 0.3
    assert 0.85 < sgd_study.order[name] < 1.2
    assert np.all(sgd_study.errors[name] < 0)
    assert np.all(np.diff(np.abs(sgd_study.errors[name])) < 0)
    assert sgd_study.slow_paths == 1
    np.testing.assert_array_equal(sgd_study.reference_error[name], 0.0)


def test_times_are_those_of_the_discrete_runs(sgd_study: ss.ConvergenceStudy) -> None:
    np.testing.assert_allclose(sgd_study.ts, np.rint(0.2 / LRS**2) * LRS**2, rtol=1e-12)


def test_table_and_figure_tell_the_order(sgd_study: ss.ConvergenceStudy) -> None:
    table = sgd_study.table()
    assert f"order {sgd_study.order['trace_hessian']:.3f}, 95 % interval" in table
    ax = sgd_study.plot(name="trace_hessian")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "learning rate" in ax.get_xlabel()
    assert "weak error" in ax.get_ylabel()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("order" in label for label in labels)
    assert {"slope 0.5", "slope 1"} <= set(labels)
    unresolved = study(np.array([80.0, 40.0, 3.0, -0.5])).plot()
    assert not any("order" in text.get_text() for text in unresolved.get_legend().get_texts())
    own = plt.figure().subplots()
    assert sgd_study.plot(own) is own
    plt.close("all")


@pytest.mark.slow
def test_rmsprop_approaches_its_slow_flow_at_order_one() -> None:
    """256, 512 and 1024 runs, so that every error is beyond 15 standard errors."""
    problem = diagonal_network(ss.LabelNoise(1.0))
    found = ss.convergence_study(
        problem,
        ss.rmsprop(c=2.0, eps=0.05),
        ss.to_manifold(problem, START),
        0.2,
        lrs=(0.04, 0.02, 0.01),
        paths=(256, 512, 1024),
        observables=OBSERVABLES,
    )
    print(found.table())
    for name in OBSERVABLES:
        low, high = found.order_interval[name]
        assert 0.85 < low < 1.03 < high + 0.05 < 1.2


@pytest.mark.slow
def test_adam_with_momentum_approaches_its_slow_flow_faster_than_at_order_one() -> None:
    """At β1 = 0.9 the term of second order, that of the momentum, dominates at these rates, and has the other sign."""
    problem = diagonal_network(ss.LabelNoise(1.0))
    found = ss.convergence_study(
        problem,
        ss.adam(c=2.0, eps=0.05),
        ss.to_manifold(problem, START),
        0.2,
        lrs=(0.04, 0.028, 0.02),
        paths=(1024, 2048, 4096),
        observables=OBSERVABLES,
    )
    print(found.table())
    for name in OBSERVABLES:
        low, high = found.order_interval[name]
        assert 1.0 < low < 2 < high + 0.1
        assert np.all(found.errors[name] > 0)


def test_a_flow_twice_as_fast_is_not_approached() -> None:
    """The mutant −α/2 in place of −α/4: the error goes to a constant, so that its order is 0."""
    start = ss.to_manifold(diagonal_network(ss.LabelNoise(1.0)), START)
    mutant = ss.convergence_study(
        diagonal_network(TwiceTheDrift(1.0)), ss.sgd(), start, 0.2, lrs=LRS, paths=64, observables=OBSERVABLES
    )
    for name in OBSERVABLES:
        assert mutant.order_interval[name][1] < 0.3


@pytest.mark.slow
def test_a_diffusing_study_counts_the_slow_ensemble_and_resolves_nothing_with_few_paths() -> None:
    """Brownian motion on the circle: a discrete run at these learning rates cannot be told from it with 32 paths."""
    problem = ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(1.0))
    found = ss.convergence_study(
        problem,
        ss.sgd(),
        np.array([1.0, 0.0]),
        0.5,
        lrs=(0.1, 0.05),
        paths=32,
        dt=0.01,
        observables={"x": lambda x: x[0]},
    )
    assert found.slow_paths == 512
    assert np.all(found.reference_error["x"] > 0)
    assert np.all(found.standard_errors["x"] > found.reference_error["x"])
    np.testing.assert_allclose(found.reference["x"], np.exp(-0.25), atol=4 * found.reference_error["x"].max() + 0.01)
    assert "no order" in found.verdict("x")

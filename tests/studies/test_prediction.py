"""Predictions at a learning rate: exact on polynomials, errors that cover, held runs met where the slow SDE misses."""

import dataclasses
import functools
from typing import Any

import jax.random as jr
import matplotlib as mpl
import numpy as np
import pytest

import slowsde as ss
from slowsde.studies import interpolation, prediction
from slowsde.studies.interpolation import interpolate, interpolated_moments
from slowsde.studies.prediction import _by_stages, _delay
from slowsde.studies.rates import Rates, Setting, chosen_rates

mpl.use("agg")
import matplotlib.pyplot as plt

LR, RATES = 0.01, np.array([0.02, 0.04, 0.08])
NAMES = ("trace_hessian", "trace_sqrt_diag_hessian")


def network() -> tuple[ss.LeastSquares, Any]:
    """f(z) = ⟨z, u² − v²⟩ with six weights on two samples, label noise, from a point of Γ."""
    inputs = np.array([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    targets = inputs @ np.array([1.0, 0.5, -0.3])
    problem = ss.LeastSquares(lambda p, z: z @ (p[0] ** 2 - p[1] ** 2), inputs, targets, ss.LabelNoise(1.0))
    return problem, ss.to_manifold(problem, np.array([[1.0, 0.9, 0.6], [0.3, 0.5, 0.8]]))


ADAM, RMSPROP = "Adam", "RMSProp"
OPTIMIZERS = {ADAM: ss.adam(c=2.0, eps=0.05), RMSPROP: ss.rmsprop(c=2.0, eps=0.05)}


@functools.cache
def predicted(optimizer: str) -> ss.Prediction:
    problem, start = network()
    rates = (0.02, 0.04) if optimizer == ADAM else None
    return ss.predict(problem, OPTIMIZERS[optimizer], start, 0.5, lr=LR, rates=rates, metrics=NAMES, save_at=11)


@functools.cache
def held(optimizer: str) -> ss.Trajectory:
    problem, start = network()
    return ss.run_discrete(
        problem, OPTIMIZERS[optimizer], start, 0.5, lr=LR, paths=256, metrics=NAMES, save_at=11, key=jr.key(7)
    )


# The interpolation ---------------------------------------------------------------------------------


def no_noise(rates: np.ndarray, T: int) -> np.ndarray:
    return np.zeros((T, rates.size, rates.size))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_polynomials_that_vanish_at_0_are_met_exactly_without_noise(count: int) -> None:
    """Of a degree up to the number of rates, to rounding; one more is not, and the model error says so."""
    rates, t = RATES[:count], np.linspace(1, 2, 5)[:, None]
    powers = np.arange(1, count + 1)
    gaps = np.sum([t**k * (rates / 0.08) ** k for k in powers], axis=0)
    exact = np.sum([t[:, 0] ** k * (LR / 0.08) ** k for k in powers], axis=0)
    found = interpolate(rates, LR, gaps, no_noise(rates, 5))
    np.testing.assert_allclose(found.value, exact, rtol=1e-8)
    assert np.all(found.standard_error == 0)
    np.testing.assert_allclose(found.weights @ rates, LR, rtol=1e-12)
    more = interpolate(rates, LR, gaps + (rates / 0.08) ** (count + 1), no_noise(rates, 5))
    missed = np.abs(more.value - exact - (LR / 0.08) ** (count + 1))
    assert np.all(missed > 1e-4)
    assert np.all(missed < 2 * more.model_error)


def test_without_a_bend_the_weights_are_those_of_least_squares() -> None:
    """A line through 0, weighted by 1/variance; equal weights for all would be noisier."""
    variances = np.array([1.0, 3.0, 20.0])
    weights = interpolation._weights(RATES, LR, *interpolation._powers(RATES, LR), np.diag(variances), np.zeros(3), 0.0)
    line = LR * RATES / variances / np.sum(RATES**2 / variances)
    np.testing.assert_allclose(weights, line, rtol=1e-9)
    equal = LR * RATES / np.sum(RATES**2)
    assert equal**2 @ variances > 1.5 * weights**2 @ variances


def random_curves(rng: np.random.Generator, T: int = 21) -> Any:
    """D(η) at T times of one run: growing, bending by a random ratio, as a function of η."""
    times, size = np.linspace(0, 1, T), rng.normal()
    bend = np.exp(rng.uniform(np.log(0.1), np.log(2.0))) * rng.choice([-1, 1])
    turn = rng.uniform(1, 3)

    def gap(rate: Any) -> np.ndarray:
        x = np.asarray(rate)[..., None] / 0.08
        return size * np.sin(turn * times) * x * (1 + bend * times * x / (1 + 0.5 * x))

    return gap


def coverage(weigh: Any = None, rates: np.ndarray = RATES[:2], paths: int = 64) -> tuple[float, float]:
    """Share of (curve, time) within 2 errors over 200 random curves with noise, and the median of error/said."""
    rng, inside, ratios = np.random.default_rng(3), [], []
    for _ in range(200):
        gap = random_curves(rng)
        # Noise that stays along a run, of variance ∝ η.
        spread = 2 * np.sqrt(rates)[:, None, None] * rng.uniform(0.2, 2)
        runs = gap(rates)[:, None, :] + spread * rng.normal(size=(rates.size, paths, 1)) * np.linspace(0, 1, 21)
        found, _ = interpolated_moments(rates, LR, np.zeros((rates.size + 1, 1, 1, 21)), list(runs))
        value = found.value if weigh is None else weigh(found, runs.mean(axis=1))
        off = np.abs(value - gap(LR))[1:] / np.hypot(found.standard_error, found.model_error)[1:]
        inside.append(np.mean(off < 2))
        ratios.append(np.median(off))
    return float(np.mean(inside)), float(np.median(ratios))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stated_errors_cover_and_are_no_wider_than_they_must_be(count: int) -> None:
    """200 random curves at 21 times: 90 % and more within twice both errors, half of them beyond a tenth of them."""
    inside, median = coverage(rates=RATES[:count])
    print(f"{count} rates: {inside:.3f} within 2 errors, median {median:.2f} errors")
    assert inside > 0.9
    assert median > 0.1


def test_wrong_weights_are_seen() -> None:
    """A gap that is scaled by η²/η_j² instead of η/η_j, or the mean of the two nearest runs: not covered."""
    assert coverage(lambda found, means: (LR / RATES[0]) ** 2 * means[0])[0] < 0.8
    assert coverage(lambda found, means: means[0])[0] < 0.5


def test_runs_of_one_number_that_correlate_are_known_to() -> None:
    """500 repetitions of 64 runs at two rates with correlation ½ over the paths, some of them missing at one time."""
    rng, rates, errors = np.random.default_rng(5), RATES[:2], []
    for _ in range(500):
        common = rng.normal(size=(64, 1))
        runs = [rate * 50 + np.sqrt(rate) * (common + rng.normal(size=(64, 1))) * np.ones((64, 3)) for rate in rates]
        runs[0][:2, 1] = np.nan
        found, _ = interpolated_moments(rates, LR, np.zeros((3, 1, 1, 3)), runs)
        errors.append(np.append((found.value - 50 * LR), found.standard_error))
    off, said = np.split(np.array(errors), 2, axis=1)
    np.testing.assert_allclose(off.std(axis=0), said.mean(axis=0), rtol=0.12)
    alike = interpolation.correlations([common * np.ones((64, 3))] * 2)[0, 1]
    assert 0.7 < alike < 0.8
    assert interpolation.correlations([np.ones((4, 3))] * 2)[0, 1] == 0


def test_the_error_of_slow_paths_counts_once_in_all_anchors() -> None:
    """500 repetitions with 40 slow paths, the same in the anchor and in both gaps, and 100 runs at each rate."""
    rng, found, said = np.random.default_rng(0), [], []
    rates, ones = RATES[:2], np.ones(3)
    for _ in range(500):
        slow = 3 + rng.normal(size=(1, 40, 1)) * ones
        runs = [3 + rate + 1.1 * rng.normal(size=(100, 1)) * ones for rate in rates]
        estimate, _ = interpolated_moments(rates, LR, np.repeat(slow[:, None], 3, axis=0), runs)
        found.append(estimate.value[0] - 3 - LR)
        said.append(np.hypot(estimate.standard_error, 0)[0])
    assert np.std(found) == pytest.approx(np.mean(said), rel=0.1)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(500)


def test_the_spread_of_starts_is_in_no_error() -> None:
    """500 repetitions from 40 starts of spread 5: of each four slow paths that diffuse, one run at two rates each."""
    rng, found, said, spreads = np.random.default_rng(0), [], [], []
    rates, ones, starts = RATES[:2], np.ones(3), 5 * np.random.default_rng(1).normal(size=(40, 1))
    for _ in range(500):
        slow = starts[:, None] + rng.normal(size=(40, 4, 1)) * ones
        runs = [starts + 300 * rate + 1.1 * rng.normal(size=(40, 1)) * ones for rate in rates]
        estimate, spread = interpolated_moments(rates, LR, np.repeat(slow[None], 3, axis=0), runs)
        found.append(estimate.value[0] - starts.mean() - 300 * LR)
        said.append(estimate.standard_error[0])
        spreads.append(spread[0])
    assert np.std(found) == pytest.approx(np.mean(said), rel=0.1)
    assert np.mean(said) < 0.5 * 5 / np.sqrt(40)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(500)
    assert np.median(spreads) == pytest.approx(1.1, rel=0.15)


@pytest.mark.parametrize("bend", [0.0, 50.0, 1e6])
def test_a_variance_between_linear_and_quadratic_is_met_to_a_third(bend: float) -> None:
    """a + bη times η, at a quarter of the nearer of two rates, known to 18 % each as by 64 runs: in the median."""
    rng, rates = np.random.default_rng(2), np.array([4, 8]) * LR
    values = (rates + bend * rates**2)[:, None] * rng.chisquare(63, size=(2, 400)) / 63
    found = interpolation.power_law(rates, LR, values, np.full((2, 400), 2 / 63))
    off = np.sqrt(found / (LR + bend * LR**2)) - 1
    print(f"standard deviation off by {np.median(off):+.2f}, within {np.quantile(np.abs(off), 0.9):.2f} in 90 %")
    assert np.abs(np.median(off)) < 1 / 3


def test_the_spread_of_a_run_is_interpolated_and_what_is_undefined_stays_so() -> None:
    rng, times = np.random.default_rng(1), 4
    runs = [np.sqrt(rate + 50 * rate**2) * rng.normal(size=(2000, times)) for rate in RATES]
    runs[1][:, 2] = np.nan
    runs[0][:100, 1] = np.nan
    found, spread = interpolated_moments(RATES, LR, np.zeros((4, 1, 1, times)), runs)
    known = [0, 1, 3]
    np.testing.assert_allclose(spread[known], np.sqrt(LR + 50 * LR**2), rtol=0.15)
    assert np.isfinite(found.value[known]).all()
    assert np.isnan([found.value[2], found.standard_error[2], spread[2]]).all()


# The delay of a start ------------------------------------------------------------------------------


@pytest.mark.parametrize(("b1", "lr"), [(0.0, 0.01), (0.9, 0.003), (0.9, 0.001)])
def test_the_delay_is_that_of_the_linear_motion_about_the_manifold(b1: float, lr: float) -> None:
    """E x² from x = m = 0, by its recursion, lags its stationary value by τ + 1/(2ηλ) steps, τ = β1/(1−β1).

    The filter of the gradients adds τ: 2τη² + η/(2λ) of slow time, all of it after a while."""
    rate, tau = 0.5, b1 / (1 - b1)
    step = np.array([[1 - lr * (1 - b1) * rate, -lr * b1], [(1 - b1) * rate, b1]])
    kick = np.array([-lr * (1 - b1), 1 - b1])
    moments, lag = np.zeros((2, 2)), 0.0
    still = np.linalg.solve(np.eye(4) - np.kron(step, step), np.outer(kick, kick).ravel()).reshape(2, 2)
    for _ in range(int(30 / (lr * rate))):
        moments = step @ moments @ step.T + np.outer(kick, kick)
        lag += 1 - moments[0, 0] / still[0, 0]
    assert lag == pytest.approx(tau + 1 / (2 * lr * rate), rel=0.02)
    shape = np.zeros((1, 2))
    stats = {"mean_relaxation": shape + 1 / rate, "pace": np.ones(2)}
    slow = ss.Trajectory(np.array([0.0, 9.0]), None, None, {}, stats, np.zeros(1, int))
    late = _delay(slow, ss.sgd(b1=b1), diffuses=False)(lr, np.array([0.0, 9.0]))
    np.testing.assert_allclose(late, [0, (lag + tau) * lr**2], rtol=0.02, atol=1e-15)


class Asked:
    """Finished runs in place of those that would be made."""

    times, copies, stacked = np.linspace(0, 0.5, 11), 1, False

    def __init__(self, *runs: ss.Trajectory) -> None:
        self.runs = {run.stats["lr"]: run for run in runs}

    def at(self, rate: float) -> np.ndarray:
        return np.rint(self.times / rate**2) * rate**2

    def slow(self, at: np.ndarray, copies: int, name: str) -> ss.Trajectory:
        return predicted(ADAM).slow

    def discrete(self, rate: float) -> ss.Trajectory:
        return self.runs[rate]


# Runs ----------------------------------------------------------------------------------------------


def test_held_runs_are_met_where_the_slow_flow_is_not() -> None:
    """RMSProp at η = 0.01 against 256 runs: within 2 errors, where the slow flow is beyond 4, 4 times as far off."""
    found, fast = predicted(RMSPROP), held(RMSPROP)
    print(found.table())
    compared, plain = ss.compare(found, fast), ss.compare(found.slow, fast)
    print(compared.table())
    for name in NAMES:
        within = np.abs(compared.gap[name]) <= 2 * compared.standard_error[name] + 1e-9
        assert within.mean() >= 0.9
        np.testing.assert_allclose(compared.gap[name], fast.metrics[name].mean(axis=0) - found.mean[name], atol=1e-12)
        assert np.all(np.abs(plain.gap[name])[1:] > 4 * plain.standard_error[name][1:])
        assert np.mean(np.abs(compared.gap[name])) < 0.25 * np.mean(np.abs(plain.gap[name]))
        ratios = found.spread[name][1:] / fast.metrics[name].std(axis=0)[1:]
        assert np.all(np.abs(np.log(ratios)) < np.log(2))
    np.testing.assert_allclose(found.ts, fast.ts, rtol=1e-12)
    assert "predicted against discrete" in compared.table()
    assert compared.validity is None


def test_many_starts_are_predicted_side_by_side() -> None:
    """RMSProp from 24 starts, their mean against 4 held runs from each; a start at a saddle takes no other with it."""
    problem, start = network()
    starts = start * np.random.default_rng(0).uniform(0.7, 1.3, (24, 2, 3))
    given: dict[str, Any] = {"lr": LR, "metrics": NAMES, "save_at": 6, "stacked": True}
    found = ss.predict(problem, OPTIMIZERS[RMSPROP], starts, 0.3, rates=(0.02, 0.04), **given)
    held = ss.run_discrete(problem, OPTIMIZERS[RMSPROP], np.repeat(starts, 4, axis=0), 0.3, key=jr.key(7), **given)
    ones = dataclasses.replace(held, **_every_fourth(held))
    for name in NAMES:
        own = held.metrics[name].reshape(24, 4, -1)
        noise = np.sqrt(own.var(axis=1, ddof=1).mean(axis=0))
        gap, error = found.mean[name] - own.mean(axis=(0, 1)), np.hypot(found.error[name], noise / np.sqrt(96))
        assert np.mean(np.abs(gap) <= 2 * error + 1e-5) >= 0.9
        assert np.abs(gap).max() < 0.5 * np.abs(found.slow_mean[name] - own.mean(axis=(0, 1))).max()
        assert np.all(found.error[name] < 0.2 * own.mean(axis=1).std(axis=0) / np.sqrt(24))
        np.testing.assert_allclose(found.spread[name][1:], noise[1:], rtol=0.6)
        np.testing.assert_allclose(found.by_start[name].mean(axis=0), found.mean[name], rtol=1e-12)
        # Start by start: the error of the gap is that of the runs, and of the model.
        compared = ss.compare(found, ones)
        gaps = own[:, 0] - found.by_start[name]
        np.testing.assert_allclose(compared.gap[name], gaps.mean(axis=0), atol=1e-9)
        expected = np.hypot(gaps.std(axis=0, ddof=1) / np.sqrt(24), found.model_error[name])
        np.testing.assert_allclose(compared.standard_error[name], expected, rtol=1e-6)
    assert found.paths == 24
    assert "runs from 24 starts at lr=0.02, 0.04" in found.table()
    more = np.concatenate([starts[:3], 0 * start[None]])
    with pytest.warns(UserWarning, match="1 of 4 starts lead to no run") as told:
        fewer = ss.predict(problem, OPTIMIZERS[RMSPROP], more, 0.3, rates=(0.02, 0.04), **given)
    assert len(told) == 1
    assert "left out 1 of 4 starts, from which the slow SDE fails: 3" in fewer.notes
    for name, each in fewer.by_start.items():
        assert np.isnan(each[3]).all()
        np.testing.assert_allclose(fewer.mean[name], each[:3].mean(axis=0), rtol=1e-12)
    with pytest.raises(ValueError, match="1 start"):
        ss.predict(problem, OPTIMIZERS[RMSPROP], starts[:1], 0.3, **given)


def _every_fourth(run: ss.Trajectory) -> dict[str, Any]:
    metrics = {name: values[::4] for name, values in run.metrics.items()}
    return {"params": run.params[::4], "v": run.v[::4], "metrics": metrics, "result": run.result[::4], "end": None}


def test_momentum_is_met_too() -> None:
    """Adam with β1 = 0.9, from 0.02 and 0.04."""
    found, fast = predicted(ADAM), held(ADAM)
    for name, gap in ss.compare(found, fast).gap.items():
        assert np.mean(np.abs(gap) <= 2 * np.hypot(found.error[name], fast.metrics[name].std(axis=0) / 16) + 1e-9) > 0.9
        np.testing.assert_allclose(found.spread[name][3:], fast.metrics[name].std(axis=0)[3:], rtol=0.25)
    np.testing.assert_allclose(found.rates, [0.02, 0.04])
    assert found.cost == pytest.approx(1 / 4 + 1 / 16)


def test_the_rates_are_the_largest_that_are_valid() -> None:
    """A pair of coarse ones and then twice lr; where there is no pair, one of them with it at once."""
    problem, start = network()
    slow = ss.simulate(problem, OPTIMIZERS[ADAM], start, 0.5, save_at=11)
    setting = Setting(problem, OPTIMIZERS[ADAM], slow, np.linspace(0, 0.5, 11), 0.0, "auto")
    for lr, stages in ((0.005, ((8, 4), (2,))), (0.01, ((6, 4), (2,))), (0.015, ((4, 2),)), (0.02, ((3, 2),))):
        found = chosen_rates(lr, setting)
        np.testing.assert_allclose(np.concatenate(found.stages), lr * np.concatenate(stages))
        assert len(found.stages) == len(stages)
        assert all("not valid" in note for note in found.notes)
        assert len(found.notes) == (0 if lr == 0.005 else 1 if lr == 0.01 else 2 if lr == 0.015 else 3)


def test_the_nearest_rate_is_run_only_where_the_coarse_ones_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model error exceeds the standard error."""
    first = predicted(ADAM)
    for share, enough in ((0.9, True), (1.1, False)):
        model_error = {name: share * error for name, error in first.standard_error.items()}
        assert prediction._suffices(dataclasses.replace(first, model_error=model_error)) == enough
    rates, delay = Rates(((0.04, 0.02), (0.01,)), (), True), _delay(first.slow, OPTIMIZERS[ADAM], False)
    monkeypatch.setattr(prediction, "_suffices", lambda found: True)
    found = _by_stages(Asked(*first.runs), rates, 0.005, delay)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found.rates, [0.02, 0.04])
    assert "not run, as the model error is below the standard error without: lr=0.01" in found.notes
    monkeypatch.setattr(prediction, "_suffices", lambda found: False)
    some = {name: values[:64] for name, values in held(ADAM).metrics.items()}
    near = dataclasses.replace(held(ADAM), metrics=some, result=np.zeros(64, int))
    found = _by_stages(Asked(*first.runs, near), rates, 0.005, delay)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found.rates, [0.01, 0.02, 0.04])


def test_it_goes_on_from_a_later_time() -> None:
    """t0 = 0.1, no whole number of steps of 0.03 and 0.015, with bias correction that has half forgotten."""
    problem, start = network()
    given: dict[str, Any] = {"t0": 0.1, "metrics": NAMES[0], "save_at": [0.1, 0.2, 0.3]}
    adam = ss.adam(c=2.0, eps=0.05, bias_correction=True)
    found = ss.predict(problem, adam, start, 0.3, lr=0.015, rates=(0.03,), paths=16, **given)
    fast = ss.run_discrete(problem, adam, start, 0.3, lr=0.015, paths=16, key=jr.key(5), **given)
    np.testing.assert_allclose(found.ts, fast.ts, atol=0.015**2)
    assert found.ts[0] == 0.1
    gap = np.abs(found.mean[NAMES[0]] - fast.metrics[NAMES[0]].mean(axis=0))
    assert np.all(gap <= 4 * np.hypot(found.error[NAMES[0]], found.spread[NAMES[0]] / 4) + 1e-9)


def test_an_optax_transformation_is_a_function_of_the_rate() -> None:
    optax = pytest.importorskip("optax")
    problem, start = network()
    given: dict[str, Any] = {"lr": 0.02, "rates": (0.04,), "paths": 4, "save_at": 3}
    own = ss.predict(problem, ss.sgd(), start, 0.2, **given)
    other = ss.predict(problem, optax.sgd, start, 0.2, like=ss.sgd(), **given)
    np.testing.assert_allclose(other.mean["trace_hessian"], own.mean["trace_hessian"], rtol=1e-9)
    for optimizer, like, message in (
        (optax.sgd(0.02), ss.sgd(), "lambda lr: optax"),
        (optax.sgd, None, "like=None"),
        (lambda lr: lr, ss.sgd(), "optimizer="),
        (ss.sgd(), ss.sgd(), "leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            ss.predict(problem, optimizer, start, 0.2, like=like, **given)
    with pytest.raises(ValueError, match="v0 is for an AGM"):
        ss.predict(problem, optax.sgd, start, 0.2, like=ss.sgd(), v0=start, **given)


def test_rates_at_which_runs_fail_are_told() -> None:
    """Beyond the edge of stability, where it was asked for: a warning, and then an error."""
    problem, start = network()
    with pytest.warns(UserWarning, match="not valid"), pytest.raises(ss.RunError, match="4 paths failed at lr=1"):
        ss.predict(problem, ss.sgd(), start, 100.0, lr=0.5, rates=(1.0,), paths=4, save_at=3)


def test_a_chosen_rate_that_fails_is_left_out() -> None:
    first = predicted(ADAM)
    good, bad = first.runs[0], first.runs[1]
    spoilt = ss.Trajectory(
        bad.ts, None, None, bad.metrics, bad.stats, np.full(bad.paths, ss.Result.DIVERGED), "discrete"
    )

    rates, delay = Rates(((0.04,), (0.02,)), (), True), _delay(first.slow, OPTIMIZERS[ADAM], False)
    found = _by_stages(Asked(good, spoilt), rates, LR, delay)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found.rates, [0.02])
    assert any("left out: 64 of 64 paths failed at lr=0.04 (DIVERGED)" in note for note in found.notes)
    with pytest.raises(ss.RunError, match="No rate was left"):
        _by_stages(Asked(spoilt), rates._replace(stages=((0.04,),)), LR, delay)  # pyright: ignore[reportArgumentType]


def test_a_rate_that_cannot_be_served_is_refused_with_one_that_can() -> None:
    problem, start = network()
    given: dict[str, Any] = {"paths": 2, "save_at": 3}
    with pytest.raises(ValueError, match=r"lr=0\.05 is too large .* twice lr, 0\.1, is out: not valid") as caught:
        ss.predict(problem, OPTIMIZERS[ADAM], start, 0.5, lr=0.05, **given)
    advised = float(str(caught.value).split("Predict at lr=")[1].split()[0])
    assert advised < 0.05
    assert ss.predict(problem, OPTIMIZERS[ADAM], start, 0.5, lr=advised, **given).lr == advised


def test_bad_input_is_refused_by_name() -> None:
    problem, start = network()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"lr": -0.01}, "lr="),
        ({"paths": 1}, "paths=1"),
        ({"metrics": ()}, "metrics="),
        ({"rates": ()}, "rates="),
        ({"rates": (0.01, 0.04)}, "rates="),
        ({"rates": "coarse"}, "rates="),
        ({"rates": (0.04, 0.8)}, "rates contains 0.8: β2"),
        ({"rates": (0.04, 0.3)}, "rates contains 0.3: it takes 6 steps"),
        ({"optimizer": ss.adam(c=np.inf)}, "c=inf"),
        ({"optimizer": "adam"}, "optimizer="),
        ({"slow_paths": 0}, "slow_paths"),
        ({"lr": 0.3}, "lr=0.3 cannot be run"),
    )
    for changes, message in cases:
        settings = {"optimizer": OPTIMIZERS[ADAM], "lr": 0.01} | changes
        with pytest.raises(ValueError, match=message):
            ss.predict(problem, settings.pop("optimizer"), start, 0.5, **settings)


def test_only_runs_at_its_rate_and_of_its_problem_are_compared_with_it() -> None:
    problem, start = network()
    found, few = predicted(ADAM), {"paths": 2, "save_at": 3, "metrics": NAMES}
    with pytest.raises(ValueError, match=r"prediction for lr=0\.01, and discrete was run at lr=0\.02"):
        ss.compare(found, found.runs[0])
    other = ss.run_discrete(problem, ss.adam(c=2.0, eps=0.5), start, 0.05, lr=LR, **few)
    with pytest.raises(ValueError, match="another optimizer"):
        ss.compare(found, other)


def test_the_table_and_the_figure_show_what_it_was_made_of() -> None:
    found = predicted(ADAM)
    table = found.table()
    for words in ("predicted at lr=0.01", "lr=0.02, 0.04", "model error", "cost: 0.31 of 64 runs", "as given"):
        assert words in table
    ax = found.plot(name=NAMES[1])
    labels = [text.get_text() for text in ax.legend().get_texts()]
    assert [label.split(" ")[0] for label in labels] == ["slow", "predicted", "runs", "runs"]
    ax = ss.compare(found, held(ADAM)).plot()
    assert any("predicted" in text.get_text() for text in ax.legend().get_texts())
    plt.close("all")
    with pytest.raises(ValueError, match="name="):
        found.plot(name="nothing")


def test_a_killed_prediction_goes_on_from_its_files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from slowsde.runs import discrete

    problem, start = network()
    settings: dict[str, Any] = {"lr": 0.01, "rates": (0.02, 0.04), "paths": 4, "save_at": 3}
    whole = ss.predict(problem, ss.adam(c=2.0, eps=0.1), start, 0.1, **settings)
    run, count = discrete.march_paths, 0

    def killed(*given: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise MemoryError
        return run(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(discrete, "march_paths", killed)
        with pytest.raises(MemoryError):
            ss.predict(problem, ss.adam(c=2.0, eps=0.1), start, 0.1, checkpoint=tmp_path / "p", **settings)
    assert sorted(path.name for path in tmp_path.iterdir())[0].startswith("p.")
    found = ss.predict(problem, ss.adam(c=2.0, eps=0.1), start, 0.1, checkpoint=tmp_path / "p", **settings)
    np.testing.assert_array_equal(found.mean["trace_hessian"], whole.mean["trace_hessian"])
    assert repr(found).startswith("<Prediction at lr=0.01 from lr=0.02, 0.04, at t=0.1, trace_hessian ")
    assert "<table" in found._repr_html_()

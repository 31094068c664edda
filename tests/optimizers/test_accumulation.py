"""Optax's wrappers: accumulated gradients on the right clock, injected settings, and parameters left to others."""

from typing import Any

import jax
import numpy as np
import pytest

import slowsde as ss
from slowsde.problems.abstract import AbstractNoise
from slowsde.problems.accumulated import MeanNoise

optax = pytest.importorskip("optax")

START = {"u": np.array([1.2, 0.8, 1.1]), "v": np.array([0.7, 1.0, 0.6])}  # on Γ
INPUTS = np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
TARGETS = INPUTS @ (START["u"] ** 2 - START["v"] ** 2)
C, EPS, LR, K = 2.0, 0.05, 0.02, 3
B2 = 1 - C * LR**2
ADAM = ss.adam(C, eps=EPS, bias_correction=True)
TWIN = optax.adam(LR, b2=B2, eps=EPS)
COMMON: dict[str, Any] = {"lr": LR, "paths": 2, "save_at": [0.06, 0.12], "project": False}


def problem_with(noise: Any) -> ss.LeastSquares:
    return ss.LeastSquares(lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), INPUTS, TARGETS, noise)


PROBLEM = problem_with(ss.LabelNoise(1.0))


def waiting(transformation: Any = TWIN, count: Any = K, **settings: Any) -> Any:
    # Optax adds gradients up in float32 unless it is told otherwise.
    with jax.enable_x64(True):
        return optax.MultiSteps(transformation, count, accumulator_dtype=np.float64, **settings)


def difference(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y) / np.abs(x))) for x, y in pairs)


@pytest.mark.parametrize(
    "wrap",
    [lambda twin: twin, pytest.param(lambda twin: optax.chain(optax.clip(1e6), twin), marks=pytest.mark.slow)],
    ids=["alone", "in a chain"],
)
def test_accumulated_steps_are_those_of_the_mean_gradient(wrap: Any) -> None:
    """300 steps of 3 gradients: the run with the noise of the mean, which draws the same ones, to 1e-12."""
    wrapped = wrap(waiting().gradient_transformation())
    many = ss.run_discrete(PROBLEM, wrapped, START, 0.12, like=ADAM, **COMMON)
    mean = ss.run_discrete(problem_with(MeanNoise(ss.LabelNoise(1.0), K)), TWIN, START, 0.12, like=ADAM, **COMMON)
    assert difference((mean.params, mean.v), (many.params, many.v)) < 1e-12
    assert many.stats["num_steps"] == mean.stats["num_steps"] == 300
    assert many.stats["gradients_per_step"] == K
    assert many.stats["b2"] == pytest.approx(B2, abs=1e-14)
    np.testing.assert_array_equal(many.ts, mean.ts)


def test_accumulated_runs_follow_the_slow_sde_of_the_mean_noise() -> None:
    """u v = 1 under SGD: E(u² − v²) ∝ exp(−αt/K); without K it would be 1.4 at t = 1 in the place of 2.9."""
    problem = ss.LeastSquares(lambda w, z: w["u"] * w["v"] * z, np.ones(1), np.ones(1), ss.LabelNoise(1.0, 1))
    start, how = {"u": np.array(2.0), "v": np.array(0.5)}, {"metrics": {"D": lambda w: w["u"] ** 2 - w["v"] ** 2}}
    common: dict[str, Any] = {"save_at": [0.0, 0.5, 1.0], **how}
    wrapped = optax.MultiSteps(optax.sgd(0.02), 4)
    fast = ss.run_discrete(problem, wrapped, start, 1.0, lr=0.02, like=ss.sgd(), paths=64, **common)
    slow = ss.simulate(ss.accumulated(problem, 4), ss.sgd(), start, 1.0, **common)
    np.testing.assert_allclose(slow.metrics["D"][0], 3.75 * np.exp(-slow.ts / 4), rtol=1e-5)
    compared = ss.compare(slow, fast)
    gap, error = compared.gap["D"], compared.standard_error["D"]
    print(f"gaps {gap} ± {error}")
    # The rate of SGD is higher by ηλ/2 = 4 % at this η, λ = u² + v²; by a factor of 4 without accumulation.
    assert np.all(np.abs(gap[1:]) < 4 * error[1:] + 0.05 * (3.75 - slow.metrics["D"][0, 1:]))
    with pytest.raises(ValueError, match="another noise"):
        ss.compare(ss.simulate(problem, ss.sgd(), start, 1.0, **common), fast)


NOISES: dict[str, AbstractNoise] = {
    "labels": ss.LabelNoise(1.0),
    "batches of labels": ss.LabelNoise(1.0, batch_size=2, kind="normal"),
    "Gaussian": ss.GaussianNoise(0.3),
    "Gaussian, a function": ss.GaussianNoise(lambda w: 0.3 * np.eye(6)[:, :2] * w["u"][0]),
}


@pytest.mark.parametrize("name", NOISES)
def test_the_drift_of_accumulated_noise_is_divided(name: str) -> None:
    whole, part = (ss.accumulated(problem_with(NOISES[name]), count) for count in (1, K))
    one, many = (ss.coefficients(problem, ss.rmsprop(C, eps=EPS), START, START) for problem in (whole, part))
    assert difference(one.drift, jax.tree.map(lambda leaf: K * leaf, many.drift)) < 1e-9
    np.testing.assert_allclose(one.diffusion, np.sqrt(K) * many.diffusion, atol=1e-12)
    increments = [jax.tree.map(lambda d, v: d / C + v, c.v_drift, START) for c in (one, many)]  # V(Σ)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, K * b, rtol=1e-9), *increments)


def test_a_batch_of_accumulated_batches_is_the_same_problem() -> None:
    noise = ss.accumulated(problem_with(ss.LabelNoise(1.0, 2)), 3).noise
    assert isinstance(noise, ss.LabelNoise)
    assert noise.batch_size == 6


def test_an_accumulated_run_goes_on() -> None:
    how: dict[str, Any] = COMMON | {"save_at": [0.06]}
    whole = ss.run_discrete(PROBLEM, waiting(), START, 0.12, like=ADAM, **COMMON)
    half = ss.run_discrete(PROBLEM, waiting(), START, 0.06, like=ADAM, **how)
    rest = ss.resume(PROBLEM, waiting(), half, 0.12, like=ADAM, save_at=[0.12])
    np.testing.assert_array_equal(rest.params["u"][:, -1], whole.params["u"][:, -1])
    assert rest.ts[-1] == whole.ts[-1]
    assert rest.stats["num_steps"] == 150


@pytest.mark.slow
def test_predictions_are_those_of_the_mean_noise() -> None:
    def wrapped(lr: float) -> Any:
        return optax.MultiSteps(optax.sgd(lr), 2)

    common: dict[str, Any] = {"like": ss.sgd(), "paths": 8, "save_at": 3, "rates": [0.04]}
    found = ss.predict(PROBLEM, wrapped, START, 0.2, lr=0.02, **common)
    slow = ss.simulate(ss.accumulated(PROBLEM, 2), ss.sgd(), START, 0.2, save_at=3, metrics="trace_hessian")
    np.testing.assert_allclose(found.slow_mean["trace_hessian"][-1], slow.metrics["trace_hessian"][0, -1], rtol=1e-5)
    assert found.runs[0].stats["gradients_per_step"] == 2


INJECTED = optax.inject_hyperparams(optax.adam)(LR, b2=B2, eps=EPS)


def test_injected_settings_are_those_that_were_given() -> None:
    plain = ss.run_discrete(PROBLEM, TWIN, START, 0.12, like=ADAM, **COMMON)
    injected = ss.run_discrete(PROBLEM, INJECTED, START, 0.12, like=ADAM, **COMMON)
    assert difference((plain.params, plain.v), (injected.params, injected.v)) < 1e-12


def test_a_rate_that_was_changed_in_the_state_is_the_rate() -> None:
    """As training loops do with a state of inject_hyperparams; the run goes on with it."""
    params = jax.tree.map(jax.numpy.asarray, START)
    state = INJECTED.update(params, INJECTED.init(params), params)[1]
    state.hyperparams["learning_rate"] = jax.numpy.asarray(2 * LR)
    slower = ss.adam(C / 4, eps=EPS, bias_correction=True)  # of the same β2
    how: dict[str, Any] = {"like": slower, "save_at": [0.048], "paths": 2}
    with pytest.raises(ValueError, match=r"lr=0.02, but the state .* learning_rate=0.04"):
        ss.run_discrete(PROBLEM, INJECTED, START, 0.048, lr=LR, v0=state, **how)
    half = ss.run_discrete(PROBLEM, INJECTED, START, 0.048, lr=2 * LR, v0=state, project=False, **how)
    rest = ss.resume(PROBLEM, INJECTED, half, 0.096, like=slower, save_at=[0.096])
    assert np.isfinite(rest.params["u"]).all()


LABELS = {"u": "a", "v": "b"}
PARTLY = ss.grouped({"a": ss.adam(C, b1=0.0, eps=EPS, bias_correction=True), "b": ss.sgd(bias_correction=True)}, LABELS)
SPLIT = optax.multi_transform({"a": optax.adam(LR, b1=0.0, b2=B2, eps=EPS), "b": optax.sgd(LR)}, LABELS)


def test_groups_without_a_second_moment_need_none() -> None:
    ours = ss.run_discrete(PROBLEM, PARTLY, START, 0.12, **COMMON)
    theirs = ss.run_discrete(PROBLEM, SPLIT, START, 0.12, like=PARTLY, **COMMON)
    assert difference((ours.params, ours.v), (theirs.params, theirs.v)) < 1e-12
    assert theirs.v["b"] is None
    params = jax.tree.map(jax.numpy.asarray, START)
    state = SPLIT.update(params, SPLIT.init(params), params)[1]
    v0 = ss.from_optax_state(state, partly=True)
    assert v0["v"] is None
    ss.simulate(PROBLEM, PARTLY, START, 0.01, t0=LR**2, v0=v0, save_at=2)


class Frozen:
    """The same problem with v closed over, as the message about it says."""

    start: Any = {"u": START["u"]}  # noqa: RUF012
    problem = ss.LeastSquares(lambda w, z: z @ (w["u"] ** 2 - START["v"] ** 2), INPUTS, TARGETS, ss.LabelNoise(1.0))


def test_frozen_parameters_are_closed_over() -> None:
    freezing = optax.multi_transform({"a": TWIN, "b": optax.set_to_zero()}, LABELS)
    unlike = ss.run_discrete(PROBLEM, freezing, START, 0.12, **COMMON)
    closed = ss.run_discrete(Frozen.problem, TWIN, Frozen.start, 0.12, like=ADAM, **COMMON)
    assert difference(unlike.params["u"], closed.params["u"]) < 1e-12


def in_the_middle() -> Any:
    params = jax.tree.map(jax.numpy.asarray, START)
    optimizer = optax.MultiSteps(TWIN, K)
    return optimizer.update(params, optimizer.init(params), params)[1]


MATRIX = ss.LeastSquares(lambda w, z: z @ w @ w[0], np.eye(2), np.ones(2), ss.LabelNoise(1.0))


@pytest.mark.parametrize(
    ("optimizer", "settings", "message"),
    [
        (waiting(count=lambda k: 1 + k // 100), {"like": ADAM}, "from 1 to 3 gradients a step.*pass a number"),
        (waiting(use_grad_mean=False), {"like": ADAM}, "adds up gradients.*leave it at True"),
        (
            waiting(should_skip_update_fn=lambda *a: optax.transforms.skip_large_updates(*a, max_squared_norm=1.0)),
            {},
            "should_skip_update_fn.*leave it out",
        ),
        (
            optax.multi_transform({"a": waiting().gradient_transformation(), "b": TWIN}, LABELS),
            {"like": ADAM},
            "put MultiSteps around the whole",
        ),
        (waiting(), {"like": ADAM, "v0": in_the_middle()}, "in the middle of a step, after 1 gradients"),
        (
            optax.masked(TWIN, {"u": True, "v": False}),
            {},
            r"gradient of params\['v'\] as the update, which goes uphill",
        ),
        (
            optax.multi_transform({"a": TWIN, "b": optax.set_to_zero()}, LABELS),
            {"like": ADAM},
            r"does not move params\['v'\].*close over it",
        ),
        (SPLIT, {"like": ADAM}, r"no second moment for params\['v'\].*grouped\("),
        (INJECTED, {"like": ADAM, "lr": 2 * LR}, "lr=0.04, but the state .* learning_rate=0.02"),
        (optax.lion(LR), {"like": ss.sgd()}, "Lion moves by the sign"),
        (optax.amsgrad(LR), {"like": ss.sgd()}, "AMSGrad divides by the largest"),
    ],
)
def test_what_does_not_fit_is_refused(optimizer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.run_discrete(PROBLEM, optimizer, START, 0.12, **COMMON | settings)


def test_muon_is_no_metric_on_matrices() -> None:
    muon = optax.contrib.muon(LR, adam_b2=B2)
    with pytest.raises(ValueError, match="Muon moves by the nearest orthogonal matrix"):
        ss.run_discrete(MATRIX, muon, np.eye(2), 0.12, like=ADAM, **COMMON)

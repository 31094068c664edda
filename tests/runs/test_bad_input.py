"""Bad input is refused with a ValueError that names the argument, before anything long is computed."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

START = np.array([0.1, 1.0])


def valley(x):
    return 0.5 * (1 + x[1] ** 2) * x[0] ** 2


NOISE = ss.GaussianNoise(0.3)
VALLEY = ss.Problem(valley, noise=NOISE)
ADAM = ss.adam(c=1.0, eps=0.1)
INPUTS = np.array([[1.0, 0.5, 0.0], [0.2, -1.0, 1.0]])
LINE = ss.LeastSquares(lambda w, z: z @ w, INPUTS, np.ones(2), noise=ss.LabelNoise(0.5, batch_size=1))


def simulate(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any):
    return ss.simulate(problem, optimizer, params0, t1, **options)


def run_discrete(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any):
    return ss.run_discrete(problem, optimizer, params0, t1, **{"lr": 0.05, "paths": 2} | options)


@pytest.fixture(autouse=True)
def nothing_long(monkeypatch):
    """The integrations themselves must not be reached."""

    def reached(*args: Any, **options: Any) -> Any:
        raise AssertionError("the integration has started")

    for module, name in (
        ("slowsde.runs.simulate", "follow"),
        ("slowsde.runs.simulate", "solve_sde"),
        ("slowsde.runs.discrete", "_run"),
    ):
        monkeypatch.setattr(sys.modules[module], name, reached)


@pytest.fixture(params=[simulate, run_discrete], ids=["simulate", "run_discrete"])
def run(request):
    return request.param


def test_good_input_gets_as_far_as_the_integration(run):
    with pytest.raises(AssertionError, match="the integration has started"):
        run()


# --- the problem -----------------------------------------------------------------------------------------------


def no_gap(x):
    return 0.5 * jnp.sum(10.0 ** -jnp.arange(13.0) * x**2)


@pytest.mark.parametrize(
    ("loss", "start", "message"),
    [
        (lambda x: x, START, "loss must return a real scalar"),
        (lambda x: jnp.log(-valley(x)), START, "value of loss is not finite at params"),
        (lambda x: jnp.sqrt(x[0]) + x[1] ** 2, np.array([0.0, 1.0]), "gradient of loss is not finite at params"),
        (lambda x: valley(x) + jnp.sum(jnp.abs(x)) ** 1.5, np.zeros(2), "derivative of loss is not finite|gradient"),
        (lambda x: jnp.exp(-x[0]) + x[1] ** 2, START, "does not converge|unclear"),
        (lambda x: 0.25 * (x[0] ** 2 - 1) ** 2 + x[1] ** 2, np.array([0.0, 1.0]), "from params0 ends at a saddle"),
        (no_gap, np.ones(13), "rank of the Hessian where the flow from params0 ends is unclear"),
        (lambda x: 0.25 * jnp.sum(x**4), START, "does not converge|vanishes|unclear"),
    ],
    ids=["vector", "NaN", "not differentiable", "not twice", "no minimizer", "saddle", "unclear rank", "degenerate"],
)
def test_an_unfit_loss_or_start(run, loss, start, message):
    with pytest.raises(ValueError, match=message):
        run(ss.Problem(loss, noise=NOISE), params0=start)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (None, "problem has no noise"),
        (ss.GaussianNoise(np.ones((3, 2))), r"factor of GaussianNoise has shape \(3, 2\).*p = 2"),
        (ss.GaussianNoise(np.ones(2)), r"factor of GaussianNoise has shape \(2,\)"),
        (ss.GaussianNoise(lambda x: x), r"factor of GaussianNoise has shape \(2,\)"),
        (ss.GaussianNoise(lambda x: jnp.ones((2, 2, 1))), r"factor of GaussianNoise has shape \(2, 2, 1\)"),
        (ss.GaussianNoise(lambda x: jnp.log(-x)[:, None]), "noise factor B .* is not finite at params"),
        (ss.LabelNoise(0.5), "LabelNoise needs labels: a LeastSquares problem"),
        (ss.MinibatchNoise(1), "MinibatchNoise needs samples"),
    ],
)
def test_an_unfit_noise(run, noise, message):
    with pytest.raises(ValueError, match=message):
        run(ss.Problem(valley, noise=noise))
    with pytest.raises(ValueError, match=message):
        ss.coefficients(ss.Problem(valley, noise=noise), ADAM, np.array([0.0, 1.0]))


def test_noise_that_vanishes_on_the_manifold():
    line = ss.LeastSquares(LINE.predict, INPUTS, np.ones(2), noise=ss.MinibatchNoise(1))
    with pytest.raises(ValueError, match="noise vanishes on the manifold"):
        simulate(line, ss.sgd(), np.ones(3))
    with pytest.raises(ValueError, match="noise vanishes on the manifold"):
        simulate(ss.Problem(valley, noise=ss.GaussianNoise(0.0)), ss.sgd())


def test_least_squares_that_cannot_interpolate():
    inputs = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # one input, two targets
    for route in ("kernel", "dense"):
        with pytest.raises(ValueError, match="params0 do not interpolate"):
            simulate(
                ss.LeastSquares(lambda w, z: z @ w, inputs, np.array([0.0, 1.0, 2.0]), noise=ss.LabelNoise(0.5)),
                ss.sgd(),
                np.ones(3),
                route=route,
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ss.LeastSquares(LINE.predict, INPUTS, np.ones(3)),
            "inputs and targets must be arrays",
        ),
        (lambda: ss.LeastSquares(LINE.predict, np.ones((0, 3)), np.ones(0)), "inputs and targets is empty"),
        (lambda: ss.EmpiricalRisk(lambda w, z: z @ w, 3.0), "data must be arrays with one common leading axis"),
        (lambda: ss.LabelNoise(0.0), r"std=0.0 must be a positive number"),
        (lambda: ss.LabelNoise(np.nan), "std=nan"),
        (lambda: ss.LabelNoise(0.5, batch_size=0), "batch_size=0 must be a positive integer"),
        (lambda: ss.LabelNoise(0.5, batch_size=1.5), r"batch_size=1.5 must be a positive integer"),
        (lambda: ss.LabelNoise(0.5, kind="uniform"), "kind='uniform'"),
        (lambda: ss.MinibatchNoise(None), "batch_size=None must be a positive integer"),
        (lambda: ss.from_sympy("x**2", []), "expr='x"),
    ],
)
def test_an_unfit_problem_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("targets", [np.ones((2, 2)), np.ones((2, 3, 1))])
def test_targets_that_do_not_fit_the_predictions(run, targets):
    problem = ss.LeastSquares(LINE.predict, INPUTS, targets, noise=ss.LabelNoise(0.5))
    with pytest.raises(ValueError, match="targets"):
        run(problem, ss.sgd(), np.ones(3))


def test_something_else_than_a_problem_or_an_optimizer(run):
    with pytest.raises(ValueError, match=r"problem=.* must be a Problem"):
        run(valley)
    with pytest.raises(ValueError, match="optimizer='adam' must be an AGM"):
        run(optimizer="adam")


# --- the optimizer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.adam(c=0.0), r"c=0.0 must be a positive number: c = "),
        (lambda: ss.adam(c=-1.0), r"c=-1.0 must be a positive number: c = "),
        (lambda: ss.adam(c=np.nan), "c=nan must be a positive number: c = "),
        (lambda: ss.adam(c=1.0, b1=1.0), r"b1=1.0 must lie in \[0, 1\)"),
        (lambda: ss.sgd(b1=-0.1), r"b1=-0.1 must lie in \[0, 1\)"),
        (lambda: ss.adam(c=1.0, b1=np.nan), r"b1=nan must lie in \[0, 1\)"),
        (lambda: ss.adam(c=1.0, eps=-1e-8), r"eps=-1e-08 must not be negative"),
        (lambda: ss.adame(c=1.0, lam=1.0), r"lam=1.0 must lie in \[0, 1\)"),
        (lambda: ss.slow_rate(0.0, 0.9), "lr=0.0"),
        (lambda: ss.slow_rate(0.1, 1.0), "b2=1.0"),
    ],
)
def test_an_unfit_optimizer_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_epsilon_where_the_state_is_zero(run):
    with pytest.raises(ValueError, match=r"metric is not positive and finite: entry 1 is inf.*ε > 0"):
        run(optimizer=ss.adam(c=1.0, eps=0.0), v0=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"metric is not positive and finite.*ε > 0"):
        ss.coefficients(VALLEY, ss.adam(c=1.0, eps=0.0), np.array([0.0, 1.0]), np.zeros(2))


def square(g):
    return g**2


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (ss.AGM(square, lambda v: "diagonal", c=1.0), "metric='diagonal' is not a metric"),
        (ss.AGM(square, lambda v: -v - 1, c=1.0), "metric is not positive and finite"),
        (ss.AGM(square, lambda v: v[:1] + 1, c=1.0), "metric acts on 1 parameters, but params has 2"),
        (ss.AGM(square, lambda v: jnp.full((2, 2), 0.5), c=1.0), "metric is not symmetric positive definite"),
        (ss.AGM(jnp.abs, lambda v: 1 / (1 + v), c=1.0), "optimizer.V must be quadratic"),
        (ss.AGM(lambda g: g**2 + 1, lambda v: 1 / (1 + v), c=1.0), "optimizer.V must be quadratic"),
    ],
)
def test_an_unfit_pair_of_v_and_s(run, optimizer, message):
    with pytest.raises(ValueError, match=message):
        run(optimizer=optimizer)
    with pytest.raises(ValueError, match=message):
        ss.coefficients(VALLEY, optimizer, np.array([0.0, 1.0]))


@pytest.mark.parametrize(
    ("v0", "message"),
    [
        (np.ones(3), r"v0 has leaves of shape"),
        (np.ones((2, 2)), r"v0 has leaves of shape"),
        ({"x": np.ones(2)}, "v0 has leaves of shape"),
        (1.0, "v0 has leaves of shape"),
        (np.array([1.0, -1.0]), "v0 must be finite and not negative"),
        (np.array([1.0, np.nan]), "v0 must be finite and not negative"),
    ],
)
def test_an_unfit_state(run, v0, message):
    with pytest.raises(ValueError, match=message):
        run(v0=v0)


# --- params ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params0", "message"),
    [
        (np.array([0, 1]), "params has dtype int"),
        ({"x": np.ones(1), "y": np.ones(1, int)}, r"params\['y'\] has dtype int"),
        ({"x": np.ones(1), "y": np.ones(1, np.float32)}, "params mixes precisions"),
        ([0.1, 1.0], r"params\[0\] is the Python number 0.1"),
        ({}, "params has no array leaves"),
        (np.array([np.nan, 1.0]), "params has 1 entries that are NaN or infinite"),
        (np.array([np.inf, 1.0]), "params has 1 entries that are NaN or infinite"),
    ],
)
def test_unfit_params(run, params0, message):
    with pytest.raises(ValueError, match=message):
        run(params0=params0)


def test_coefficients_off_the_manifold():
    with pytest.raises(ValueError, match=r"params is not on the manifold.*length 0.099.*limit_map"):
        ss.coefficients(VALLEY, ADAM, START)
    with pytest.raises(ValueError, match=r"params is not on the manifold"):
        ss.coefficients(LINE, ADAM, np.ones(3))


def test_coefficients_where_the_loss_has_no_minimizer():
    with pytest.raises(ValueError, match="params is not on the manifold"):
        ss.coefficients(ss.Problem(lambda x: x[1] + 0.5 * x[0] ** 2, noise=NOISE), ADAM, np.zeros(2))


# --- times, paths, steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("t1", [0.0, -1.0, np.nan, np.inf, "1", None])
def test_unfit_end_times(run, t1):
    with pytest.raises(ValueError, match=r"t1="):
        run(t1=t1)


def test_an_end_before_the_start():
    with pytest.raises(ValueError, match=r"t1=1.0 must be finite and larger than t0=1.0"):
        simulate(t0=1.0)


@pytest.mark.parametrize(
    "save_at",
    [0, 1, -3, 2.5, True, "many", [], [0.5, 0.2], [0.2, 0.2], [-0.1, 1.0], [0.0, 2.0], [[0.0, 1.0]], [np.nan]],
)
def test_unfit_save_times(run, save_at):
    with pytest.raises(ValueError, match="save_at="):
        run(save_at=save_at)


@pytest.mark.parametrize("paths", [0, -1, 1.5, True, "8", None])
def test_an_unfit_number_of_paths(run, paths):
    with pytest.raises(ValueError, match="paths="):
        run(paths=paths)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("trace_hesian", "metrics: 'trace_hesian' is not one of"),
        (("loss", "nonsense"), "metrics: 'nonsense' is not one of"),
        ({"mine": lambda x: x}, r"metrics\['mine'\] returns shape \(2,\)"),
        ({"mine": 3.0}, "metrics: 3.0 is neither"),
        (7, "metrics=7 must be names"),
        ((lambda x: x[0],), "metrics: .* is neither"),
    ],
)
def test_unfit_metrics(run, metrics, message):
    with pytest.raises(ValueError, match=message):
        run(metrics=metrics)


@pytest.mark.parametrize("dtype", ["float16", "int32", "double precision"])
def test_an_unfit_precision(run, dtype):
    with pytest.raises(ValueError, match="dtype="):
        run(dtype=dtype)


@pytest.mark.parametrize("route", ["fast", "kernel", None])
def test_an_unfit_route(run, route):
    with pytest.raises(ValueError, match=f"route={route!r}"):
        run(route=route)


@pytest.mark.parametrize("rank", [0, -1, 3, 1.5])
def test_an_unfit_rank(run, rank):
    with pytest.raises(ValueError, match="rank"):
        run(rank=rank)


@pytest.mark.parametrize("key", [0.0, True, "seed", np.zeros(3)])
def test_an_unfit_key(run, key):
    with pytest.raises(ValueError, match="key="):
        run(key=key)


@pytest.mark.parametrize("dt", [0.0, -0.1, np.nan, "small"])
def test_an_unfit_step(dt):
    with pytest.raises(ValueError, match="dt="):
        simulate(dt=dt)


def test_an_unfit_solver():
    with pytest.raises(ValueError, match="solver='rk4' is not one of"):
        simulate(solver="rk4")
    with pytest.raises(ValueError, match="solver='tsit5' is for noise that does not diffuse"):
        simulate(solver="tsit5")


@pytest.mark.parametrize("lr", [0.0, -0.1, np.nan, np.inf, "0.1", None, np.array([0.1, 0.2])])
def test_an_unfit_learning_rate(lr):
    with pytest.raises(ValueError, match="lr="):
        run_discrete(lr=lr)


def test_a_learning_rate_too_large_for_c_or_t1():
    with pytest.raises(ValueError, match=r"lr=0.5 is too large for c=10.0: β2"):
        run_discrete(optimizer=ss.adam(c=10.0), lr=0.5)
    with pytest.raises(ValueError, match=r"t1=.*less than one step"):
        run_discrete(t1=1e-4, lr=0.05)
    with pytest.raises(ValueError, match="save_at asks for 1001 times"):
        run_discrete(lr=0.05, save_at=1001)


def test_no_discrete_run_in_the_quasi_static_limit():
    with pytest.raises(ValueError, match="c=inf"):
        run_discrete(optimizer=ss.adam(c=np.inf))


def test_the_remedy_for_a_loss_without_a_manifold_is_a_note_of_the_error():
    with pytest.raises(ValueError, match=r"does not converge|unclear") as caught:
        run_discrete(ss.Problem(lambda x: jnp.exp(-x[0]) + x[1] ** 2, noise=NOISE))
    assert "project=False" in "".join(caught.value.__notes__)


def test_an_isolated_minimizer_has_no_manifold() -> None:
    problem = ss.Problem(lambda w: jnp.sum((w - 1) ** 2), ss.GaussianNoise(0.1))
    with pytest.raises(ValueError, match="isolated minimizer"):
        ss.simulate(problem, ss.sgd(), np.zeros(3), 1.0)


def test_runs_inside_a_transformation_are_refused() -> None:
    problem = ss.Problem(lambda x: 0.25 * (x @ x - 1) ** 2, ss.GaussianNoise(0.1))
    with pytest.raises(ValueError, match="inside jit"):
        jax.jit(lambda x: ss.simulate(problem, ss.sgd(), x, 1.0).params)(jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="inside jit"):
        jax.jit(lambda x: ss.run_discrete(problem, ss.sgd(), x, 1.0, lr=0.1).params)(jnp.array([1.0, 0.0]))

"""The table of bad inputs: what is refused, by which words, before anything is compiled.

A row is a call and a fragment that the message must have: the argument with its value, and what to do. Every row is a
`ValueError` (or what the row says), and no program is compiled until it is raised; `python -m tests...` is not needed,
`python tests/project/test_bad_inputs.py` counts the rows that are clear.
"""

import enum
import functools
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import sympy

import manifolds as mf
import slowsde as ss

START = np.array([0.1, 1.0])
INPUTS = np.array([[1.0, 0.5, 0.0], [0.2, -1.0, 1.0]])
TARGETS = np.ones(2)
SMOOTHED = np.full((2, 3), 1 / 3)
NAN, INF = float("nan"), float("inf")
TREE = {"w": np.ones((2, 3)), "b": np.ones(2)}
HOLE = np.array([[1.0, NAN, 0.0], [0.2, -1.0, 1.0]])

Row = tuple[Callable[[], Any], str]


def valley(x: Any) -> Any:
    return 0.5 * (1 + x[1] ** 2) * x[0] ** 2


def line(w: Any, z: Any) -> Any:
    return z @ w


def tree_line(w: Any, z: Any) -> Any:
    return w["w"] @ z + w["b"]


def logits(w: Any, z: Any) -> Any:
    return w["w"] @ z


NOISE = ss.GaussianNoise(0.3)
LABELS = ss.LabelNoise(0.5, batch_size=1)
VALLEY = ss.Problem(valley, noise=NOISE)
LINE = ss.LeastSquares(line, INPUTS, TARGETS, noise=LABELS)
ADAM = ss.adam(c=1.0, eps=0.1)


def trajectory(label: str = "slow", ts: Any = (0.0, 0.5, 1.0), paths: int = 2, **stats: Any) -> ss.Trajectory:
    ts = np.asarray(ts)
    shape = (paths, ts.size)
    return ss.Trajectory(ts, np.ones((*shape, 2)), None, {"q": np.ones(shape)}, stats, np.zeros(paths, int), label)


ONE = {"loss": "a", "noise": "a", "optimizer": "a", "jax": "1"}
SLOW, FAST = trajectory(), trajectory("discrete", lr=0.1)


def simulate(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    return ss.simulate(problem, optimizer, params0, t1, **options)


def discrete(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    return ss.run_discrete(problem, optimizer, params0, t1, **{"lr": 0.05, "paths": 2} | options)


def rival(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    return ss.conventional_sde(problem, optimizer, params0, t1, **{"lr": 0.05} | options)


def backward(loss: Any = valley, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    return ss.backward_error(loss, params0, t1, **{"lr": 0.05, "b2": 0.95, "eps": 0.1} | options)


def study(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    given = {"lrs": (0.1, 0.05), "paths": 2, "observables": "loss"} | options
    return ss.convergence_study(problem, optimizer, params0, t1, **given)


def estimate(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    return ss.weak_estimate(problem, optimizer, params0, t1, **{"dt": 0.1, "paths": 2, "observables": "loss"} | options)


def predict(problem: Any = VALLEY, optimizer: Any = ADAM, params0: Any = START, t1: Any = 1.0, **options: Any) -> Any:
    return ss.predict(problem, optimizer, params0, t1, **{"lr": 0.01, "paths": 2, "metrics": "loss"} | options)


def rest(problem: Any = LINE, optimizer: Any = ADAM, params0: Any = None, **options: Any) -> Any:
    return ss.stationary_point(problem, optimizer, np.ones(3) if params0 is None else params0, **options)


RUNS = (simulate, discrete, rival)


def each(calls: Any, name: str, values: Any, fragment: str, **options: Any) -> Iterator[Row]:
    """Every call with `name` set to every value; {} in the fragment is the value."""
    for call in calls:
        for value in values:
            shown = repr(value) if len(repr(value)) < 60 else ""
            yield functools.partial(call, **{name: value}, **options), fragment.replace("{}", shown)


NO_NUMBER = ("1", None, True, 1j, NAN, np.ones(2), [1.0])


def numbers() -> Iterator[Row]:
    """Arguments that are one number."""
    yield from each((simulate, discrete, rival, study, estimate, predict), "t1", (0.0, -1.0, INF, *NO_NUMBER), "t1=")
    yield from each((backward,), "t1", (0.0, -1.0, "1", NAN, INF), "t1=")
    yield from each(RUNS, "t0", (1.0, 2.0, "0", None, NAN, INF, 1j), "t0=")
    yield from each((discrete, rival, backward, predict), "lr", (0.0, -0.1, INF, 1e-300, *NO_NUMBER), "lr=")
    yield from each((simulate, estimate), "dt", (0.0, -0.1, INF, "small", NAN, np.ones(2), 1j, True), "dt=")
    yield from each((simulate, rest), "rtol", (0.0, -1.0, 1.0, INF, NAN, "1e-6", None, 1j), "rtol=")
    yield from each((simulate, rest), "tol", (0.0, -1.0, 1.0, INF, NAN, "1e-6", None, 1j), "tol=")
    yield from each((backward,), "rtol", (0.0, -1.0, 1.0, NAN, "1e-6", None), "rtol=")
    yield from each((backward,), "b1", (1.0, -0.1, NAN, "0.9", None), "b1=")
    yield from each((backward,), "b2", (1.0, -0.1, NAN, "0.9", None), "b2=")
    yield from each((backward,), "eps", (0.0, -0.1, NAN, "0.9", None), "eps=")
    yield simulate_at(1.0, 1.0 + 1e-15), "within rounding of t0"
    yield simulate_at(0.0, 1e-320), "within rounding of t0"
    yield functools.partial(ss.slow_rate, 0.0, 0.9), "lr=0.0"
    yield functools.partial(ss.slow_rate, 0.1, 1.0), "b2=1.0"
    yield functools.partial(ss.slow_rate, "0.1", 0.9), "lr='0.1'"
    yield functools.partial(ss.slow_rate, 0.1, None), "b2=None"
    yield functools.partial(ss.steps_in, 1.0, 0.0), "lr=0.0"
    yield functools.partial(ss.steps_in, 1.0, 0.1, "kη"), "clock='kη'"
    yield functools.partial(ss.slow_time, 10, "0.1"), "lr='0.1'"
    yield functools.partial(ss.coefficients, VALLEY, ADAM, START, t=NAN), "t=nan"
    yield functools.partial(ss.coefficients, VALLEY, ADAM, START, t="0"), "t='0'"


def simulate_at(t0: Any, t1: Any) -> Callable[[], Any]:
    return lambda: simulate(t0=t0, t1=t1)


def counts() -> Iterator[Row]:
    """Arguments that are a whole number."""
    bad = (0, -1, 1.5, True, "8", None)
    yield from each((*RUNS, estimate), "paths", bad, "paths={}")
    yield from each((study, predict), "paths", (0, 1, 1.5, True, "8"), "paths=")
    yield from each((discrete, rival), "max_steps", bad, "max_steps={}")
    yield from each((simulate, rest), "max_steps", bad, "max_steps={}")
    yield from each((rival,), "substeps", bad, "substeps={}")
    yield from each((estimate,), "levels", (1, 6, 2.5, True, "2", None), "levels=")
    yield from each((simulate, discrete, rest), "rank", (0, -1, 1.0, True, 1.5, "1"), "rank={}")
    yield from each((simulate, discrete), "rank", (3,), "rank=3 is more than the number 2 of parameters")
    yield from each((rest,), "rank", (3,), "rank=3 is more than the number 2 of equations")
    yield from each((simulate, discrete, rival), "memory", (0, -1, "1 GB", NAN, True), "memory={}")
    yield from each((ss.LabelNoise,), "batch_size", (0, -1, 1.5, True, "8"), "batch_size={}", std=0.5)
    yield from each((ss.MinibatchNoise,), "batch_size", (0, -1, 1.5, True, "8", None), "batch_size={}")
    yield from each((ss.SampledNoise,), "draws", (0, 1, 2.5, "8", None), "draws={}", sample=line)
    yield from each((ss.SampledNoise,), "rank", (0, 300, 2.5, "8", True), "rank={}", sample=line)
    yield from each((ss.SampledNoise,), "seed", (0.5, "8", None, True), "seed={}", sample=line)
    yield from each((ss.Route,), "block", (0, -1, 1.5, "8", True), "block={}")
    yield from each((ss.Route,), "memory", (0, -1, "8", None, NAN), "memory={}")


def times_and_keys() -> Iterator[Row]:
    bad = (0, 1, -3, 2.5, True, "many", [], [0.5, 0.2], [0.2, 0.2], [-0.1, 1.0], [0.0, 2.0], [[0.0, 1.0]], [NAN], None)
    yield from each((*RUNS, backward), "save_at", (*bad, ["0.1"], [1j]), "save_at=")
    yield from each(RUNS, "key", (0.0, True, "seed", np.zeros(3), jr.split(jr.key(0), 3), [1, 2]), "key=")
    yield from each((discrete,), "save_at", (1001,), "save_at asks for 1001 times")
    yield from each((discrete,), "t1", (1e-4,), "less than one step")
    yield from each((rest,), "save_at", ([0.0, 1.0],), "save_at=[0.0, 1.0]: a run to t1=inf")


def words() -> Iterator[Row]:
    """Arguments that are one of a few words, or True or False."""
    flags = ("no", "x", 1, 0, None, np.ones(2))
    yield from each((*RUNS, backward), "throw", flags, "throw=")
    yield from each(RUNS, "progress", ("no", 1, 0.0), "progress={} must be True or False")
    yield from each((discrete,), "project", flags, "project=")
    yield from each((backward,), "corrected", ("no", 1, None), "corrected={} must be True or False")
    yield from each((backward,), "bias_correction", ("no", 1), "bias_correction={} must be True or False")
    yield from each((ss.sgd,), "bias_correction", ("no", 1, None), "bias_correction={} must be True or False")
    yield from each((ss.adam,), "bias_correction", ("no", 1, None), "bias_correction={} must be True or False", c=1.0)
    yield from each((simulate,), "solver", ("rk4", None, 3, True), "solver={} is not one of")
    yield from each((rival,), "solver", ("rk4", None, "tsit5"), "solver={} is not one of")
    yield from each((backward,), "method", ("sgd", None, 3), "method={} is not one of")
    yield from each(RUNS, "route", ("fast", None, 3), "route={} is not one of")
    yield from each(RUNS, "route", ("kernel", "matrix_free"), "route={} is not available for this problem")
    yield from each(RUNS, "dtype", ("float16", "int32", "double precision", None), "dtype=")
    yield from each((functools.partial(ss.accumulated, LINE),), "count", (0, -1, 1.5, *NO_NUMBER), "count=")
    yield functools.partial(ss.accumulated, ss.Problem(valley), 2), "with a noise"
    yield from each((ss.LabelNoise,), "kind", ("uniform", None, 3), "kind={} is not", std=0.5)


def problems() -> Iterator[Row]:
    """What a problem is made of."""
    for make in (ss.Problem, ss.LeastSquares, ss.EmpiricalRisk, ss.Classification):
        data = {ss.LeastSquares: (INPUTS, TARGETS), ss.EmpiricalRisk: (INPUTS,), ss.Classification: (INPUTS, SMOOTHED)}
        rest = data.get(make, ())
        name = {ss.LeastSquares: "predict", ss.EmpiricalRisk: "sample_loss", ss.Classification: "logits"}
        for wrong in (None, 3.0, "f", np.ones(2)):
            yield functools.partial(make, wrong, *rest), f"{name.get(make, 'loss')}="
        for wrong in (0.5, "label", None if make is None else ss.LabelNoise, ss.sgd()):
            yield functools.partial(make, line, *rest, noise=wrong), "noise="
    for targets, said in (
        (np.ones(3), "inputs and targets must be arrays"),
        (None, "targets=None"),
        ("ab", "targets has dtype"),
        (np.array(["a", "b"]), "targets has dtype"),
        (np.array([1.0, None]), "targets has dtype"),
        (np.array([1.0, 1j]), "targets has dtype complex128"),
        (np.array([1.0, NAN]), "targets has 1 entries that are NaN or infinite, the first at (1,)"),
        (np.array([INF, 1.0]), "targets has 1 entries that are NaN or infinite, the first at (0,)"),
        (np.float64(1.0), "inputs and targets must be arrays"),
    ):
        yield functools.partial(ss.LeastSquares, line, INPUTS, targets), said
    for inputs, said in (
        (None, "inputs=None"),
        (HOLE, "inputs has 1 entries that are NaN or infinite, the first at (0, 1)"),
        ({"z": HOLE}, "inputs['z'] has 1 entries that are NaN or infinite"),
        (np.array([["a"], ["b"]]), "inputs has dtype"),
        ([[1.0, 2.0], [3.0, 4.0]], "inputs and targets must be arrays"),
        (np.ones((0, 3)), "inputs and targets"),
        (1.0, "inputs and targets must be arrays"),
    ):
        yield functools.partial(ss.LeastSquares, line, inputs, TARGETS), said
        yield functools.partial(ss.Classification, logits, inputs, SMOOTHED), said
    yield functools.partial(ss.EmpiricalRisk, line, 3.0), "data must be arrays"
    yield functools.partial(ss.EmpiricalRisk, line, None), "data=None"
    yield functools.partial(ss.EmpiricalRisk, line, HOLE), "data has 1 entries that are NaN"
    yield functools.partial(ss.EmpiricalRisk, line, np.array(["a"])), "data has dtype"
    for targets, said in (
        (TARGETS, "targets has shape (2,); it must be (n, K)"),
        (np.eye(3)[:2], "hard labels have no minimizer"),
        (np.full((2, 3), 0.2), "sums to 0.6, not to 1"),
        (np.full((2, 1), 1.0), "it must be (n, K)"),
        (np.full((2, 3), NAN), "targets has 6 entries that are NaN"),
        (None, "targets=None"),
        (np.array([["a", "b"]] * 2), "targets has dtype"),
    ):
        yield functools.partial(ss.Classification, logits, INPUTS, targets), said
    for std in (0.0, -1.0, NAN, INF, "0.5", True, 1j, [True, False], [0.0, 0.0], [1.0, -1.0]):
        yield functools.partial(ss.LabelNoise, std), "std="
    for factor in ("0.3", True, 1j, NAN, [INF, 1.0], np.array(["a"]), {"w": 1.0}):
        yield functools.partial(ss.GaussianNoise, factor), "factor="
    yield functools.partial(ss.SampledNoise, 3.0), "sample=3.0"


def raising(x: Any) -> Any:
    raise KeyError("no such layer")


def models() -> Iterator[Row]:
    """What a loss or a model returns."""
    for loss, said in (
        (lambda x: x, "loss must return a real scalar"),
        (lambda x: "abc", "loss returns 'abc'"),
        (lambda x: None, "loss returns None"),
        (lambda x: x[0] + 1j, "loss must return a real scalar"),
        (lambda x: jnp.float32(1.0) * x[0].astype(jnp.float32), "loss returns float32 for float64 parameters"),
        (lambda x: np.sum(np.asarray(x)), "loss calls NumPy"),
        (lambda x: float(x[0]), "loss turns what it is given into a Python number"),
        (lambda x: x[0] if x[1] > 0 else x[1], "loss branches in Python"),
        (lambda x, y: x[0], "loss takes other arguments than (params)"),
        (lambda: 0.0, "loss takes other arguments than (params)"),
        (lambda x: x[0] > 0, "loss must return a real scalar"),
    ):
        for run in (simulate, discrete, rival):
            yield functools.partial(run, ss.Problem(loss, NOISE)), said
        yield functools.partial(ss.to_manifold, ss.Problem(loss, NOISE), START), said
    there_and_back = lambda x: x.astype(jnp.float32).astype(x.dtype)  # noqa: E731
    for way in (there_and_back, jax.jit(there_and_back), lambda x: jax.lax.map(there_and_back, x)):
        said = "computes in float32 on the way from float64 parameters: it casts inside"
        yield functools.partial(simulate, ss.Problem(lambda x, way=way: valley(way(x)), NOISE)), f"loss {said}"
        cast = ss.LeastSquares(lambda w, z, way=way: z @ way(w), INPUTS, TARGETS, LABELS)
        yield functools.partial(simulate, cast, ADAM, np.ones(3)), f"predict {said}"
    half = ss.LeastSquares(lambda w, z: (z @ w).astype(jnp.float32), INPUTS, TARGETS, LABELS)
    lower = ss.LeastSquares(lambda w, z: (z @ w).astype(jnp.bfloat16), INPUTS, TARGETS, LABELS)
    for problem, said in (
        (half, "predict returns float32 for float64 parameters"),
        (lower, "predict returns bfloat16 for float64 parameters"),
        (ss.LeastSquares(line, INPUTS, np.ones((2, 2)), LABELS), "targets has shape (2, 2), but predict returns"),
        (ss.LeastSquares(lambda w, z: "a", INPUTS, TARGETS, LABELS), "predict returns 'a'"),
        (ss.LeastSquares(lambda w, z: None, INPUTS, TARGETS, LABELS), "predict returns None"),
        (ss.LeastSquares(lambda w: w, INPUTS, TARGETS, LABELS), "predict takes other arguments than (params, x)"),
        (ss.LeastSquares(lambda w, z: z @ w + 0j, INPUTS, TARGETS, LABELS), "predict must return real numbers"),
        (ss.LeastSquares(lambda w, z: np.dot(z, np.asarray(w)), INPUTS, TARGETS, LABELS), "predict calls NumPy"),
        (ss.EmpiricalRisk(lambda w, z: w * z, INPUTS, ss.MinibatchNoise(1)), "sample_loss must return a real scalar"),
        (ss.EmpiricalRisk(lambda w: w[0], INPUTS, ss.MinibatchNoise(1)), "sample_loss takes other arguments"),
        (ss.EmpiricalRisk(lambda w, z: "a", INPUTS, ss.MinibatchNoise(1)), "sample_loss returns 'a'"),
        (ss.LeastSquares(line, INPUTS, TARGETS, ss.LabelNoise()), "LabelNoise(std=None) does not suit LeastSquares"),
        (ss.LeastSquares(line, INPUTS, TARGETS, ss.LabelNoise(np.array([1.0, 2, 3]))), "std has shape (3,)"),
        (ss.LeastSquares(line, INPUTS, TARGETS), "problem has no noise"),
    ):
        yield functools.partial(simulate, problem, params0=np.ones(3)), said
        yield functools.partial(discrete, problem, params0=np.ones(3)), said
    sorts = ss.Classification(lambda w, z: w["w"][:2] @ z, INPUTS, SMOOTHED, ss.LabelNoise(batch_size=1))
    yield functools.partial(simulate, sorts, params0={"w": np.ones((3, 3))}), "logits returns shape (2,)"
    stiff = ss.Classification(logits, INPUTS, SMOOTHED, ss.LabelNoise(0.5))
    yield functools.partial(simulate, stiff, params0={"w": np.ones((3, 3))}), "does not suit Classification"
    for noise, said in (
        (ss.GaussianNoise(np.ones((3, 2))), "factor of GaussianNoise has shape (3, 2)"),
        (ss.GaussianNoise(np.ones(2)), "factor of GaussianNoise has shape (2,)"),
        (ss.GaussianNoise(lambda x: x), "factor of GaussianNoise has shape (2,)"),
        (ss.LabelNoise(0.5), "LabelNoise needs labels"),
        (ss.MinibatchNoise(1), "MinibatchNoise needs samples"),
        (None, "problem has no noise"),
    ):
        yield functools.partial(simulate, ss.Problem(valley, noise)), said
    yield from each((*RUNS, study, estimate, predict), "problem", (valley, None, 3.0, "valley"), "problem=")
    yield from each((simulate, rival, study, estimate), "optimizer", ("adam", None, optax.sgd(0.1)), "optimizer=")
    yield from each((predict,), "optimizer", ("adam", None, optax.sgd(0.1), len, lambda lr: lr), "optimizer")
    yield from each((discrete,), "optimizer", ("adam", None, 3.0), "optimizer=")


def parameters() -> Iterator[Row]:
    for params, said in (
        (np.array([0, 1]), "params has dtype int64"),
        (np.array([True, False]), "params has dtype bool"),
        (np.array([1j, 0]), "params has dtype complex128"),
        ({"x": np.ones(1), "y": np.ones(1, int)}, "params['y'] has dtype int"),
        ({"x": np.ones(1), "y": np.ones(1, np.float32)}, "params mixes precisions"),
        ([0.1, 1.0], "params[0] is the Python number 0.1"),
        (
            [np.ones(1), eqx.nn.Dropout(0.1, inference=True)],
            "params, rest = eqx.partition(model, eqx.is_inexact_array)",
        ),
        ({}, "params has no array leaves"),
        (None, "params has no array leaves"),
        ("start", "params has no array leaves"),
        (np.ones((0, 3)), "params has no entries"),
        (np.array([NAN, 1.0]), "params has 1 entries that are NaN or infinite"),
        ({"x": np.array([INF, 1.0])}, "params['x'] has 1 entries that are NaN or infinite"),
    ):
        for run in (simulate, discrete, rival, backward):
            yield functools.partial(run, params0=params), said
    for v0, said in (
        (np.ones(3), "v0 has leaves of shape"),
        (np.ones((2, 2)), "v0 has leaves of shape"),
        ({"x": np.ones(2)}, "v0 has leaves of shape"),
        (1.0, "v0 has leaves of shape"),
        ("state", "v0 has leaves of shape"),
        (np.array([1.0, -1.0]), "v0 must be finite and not negative"),
        (np.array([1.0, NAN]), "v0 must be finite and not negative"),
    ):
        yield from each(RUNS, "v0", (v0,), said)
    matrix = ss.LeastSquares(tree_line, INPUTS, np.ones((2, 2)), LABELS)
    negative = {"w": -np.ones((2, 3)), "b": np.ones(2)}
    for run in RUNS:
        yield functools.partial(run, matrix, params0=TREE, v0=negative), "v0 must be finite and not negative"


def optimizers() -> Iterator[Row]:
    for make in (ss.adam, ss.rmsprop, ss.adam_mini, ss.adalayer, ss.shampoo, ss.adafactor, ss.adam_eps_inside):
        yield from each((make,), "c", (0.0, -1.0, *NO_NUMBER), "c=")
        yield from each((make,), "eps", (-1e-8, INF, *NO_NUMBER), "eps=", c=1.0)
    for make in (ss.adam, ss.adam_mini, ss.shampoo, ss.adafactor):
        yield from each((make,), "b1", (1.0, -0.1, *NO_NUMBER), "b1=", c=1.0)
    yield from each((ss.sgd,), "b1", (1.0, -0.1, *NO_NUMBER), "b1=")
    yield from each((ss.adame,), "lam", (1.0, -0.1, *NO_NUMBER), "lam=", c=1.0)
    yield from each((ss.adafactor,), "min_size", (0, 1.5, *NO_NUMBER), "min_size=", c=1.0)
    yield from each((ss.shampoo,), "exponent", (0.0, -0.1, 1.5, *NO_NUMBER), "exponent=", c=1.0)
    mask = {"w": True, "b": False}
    yield from each((ss.sgd,), "weight_decay", (-0.1, "0.1", NAN, INF, 1j, {"w": "x"}), "weight_decay")
    yield from each((ss.sgd,), "weight_decay", (True, mask, np.array([True, False])), "mask=")
    yield from each((ss.sgd,), "weight_decay", (lambda p: 0.1, optax.constant_schedule(0.1)), "mask=")
    yield from each((ss.sgd,), "mask", ({"w": 1.0}, "w", np.ones(2)), "mask", weight_decay=0.1)
    yield from each((ss.sgd,), "schedule", (0.5, "cosine", np.ones(2), True), "schedule=")
    for schedule, said in (
        (lambda t: None, "schedule returns None"),
        (lambda t: "a", "schedule returns 'a'"),
        (lambda t: jnp.ones(2), "schedule must return a real scalar"),
        (lambda t: 1j * t, "schedule must return a real scalar"),
        (lambda t: 1.0 if t < 0.5 else 0.1, "schedule branches in Python"),
        (lambda t, k: 1.0, "schedule takes other arguments than (t)"),
        (lambda t: float(t), "schedule turns"),
    ):
        yield functools.partial(ss.sgd, schedule=schedule), said
    wrong_decay = ss.sgd(weight_decay={"w": 0.1, "c": 0.1})
    matrix = ss.LeastSquares(tree_line, INPUTS, np.ones((2, 2)), LABELS)
    yield functools.partial(simulate, matrix, wrong_decay, TREE), "weight_decay does not fit params"
    wrong_mask = {"w": True, "c": True}
    yield lambda: simulate(matrix, ss.sgd(weight_decay=0.1, mask=wrong_mask), TREE), "mask does not fit params"
    for v in (lambda g: "x", lambda g, h: g, lambda g: None if g is None else np.asarray(g)):
        yield functools.partial(simulate, optimizer=ss.AGM(v, lambda v: 1 / (1 + v), c=1.0)), "V "
    for name in ("V", "S"):
        yield from each((ss.AGM,), name, (None, 3.0), f"{name}={{}}", **{"c": 1.0, "VS".replace(name, ""): line})
    for metric, said in (
        (lambda v: "diagonal", "metric='diagonal' is not a metric"),
        (lambda v: v[:1] + 1, "metric acts on 1 parameters, but params has 2"),
    ):
        yield functools.partial(simulate, optimizer=ss.AGM(lambda g: g**2, metric, c=1.0)), said
    for blocks, said in (
        ([0.5, 1.0], "not integers"),
        (np.array([0, -1]), "labels are 0, 1, 2"),
        (np.array([0, 2]), "no parameter is labelled [1]"),
        (np.full(2, 2**31 - 1), "labels up to 2147483647"),
        (np.array(["a", "b"]), "not integers"),
        ({}, "has no labels"),
    ):
        yield functools.partial(ss.adam_mini, 1.0, blocks), said
    yield functools.partial(simulate, optimizer=ss.adam_mini(1.0, np.array([0, 1, 2]))), "blocks"
    yield functools.partial(simulate, optimizer=ss.adam_mini(1.0, {"x": np.array([0, 1])})), "blocks"
    two = {"a": ss.adam(1.0), "b": ss.adam(1.0)}
    for groups, labels, rates, said in (
        ({}, "a", None, "names no group"),
        (two, {"w": "a"}, None, "every label needs an optimizer"),
        ({"a": 3.0}, "a", None, "optimizers['a']=3.0"),
        ([ss.sgd()], "a", None, "optimizers="),
        ({"a": ss.adam(1.0), "b": ss.adam(2.0)}, {"w": "a", "b": "b"}, None, "must agree in it"),
        (two, {"w": "a", "b": "b"}, {"a": -1.0}, "learning_rates['a']=-1.0"),
        (two, {"w": "a", "b": "b"}, {"a": 0.0}, "learning_rates['a']=0.0"),
        (two, {"w": "a", "b": "b"}, {"a": "1"}, "learning_rates['a']='1'"),
        (two, {"w": "a", "b": "b"}, {"c": 1.0}, "learning_rates['c']=1.0"),
        (two, {"w": "a", "b": "b"}, {"a": NAN}, "learning_rates['a']=nan"),
        (two, {"w": "a", "b": "b"}, 0.5, "learning_rates=0.5"),
    ):
        yield functools.partial(ss.grouped, groups, labels, learning_rates=rates), said
    yield functools.partial(discrete, optimizer=ss.adam(c=10.0), lr=0.5), "lr=0.5 is too large for c=10.0"
    yield functools.partial(discrete, optimizer=ss.adam(c=INF)), "c=inf is a limit"
    yield functools.partial(discrete, like=ss.sgd()), "like="
    yield functools.partial(discrete, optimizer=optax.sgd(0.1), like="sgd"), "like="


def schedules() -> Iterator[Row]:
    """Schedules that vanish, turn negative or NaN on the run: to know that they have to be evaluated, one program."""
    for schedule, said in (
        (lambda t: 1 - 2 * t, "schedule is 0 at t=0.5"),
        (lambda t: 0 * t, "schedule is 0 at t=0: it must be positive and finite on the whole run"),
        (lambda t: t - 0.1, "schedule is -0.1 at t=0"),
        (lambda t: jnp.sqrt(0.5 - t), "schedule is"),
        (lambda t: jnp.where(t > 0.9, jnp.nan, 1.0), "schedule is nan at t=0.9"),
        (lambda t: 1 / t, "schedule is inf at t=0"),
        (optax.linear_schedule(1.0, 0.0, 1), "schedule is 0 at t=1"),
    ):
        for run in RUNS:
            yield functools.partial(run, optimizer=ss.sgd(schedule=schedule)), said


def observables() -> Iterator[Row]:
    twice = (ss.metrics.distance(START), ss.metrics.distance(2 * START))
    for metrics, said in (
        ("trace_hesian", "metrics: 'trace_hesian' is not one of"),
        (("loss", "nonsense"), "metrics: 'nonsense' is not one of"),
        ({"mine": lambda x: x}, "metrics['mine'] returns shape (2,)"),
        ({"mine": lambda x: x[0] + 1j}, "metrics['mine'] returns complex"),
        ({"mine": lambda x: "a"}, "metrics['mine'] returns 'a'"),
        ({"mine": lambda x: None}, "metrics['mine'] returns None"),
        ({"mine": lambda x, y: 0.0}, "metrics['mine'] takes other arguments than (params)"),
        ({"mine": lambda x: float(x[0])}, "metrics['mine'] turns"),
        ({"mine": 3.0}, "metrics: 3.0 is neither"),
        (7, "metrics=7 must be names"),
        (None, "metrics=None must be names"),
        ((lambda x: x[0],), "is neither"),
        (("loss", "loss"), "metrics has two of the name 'loss'"),
        (twice, "metrics has two of the name 'distance'"),
        (ss.metrics.distance(np.ones(3)), "distance"),
        (ss.metrics.accuracy(lambda w, z: z[:2], INPUTS, np.array([0, 5])), "labels has the class 5"),
        (ss.metrics.effective_rank(lambda w: w), "it must return a matrix"),
    ):
        for run in RUNS:
            yield functools.partial(run, metrics=metrics), said
    yield functools.partial(ss.metrics.accuracy, logits, INPUTS, np.array([0.5, 1.0])), "labels has shape (2,)"
    yield functools.partial(ss.metrics.accuracy, logits, INPUTS, np.array([0, -1])), "labels has the class -1"
    yield functools.partial(ss.metrics.accuracy, logits, INPUTS, np.array([0, 1, 1])), "inputs and labels"
    yield from each((ss.metrics.sparsity,), "threshold", (1.0, -0.1, NAN, "a", None), "threshold=")
    yield from each((ss.metrics.gradient_norm,), "eps", (-0.1, NAN, "a", None), "eps=")
    yield from each((ss.metrics.trace_power_diag_hessian,), "exponent", (NAN, "a", None, INF), "exponent=")
    yield from each((study, estimate), "observables", ((), {}), "is empty")
    yield from each((study,), "lrs", (0.1, (0.1,), (0.1, 0.1), (0.1, -0.1), "ab", None, (0.1, NAN)), "lrs=")
    yield from each((predict,), "metrics", ((), {}), "is empty")
    yield from each((predict,), "rates", (0.1, (), (0.01,), (0.1, -0.1), "ab", (0.1, NAN), ((0.1,),)), "rates=")
    yield from each((predict,), "rates", ((5.0, 0.05),), "rates contains 5: β2 = 1 − c·lr² is negative there")
    yield from each((study,), "lrs", ((5.0, 0.05),), "lrs contains 5, too large for c=1")


def results() -> Iterator[Row]:
    """What is made of runs."""
    for slow, fast, said in (
        (FAST, SLOW, "swapped"),
        (SLOW, SLOW, "discrete is a slow trajectory"),
        (FAST, FAST, "slow is a discrete trajectory"),
        (None, FAST, "slow=None"),
        (SLOW, "fast", "discrete='fast'"),
        (trajectory(clock="k·lr"), FAST, "on_slow_clock"),
        (SLOW, trajectory("discrete", lr=0.1, clock="k·lr"), "on_slow_clock"),
        (trajectory(ts=(3.0, 4.0, 5.0)), FAST, "no common times"),
        (trajectory(digest=ONE), trajectory("discrete", digest=ONE | {"loss": "b"}), "of another loss or other data"),
        (trajectory(digest=ONE), trajectory("discrete", digest=ONE | {"optimizer": "b"}), "of another optimizer"),
    ):
        yield functools.partial(ss.compare, slow, fast), said
    yield functools.partial(ss.validity, VALLEY, ADAM, FAST, 0.1), "slow is a discrete Trajectory"
    yield functools.partial(ss.validity, VALLEY, ADAM, None, 0.1), "slow is None"
    yield from each((functools.partial(ss.validity, VALLEY, ADAM, SLOW),), "lr", (0.0, NAN, "a", None, True), "lr=")
    yield functools.partial(ss.resume, VALLEY, ADAM, SLOW, 2.0), "must be a run of simulate"
    yield functools.partial(ss.resume, VALLEY, ADAM, FAST, 2.0), "must be a run of simulate"
    yield functools.partial(ss.resume, VALLEY, ADAM, None, 2.0), "must be a run of simulate"
    yield functools.partial(ss.on_ode_clock, SLOW), "lr=None"
    yield functools.partial(ss.on_ode_clock, SLOW, "a"), "lr='a'"
    yield functools.partial(ss.on_slow_clock, None), "trajectory=None"
    yield functools.partial(ss.plot.plot_metric, SLOW, name="z"), "name='z' is not an observable"


def symbols() -> Iterator[Row]:
    x, y = sympy.symbols("x y")
    positive = sympy.Symbol("x", positive=True)
    f = sympy.Function("f")
    for expr, names, said in (
        ("x**2", [x], "expr='x**2' is a string"),
        (x**2, [], "symbols=[] must list at least one"),
        (x**2, [x, x], "each once"),
        (x * y, [x], "expr contains ['y'], which symbols"),
        (positive**2, [x], "other assumptions"),
        (sympy.Eq(x, y), [x, y], "is an equation"),
        (x < y, [x, y], "expr=x < y is no scalar expression"),
        (sympy.Matrix([x, y]), [x, y], "is no scalar expression"),
        (f(x) ** 2, [x], "the unknown function f"),
        (sympy.zeta(x), [x], "zeta"),
        (None, [x], "expr=None"),
        (x**2, "x", "symbols='x'"),
        (x**2, [2 * x], "symbols"),
        (x**2 + sympy.I, [x], "is not real"),
    ):
        yield functools.partial(ss.from_sympy, expr, names), said


def geometry() -> Iterator[Row]:
    circle = lambda x: 0.25 * (x @ x - 1) ** 2  # noqa: E731
    for call in (mf.limit_map, mf.return_to_manifold, mf.projector):
        for x, said in (
            (np.array([0, 1]), "params has dtype int64"),
            (np.array([NAN, 1.0]), "NaN or infinite"),
            ({}, "params has no array leaves"),
        ):
            yield functools.partial(call, circle, x), said
        for loss, said in ((lambda x: x, "loss must return a real scalar"), (3.0, "loss=3.0")):
            yield functools.partial(call, loss, START), said
        for metric, said in (
            ("diagonal", "metric='diagonal' is not a metric"),
            (np.ones(3), "metric acts on 3 parameters"),
            (np.array([1.0, -1.0]), "metric is not positive"),
            (np.array([1.0, NAN]), "metric is not positive"),
        ):
            yield functools.partial(call, circle, START, metric), said
    yield from each((mf.limit_map,), "rank", (0, 3, 1.0, True), "rank={}", loss=circle, x=START)
    for entries in (np.array([1.0, -1.0]), np.array([1.0, NAN]), np.array([0.0, 1.0])):
        yield functools.partial(mf.Diagonal, entries), "metric is not positive and finite"


TABLE: dict[str, list[Row]] = {
    kind.__name__: list(kind())
    for kind in (
        numbers,
        counts,
        times_and_keys,
        words,
        problems,
        models,
        parameters,
        optimizers,
        schedules,
        observables,
        results,
        symbols,
        geometry,
    )
}
EVALUATED = ("schedules",)
ROWS = [(f"{kind}{i}", call, said) for kind, rows in TABLE.items() for i, (call, said) in enumerate(rows)]


class Verdict(enum.Enum):
    CLEAR = "a ValueError with its words"
    OTHER_WORDS = "a ValueError with other words"
    CRYPTIC = "another exception"
    LATE = "programs were compiled first"
    ACCEPTED = "accepted"


def verdict(call: Callable[[], Any], said: str, strict: bool = True) -> tuple[Verdict, str]:
    """What a call comes to; if not `strict` also if programs are compiled first."""

    for wide in (False, True):
        with jax.enable_x64(wide):
            jnp.zeros(())  # by which a call knows that it is not within jit: the one program that checks run
            jr.key(0)

    def heard(event: str, seconds: float, **about: Any) -> None:
        if strict and event == "/jax/core/compile/backend_compile_duration":
            raise Compiled

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        call()
    except Compiled:
        return Verdict.LATE, ""
    except Reached:
        return Verdict.ACCEPTED, "the integration has started"
    except ValueError as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        text = f"{error}\n{notes}"
        return (Verdict.CLEAR if said in text else Verdict.OTHER_WORDS), text
    except Exception as error:
        return Verdict.CRYPTIC, f"{type(error).__name__}: {error}"
    finally:
        jax._src.monitoring.unregister_event_duration_listener(heard)  # pyright: ignore[reportAttributeAccessIssue]
    return Verdict.ACCEPTED, ""


class Compiled(BaseException):
    """A program was compiled."""


def test_the_table_is_long_enough() -> None:
    assert len(ROWS) >= 300
    assert all(said for _, _, said in ROWS)


@pytest.mark.parametrize(("name", "call", "said"), ROWS, ids=[row[0] for row in ROWS])
def test_a_bad_input_is_refused_by_name_before_anything_is_compiled(
    name: str, call: Callable[[], Any], said: str
) -> None:
    found, text = verdict(call, said, strict=not name.startswith(EVALUATED))
    assert found is Verdict.CLEAR, f"{found.value}; wanted {said!r}, got:\n{text}"


class Reached(BaseException):
    """Long work has started."""


def reached(*args: Any, **options: Any) -> Any:
    raise Reached


def main() -> None:
    strict = "--late" not in sys.argv
    for module, name in (
        ("runs.simulate", "follow"),
        ("runs.simulate", "follow_to_rest"),
        ("runs.simulate", "solve_sde"),
        ("runs.discrete", "_run"),
        ("runs.conventional_sde", "conventional_paths"),
        ("runs.backward_error", "follow"),
        ("studies.extrapolation", "solve_sde"),
    ):
        setattr(sys.modules[f"slowsde.{module}"], name, reached)
    signal.signal(signal.SIGALRM, reached)
    found = {}
    for name, call, said in ROWS:
        signal.alarm(30)
        found[name] = verdict(call, said, strict and not name.startswith(EVALUATED))
        signal.alarm(0)
    wanted = {name: said for name, _, said in ROWS}
    for name, (how, text) in found.items():
        if how is not Verdict.CLEAR:
            print(f"{name:<16} {how.name:<12} {wanted[name]!r}  <-  {' '.join(text.split())[:170]}")
    for how in Verdict:
        print(f"{sum(v is how for v, _ in found.values()):5d} {how.value}")
    print(f"{len(found):5d} rows")


if __name__ == "__main__":
    main()

"""An observable that is NaN is told of, and counts for nothing."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss
from slowsde.studies.extrapolation import estimate_of_samples
from slowsde.studies.order_fit import fit_order

VALLEY = ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, noise=ss.GaussianNoise(0.3))


def test_a_metric_that_is_nan_is_told_of() -> None:
    metrics = {"root": lambda x: jnp.sqrt(x[0] - 1e9), "y": lambda x: x[1]}
    run = {"t1": 0.1, "dt": 0.05, "save_at": 3, "metrics": metrics}
    with pytest.warns(UserWarning, match=r"metrics\['root'\] is not finite at 3 of 3 points that are, from t=0 on"):
        found = ss.simulate(VALLEY, ss.sgd(), np.array([0.0, 1.0]), **run)
    assert found.stats["undefined"] == {"root": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss.simulate(VALLEY, ss.sgd(), np.array([0.0, 1.0]), **run | {"metrics": {"y": metrics["y"]}})


def test_no_order_is_fitted_through_nan() -> None:
    lrs = np.array([0.1, 0.05, 0.025])
    fit = fit_order(lrs, np.array([0.1, np.nan, 0.025]), np.eye(3) * 1e-8, 8)
    assert np.isnan(fit.order)
    assert "lr=0.05 (the observable is not finite there)" in fit.refusal
    fit = fit_order(lrs, np.array([0.1, 0.05, 0.025]), np.diag([1e-8, np.nan, 1e-8]), 8)
    assert "lr=0.05 (the observable is not finite there)" in fit.refusal


def test_no_mean_is_extrapolated_from_nan() -> None:
    samples = np.random.default_rng(0).normal(size=(2, 8))
    samples[1, 3] = np.nan
    found = estimate_of_samples({"q": samples}, 1.0, np.array([0.1, 0.05]))
    assert "no estimate: the observable is not finite on 1 of 8 paths" in found.table()

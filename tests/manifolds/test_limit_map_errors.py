"""A start from which the flow reaches no regular point of a manifold of minimizers, or an unfit loss, is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf


def circle(x):
    return 0.25 * (x @ x - 1) ** 2


def kinked(x):
    return 0.25 * (jnp.sqrt(x @ x) - 1) ** 2


@pytest.mark.parametrize(
    ("loss", "start", "message"),
    [
        (lambda x: jnp.exp(-x[0]) + 0.5 * x[1] ** 2, [0.0, 1.0], "does not converge|unclear"),
        (lambda x: jnp.exp(-x[0]), [0.0], "does not converge"),
        (lambda x: -x[0] + 0.5 * x[1] ** 2, [0.0, 1.0], "does not converge"),
        (lambda x: 0.25 * (x[0] ** 2 - 1) ** 2 + 0.5 * x[1] ** 2, [0.0, 1.0], "ends at a saddle"),
        (circle, [0.0, 0.0], "ends at a saddle"),
        (lambda x: 0.25 * x[0] ** 4 + 0.5 * x[1] ** 2 + 0 * x[2], [1.0, 1.0, 0.0], "x does not converge|unclear"),
        (lambda x: 0.25 * jnp.sum(x**4), [1.0, 0.5], "does not converge|vanishes"),
        (lambda x: 0.0 * x[0], [1.0, 0.5], "vanishes"),
        (lambda x: 0.5 * jnp.sum(10.0 ** -jnp.arange(13.0) * x**2), np.ones(13), "spectrum .* without a gap"),
    ],
    ids=[
        "no minimizer, exponential",
        "no minimizer, exponential alone",
        "no minimizer, linear",
        "saddle, by the flow",
        "saddle, at the start",
        "degenerate direction",
        "degenerate",
        "constant",
        "no gap",
    ],
)
def test_a_start_that_reaches_no_regular_point_is_a_manifold_error(loss, start, message):
    with pytest.raises(mf.ManifoldError, match=message):
        mf.limit_map(loss, np.array(start))


@pytest.mark.parametrize(
    ("loss", "start", "message"),
    [
        (lambda x: x, [1.0, 1.0], "loss must return a real scalar"),
        (lambda x: x[:1], [1.0, 1.0], "loss must return a real scalar"),
        (lambda x: (x @ x, 1), [1.0, 1.0], "loss must return a real scalar"),
        (lambda x: x @ x + 1j, [1.0, 1.0], "loss must return a real scalar"),
        (lambda x: jnp.sum(x > 0), [1.0, 1.0], "loss must return a real scalar"),
        (lambda x: jnp.float32(1) * (x @ x).astype(jnp.float32), [1.0, 1.0], "loss returns float32"),
        (lambda x: jnp.log(x[0]) + x @ x, [-1.0, 1.0], "value of loss is not finite at params"),
        (kinked, [0.0, 0.0], "gradient of loss is not finite at params"),
        (lambda x: jnp.sum(jnp.abs(x) ** 1.5), [0.0, 1.0], "(second derivative|gradient) of loss is not finite"),
    ],
)
def test_a_loss_that_is_no_twice_differentiable_scalar_is_refused(loss, start, message):
    with pytest.raises(ValueError, match=message):
        mf.limit_map(loss, np.array(start))


def test_a_return_that_stops_at_a_saddle_or_on_a_slope_says_so():
    # Newton's step ignores directions of negative or no curvature: here it is zero at once, or only half the way.
    for loss in (circle, lambda x: circle(x[:2]) + 0.5 * x[2] ** 2, lambda x: 0.5 * x[1] ** 2 - x[0]):
        with pytest.raises(mf.ManifoldError, match="return from x did not converge"):
            mf.return_to_manifold(loss, np.array([1e-4, 0.0, 0.1]))


def test_a_rank_given_by_the_caller_settles_a_spectrum_without_a_gap():
    def no_gap(x):
        return 0.5 * jnp.sum(10.0 ** -jnp.arange(0.0, 12.0, 3) * x[:4] ** 2) + 5e-11 * x[4] ** 2

    start = np.ones(6)
    with pytest.raises(mf.ManifoldError, match="without a gap"):
        mf.limit_map(no_gap, start)
    np.testing.assert_allclose(mf.limit_map(no_gap, start, rank=4)[:4], 0, atol=1e-9)


def test_a_slope_along_weak_negative_curvature_is_followed_to_its_minimum():
    # The stiff direction is at rest long before the double well is left.
    def loss(x):
        return 0.5e4 * x[0] ** 2 + 0.25 * (x[1] ** 2 - 1) ** 2

    np.testing.assert_allclose(mf.limit_map(loss, np.array([0.0, 0.3])), [0.0, 1.0], rtol=0, atol=1e-12)


def test_errors_tell_what_to_do():
    with pytest.raises(ValueError, match="Perturb x"):
        mf.limit_map(circle, np.zeros(2))
    with pytest.raises(ValueError, match="start closer to the minimizers"):
        mf.limit_map(lambda x: jnp.exp(-x[0]), np.zeros(1))


OFF, ON = np.array([1.3, 0.2]), np.array([1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        # Π was zero to rounding there, as the Hessian has full rank off Γ.
        (lambda: mf.projector(circle, OFF), "not on the manifold of minimizers"),
        (lambda: mf.project(circle, OFF, None, OFF), "not on the manifold of minimizers"),
        (lambda: mf.second_derivative(circle, OFF, None, np.ones((2, 1))), "not on the manifold of minimizers"),
        (lambda: mf.projector(lambda x: x[0] ** 2 - x[1] ** 2, np.zeros(2)), "params is a saddle"),
        (lambda: mf.project(circle, ON, None, np.ones(3)), "w has shape"),
        (lambda: mf.project(circle, ON, None, np.array([1.0, np.nan])), "w has entries that are NaN"),
        (lambda: mf.second_derivative(circle, ON, None, np.ones((3, 1))), "factor has shape"),
        (lambda: mf.second_derivative(circle, ON, None, np.full((2, 1), np.nan)), "factor has entries that are NaN"),
        (lambda: mf.contract_third(circle, ON, np.ones((3, 3))), "matrix has shape"),
        (lambda: mf.contract_third(circle, ON, np.full((2, 2), np.nan)), "matrix has entries that are NaN"),
    ],
)
def test_what_is_defined_on_the_manifold_asks_for_a_point_of_it(call, said):
    with pytest.raises(ValueError, match=said):
        call()

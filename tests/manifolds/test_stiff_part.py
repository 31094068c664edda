"""Far from Γ the curvature may be stiff where Gauss–Newton sees nothing: the way there follows it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import manifolds as mf
from manifolds.maps import stiff_part
from manifolds.support.coordinates import ravel

# One residual r = a·x + ½ Σ κ_i (b_i·x − sin a·x)²: at the bottom of the valley J = a, while R = r Σ κ_i b_i b_iᵀ.
RNG = np.random.default_rng(0)
SIZE = 24
DIRECTIONS = np.linalg.qr(RNG.normal(size=(SIZE, 5)))[0].T
STIFFNESS = np.array([4e3, 2e3, 1e3, 50.0])
START = 3 * DIRECTIONS[0] + np.sin(3) * DIRECTIONS[1:].sum(0)


def predict(x, z):
    along, *across = z @ x
    return along + 0.5 * STIFFNESS @ (jnp.stack(across) - jnp.sin(along)) ** 2


def bent(**route):
    return mf.LeastSquaresLoss(predict, DIRECTIONS[None], np.zeros(1), like=START, **route)


@pytest.fixture(scope="module")
def by_radau():
    with jax.enable_x64(True):
        loss = bent()
        field, jacobian = jax.jit(lambda x: loss.gradient(x)), jax.jit(lambda x: jax.hessian(loss.value)(x))
        found = solve_ivp(
            lambda t, x: -np.asarray(field(x)),
            (0, 1e4),
            START,
            method="Radau",
            jac=lambda t, x: -np.asarray(jacobian(x)),
            rtol=1e-10,
            atol=1e-12,
        )
    return found.y[:, -1]


@pytest.mark.parametrize("stored", [True, False], ids=["kernel", "matrix-free"])
def test_a_valley_that_bends_away_from_its_residuals_takes_few_steps(by_radau, stored):
    found = mf.limit(bent(stored=stored), START)
    print(found.num_steps, np.max(np.abs(found.point - by_radau)))
    assert found.num_steps < 2000
    np.testing.assert_allclose(found.point, by_radau, rtol=0, atol=2e-7)


def test_without_it_ten_thousand_steps_do_not_suffice(monkeypatch):
    monkeypatch.setattr(stiff_part, "LIGHT", np.inf)  # nothing weighs
    jax.clear_caches()
    with pytest.raises(mf.ManifoldError, match=r"residual 2\.\d+ after 10000 steps"):
        mf.limit(bent(), START)
    jax.clear_caches()


def classification():
    inputs, targets = RNG.normal(size=(3, 4)), RNG.dirichlet(np.ones(3), 3)
    params = {"a": RNG.normal(size=(5, 4)), "b": RNG.normal(size=(3, 5))}
    return mf.CrossEntropyLoss(lambda p, z: p["b"] @ jnp.tanh(p["a"] @ z), inputs, targets, like=params), ravel(params)


@pytest.mark.parametrize("case", [lambda: (bent(), START), classification], ids=["least squares", "cross-entropy"])
def test_what_gauss_newton_leaves_out_is_the_rest_of_the_hessian(case):
    with jax.enable_x64(True):
        loss, x = case()
        x = jnp.asarray(x) + 0.1
        identity = jnp.eye(x.size)
        model = loss.curvature_jacobian(x).transposed(loss.curvature_jacobian(x)(identity))
        rest = jax.vmap(loss.unseen_curvature(x), 1, 1)(identity)
        hessian = jax.jacfwd(loss.gradient)(x)
        assert jnp.max(jnp.abs(rest)) > 0.01 * jnp.max(jnp.abs(hessian))
        np.testing.assert_allclose(model + rest, hessian, rtol=0, atol=1e-12 * float(jnp.max(jnp.abs(hessian))))


def test_the_directions_turn_to_the_stiff_ones_and_the_solve_inverts_with_them():
    with jax.enable_x64(True):
        loss, x = bent(), jnp.asarray(START)
        metric, h = mf.Diagonal(jnp.asarray(RNG.uniform(0.5, 2, SIZE))), jnp.asarray(0.3)
        part = stiff_part.first_part(loss, x)
        turned = eqx.filter_jit(lambda part: stiff_part.renewed_part(loss, x, metric, part, jnp.asarray(1e9)))
        for _ in range(60):
            part = turned(part)
        identity = jnp.eye(SIZE)
        rest = metric.sqrt(metric.sqrt(jax.vmap(loss.unseen_curvature(x), 1, 1)(identity)).T)
        found = metric.sqrt(part.factor) @ metric.sqrt(part.factor).T
        exact, values = jnp.linalg.eigvalsh(rest)[-4:], jnp.linalg.eigvalsh(found)[-4:]
        np.testing.assert_allclose(values, exact, rtol=1e-6)

        rows = loss.rows(x)
        matrix = identity + h * metric(rows.T @ rows + part.factor @ part.factor.T)
        solve = stiff_part.with_stiff_part(loss.damped_solver(x, metric, h), metric, h, part)
        w = jnp.asarray(RNG.normal(size=SIZE))
        np.testing.assert_allclose(matrix @ solve(w), w, rtol=0, atol=1e-10)

"""The matrix-free route: nothing of the size of the Jacobian, and the answers of the other two."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manifolds as mf
import slowsde as ss
from manifolds.normal.constraints import Iterated, KernelDiagonal, NearbyKernel, conjugate_gradients, factorized
from manifolds.normal.jacobians import JacobianProducts, StoredJacobian
from manifolds.normal.lanczos import largest_eigenvalue, tridiagonal
from manifolds.support.coordinates import Coordinates, ravel
from manifolds.support.precision import cast
from slowsde.dynamics.slow_sde import slow_sde

N, D, K = 5, 4, 3
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(N, D))
START = {"w": 0.7 * RNG.normal(size=(6, D)), "b": 0.1 * RNG.normal(size=6), "out": 0.6 * RNG.normal(size=(K, 6))}
SIZE = sum(leaf.size for leaf in START.values())
ROUTES = ("dense", "kernel", "matrix_free")


def net(w: Any, z: Any) -> Any:
    return w["out"] @ jnp.tanh(w["w"] @ z + w["b"])


def problem(kind: str) -> ss.LeastSquares | ss.Classification:
    """One or two outputs under label noise, three classes, or Gaussian noise that diffuses."""
    if kind == "classes":
        probabilities = 0.7 * np.eye(K)[np.arange(N) % K] + 0.1
        return ss.Classification(net, INPUTS, probabilities, noise=ss.LabelNoise(batch_size=2))
    targets = np.sin(np.arange(2.0 * N)).reshape(N, 2)
    if kind == "one":
        return ss.LeastSquares(lambda w, z: net(w, z)[0], INPUTS, targets[:, 0], noise=ss.LabelNoise(0.5))
    noise = ss.LabelNoise(np.linspace(0.2, 1.0, N)) if kind == "uneven" else ss.LabelNoise(0.5, batch_size=1)
    if kind == "gaussian":
        noise = ss.GaussianNoise(0.3 * np.random.default_rng(1).normal(size=(SIZE, 3)))
    return ss.LeastSquares(lambda w, z: net(w, z)[:2], INPUTS, targets, noise=noise)


def distance(a: Any, b: Any) -> float:
    """|a − b| over |b|."""
    x, y = np.asarray(ravel(a)), np.asarray(ravel(b))
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-300))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["gaussian", *(pytest.param(k, marks=SLOW) for k in ("classes", "one", "two", "uneven"))]
)
def test_the_three_routes_agree_at_a_point(kind: str) -> None:
    """Φ_S to 1e-6, drift, diffusion and dv to 1e-8, for noise normal to Γ and across it (the Lyapunov products)."""
    task, optimizer = problem(kind), ss.adam(2.0, eps=1e-3)
    metric = mf.Diagonal(jax.tree.map(lambda leaf: 1 + np.abs(leaf), START))
    ends = [ss.to_manifold(task, START, metric, route=route) for route in ROUTES]
    assert max(distance(end, ends[0]) for end in ends[1:]) < 1e-6
    v = jax.tree.map(lambda leaf: 0.1 + leaf**2, START)
    found = [ss.coefficients(task, optimizer, ends[0], v, route=route) for route in ROUTES]
    for other in found[1:]:
        for name in ("drift", "diffusion", "v_drift"):
            assert distance(getattr(other, name), getattr(found[0], name)) < 1e-8, name
    assert distance(found[0].drift, jax.tree.map(lambda leaf: 1.001 * leaf, found[0].drift)) > 9e-4


OPTIMIZERS = {"adam": ss.adam(5.0, eps=1e-3), "sgd": ss.sgd(), "shampoo": ss.shampoo(5.0, eps=0.1)}


@pytest.mark.parametrize("name", ["adam", *(pytest.param(name, marks=SLOW) for name in ("sgd", "shampoo"))])
def test_the_routes_agree_along_a_run(name: str) -> None:
    """Paths, metrics and spectra; `stats` names the route."""
    optimizer = OPTIMIZERS[name]
    runs = [
        ss.simulate(
            problem("two"), optimizer, START, 0.5, save_at=3, rtol=1e-8, metrics=("trace_hessian",), route=route
        )
        for route in ("kernel", ss.Route("matrix_free", block=2))
    ]
    assert [run.stats["route"] for run in runs] == ["kernel", "matrix_free"]
    assert [run.stats["block"] for run in runs] == [N, 2]
    assert distance(runs[1].params, runs[0].params) < 1e-6
    assert distance(runs[1].metrics, runs[0].metrics) < 1e-6
    assert np.ptp(runs[0].metrics["trace_hessian"]) > 0.1
    for stat in ("largest_eigenvalue", "smallest_eigenvalue", "mean_relaxation", "sampling_eigenvalue"):
        np.testing.assert_allclose(runs[1].stats[stat], runs[0].stats[stat], rtol=1e-5)


@SLOW
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_routes_measure_the_same_validity(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    runs = [ss.simulate(problem("two"), optimizer, START, 0.5, save_at=3)]
    ratios = [ss.validity(problem("two"), optimizer, runs[0], 0.01, route=route).ratios for route in ROUTES[1:]]
    for measure, ratio in ratios[0].items():
        np.testing.assert_allclose(ratios[1][measure], ratio, rtol=1e-5)


def flat_problem(d: int, n: int) -> tuple[ss.LeastSquares, dict[str, np.ndarray]]:
    """A diagonal network, whose Jacobian has 2d columns and whose data d."""
    rng = np.random.default_rng(0)
    inputs = rng.choice([-1.0, 1.0], (n, d))
    start = {"u": 0.5 + 0.1 * rng.normal(size=d), "v": 0.5 + 0.1 * rng.normal(size=d)}
    targets = inputs @ (start["u"] ** 2 - start["v"] ** 2)  # so that the start is on Γ
    return ss.LeastSquares(lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), inputs, targets, ss.LabelNoise(0.5)), start


def largest_array(jaxpr: Any) -> int:
    """Entries of the largest array that a program makes, in loops and branches too."""
    sizes = [int(np.prod(out.aval.shape)) for eqn in jaxpr.eqns for out in eqn.outvars if hasattr(out.aval, "shape")]
    inner = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=is_jaxpr)]
    return max([0, *sizes, *(largest_array(getattr(j, "jaxpr", j)) for j in inner if is_jaxpr(j))])


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


@pytest.mark.parametrize(("route", "forms"), [("kernel", True), (ss.Route("matrix_free", memory=10**6), False)])
def test_nothing_of_the_size_of_the_jacobian_is_formed(route: Any, forms: bool) -> None:
    """Drift, dv and a return to Γ, within 1 MB; the kernel route, which forms 16 MB, shows that this can fail."""
    d, n = 10_000, 100
    task, start = flat_problem(d, n)
    with jax.enable_x64(True):
        task, start = cast((task, start), jnp.float64)
        sde = slow_sde(task, ss.adam(1.0), Coordinates.of(start), route)

        def everything(x: Any, v: Any) -> Any:
            near = sde.loss.nearby(x, sde.metric(v))
            step = sde.loss.newton(x, sde.metric(v), None, near).move
            return sde.tangential_drift(x, sde.frame(x, v), 0.0), sde.v_drift(x, v, 0.0), step

        x = ravel(start)
        program = jax.make_jaxpr(everything)(x, sde.equilibrium(x))
    data = n * d  # the predictions read them, in blocks that may be filled up; J is twice as large
    assert (largest_array(program.jaxpr) > 1.5 * data) == forms


def test_a_bound_on_memory_changes_no_result() -> None:
    """Gram matrices by products and by stored rows: the drift of 8 samples to 1e-9."""
    task, start = flat_problem(300, 8)
    routes = [ss.Route("matrix_free", memory=memory) for memory in (10**3, 10**9)]
    found = [ss.coefficients(task, ss.adam(1.0, eps=1e-3), start, route=route).drift for route in routes]
    assert distance(found[0], found[1]) < 1e-9


@pytest.mark.parametrize("make", [ss.adam, ss.adam_mini, ss.adalayer, ss.shampoo])
def test_equilibrium_states_are_sums_over_samples(make: Any) -> None:
    """V(Σ) sample by sample = V summed over the columns of B."""
    task, optimizer = problem("uneven"), make(1.0)
    with jax.enable_x64(True):
        sde = slow_sde(task, optimizer, Coordinates.of(START), "matrix_free")
        x = jnp.asarray(ravel(START))
        both = jax.jit(lambda x: (sde.equilibrium(x), optimizer.state_of_factor(sde.factor(x), sde.chart)))(x)
        assert distance(*both) < 1e-13


def spectrum_problem(values: np.ndarray) -> tuple[Any, np.ndarray]:
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(values.size, values.size)))[0]
    return jnp.asarray(q * values @ q.T), np.random.default_rng(4).normal(size=values.size)


def test_conjugate_gradients_stop_where_they_say() -> None:
    """In about as many steps as there are eigenvalues; too few steps, and NaN, count as not converged."""
    with jax.enable_x64(True):
        matrix, b = spectrum_problem(np.array([1.0, 2.0, 3.0, 1e3] + 4 * [5.0]))
        for accuracy in (1e-3, 1e-8):
            x, converged = conjugate_gradients(lambda u: matrix @ u, b, lambda r: r, accuracy, 20)
            assert converged
            assert np.linalg.norm(matrix @ x - b) <= 1.01 * accuracy * np.linalg.norm(b)
        assert not conjugate_gradients(lambda u: matrix @ u, b, lambda r: r, 1e-8, 4)[1]
        assert conjugate_gradients(lambda u: matrix @ u, b, lambda r: r, 1e-8, 6)[1]  # five distinct eigenvalues
        assert not conjugate_gradients(lambda u: jnp.nan * u, b, lambda r: r, 1e-8, 20)[1]
        wide, c = spectrum_problem(np.geomspace(1, 1e8, 60))
        products: list[int] = []

        def counted(u: Any) -> Any:
            jax.debug.callback(lambda: products.append(1))
            return wide @ u

        assert not conjugate_gradients(counted, c, lambda r: r, 1e-8, 100)[1]
        assert len(products) < 30  # of 100, where they do not get on
        assert not np.any(conjugate_gradients(lambda u: matrix @ u, 0 * b, lambda r: r, 1e-8, 20)[0])


def test_solves_survive_a_useless_preconditioner_and_lost_rank() -> None:
    """A kernel from elsewhere costs iterations, or a factorization, but no accuracy; without a ridge directions that it
    lacks are free."""
    task, start = flat_problem(200, 20)
    with jax.enable_x64(True):
        loss = task.flat_loss(Coordinates.of(start), "matrix_free")
        x, r = jnp.asarray(ravel(start)), jnp.asarray(np.random.default_rng(5).normal(size=20))
        jacobian, metric = loss.jacobian(x), mf.Diagonal(jnp.exp(jnp.linspace(-3.0, 3.0, 400)))
        assert isinstance(jacobian, JacobianProducts)
        kernel = jacobian.gram(metric)
        expected = np.linalg.solve(kernel, r)
        elsewhere = spectrum_problem(np.geomspace(1, 1e8, 20))[0]
        for near in (NearbyKernel(kernel, x.dtype), NearbyKernel(elsewhere, x.dtype), KernelDiagonal(jnp.diag(kernel))):
            solve = Iterated(jacobian, metric, near)
            np.testing.assert_allclose(solve(r, 1e-11), expected, rtol=1e-6)
            found, again = solve.first_of_two(r, 1e-11)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            np.testing.assert_allclose(again(2 * r, 1e-11), 2 * expected, rtol=1e-6)
        np.testing.assert_allclose(factorized(jacobian, metric)(r, 0.0), expected, rtol=1e-6)
        q = np.linalg.qr(np.random.default_rng(6).normal(size=(20, 20)))[0][:, :7]  # rank 7
        near = NearbyKernel(jnp.asarray(q @ q.T), x.dtype)
        solve = Iterated(jacobian, metric, near, 1.0, 0.0)
        np.testing.assert_allclose(solve(r, 1e-11), q @ np.linalg.solve(q.T @ kernel @ q, q.T @ r), rtol=1e-7)
        np.testing.assert_allclose(Iterated(jacobian, metric, near)(r, 1e-11), expected, rtol=1e-6)


def test_a_factor_in_place_of_iterations_survives_lost_rank() -> None:
    """Residuals that repeat: a kernel of rank 15 of 20, which a useless preconditioner leaves to a factorization."""
    rows = np.random.default_rng(7).normal(size=(20, 40))
    rows[15:] = rows[:5]
    with jax.enable_x64(True):
        jacobian, metric = StoredJacobian(jnp.asarray(rows)), mf.Identity()
        near = NearbyKernel(spectrum_problem(np.geomspace(1, 1e8, 20))[0], jnp.dtype("float64"))
        r = jacobian(jnp.ones(40))
        move = jacobian.transposed(Iterated(jacobian, metric, near, 1.0, 0.0)(r, 1e-11))
        np.testing.assert_allclose(jacobian(move), r, atol=1e-6)


def test_a_kernel_is_kept_while_it_preconditions_well() -> None:
    """Nearby it is kept as it is, and in another metric it is replaced by the one there."""
    task, start = flat_problem(300, 40)
    with jax.enable_x64(True):
        loss, x = task.flat_loss(Coordinates.of(start), "matrix_free"), jnp.asarray(ravel(start))
        rng = np.random.default_rng(8)
        metric = mf.Diagonal(jnp.asarray(rng.uniform(0.5, 2.0, 600)))
        near = loss.nearby(x, metric)
        kept = loss.renewed(near, x * (1 + 0.01 * rng.normal(size=600)), metric)
        np.testing.assert_array_equal(kept.values, near.values)
        other = mf.Diagonal(jnp.asarray(np.exp(3 * rng.normal(size=600))))
        replaced = loss.renewed(near, x, other)
        np.testing.assert_allclose(replaced.values, loss.nearby(x, other).values, rtol=1e-9)
        assert loss.renewed(None, x, metric) is None


@pytest.mark.parametrize(
    "values", [np.linspace(1, 2, 60), np.geomspace(1e-6, 1, 200), np.array([0.0, 0.0, 0.0, 7.0]), np.eye(1)[0]], ids=len
)
def test_lanczos_finds_the_largest_eigenvalue(values: np.ndarray) -> None:
    """Close neighbours, many decades, a null space, one number; and a vector on which nothing acts is no success."""
    with jax.enable_x64(True):
        matrix, start = spectrum_problem(values)
        found = largest_eigenvalue(lambda u: matrix @ u, jnp.asarray(start))
        np.testing.assert_allclose(found, values.max(), rtol=1e-12)
        assert np.isnan(largest_eigenvalue(lambda u: jnp.nan * u, jnp.asarray(start)))


def test_lanczos_gives_the_projection_on_a_krylov_space() -> None:
    with jax.enable_x64(True):
        matrix, start = spectrum_problem(np.geomspace(1e-3, 1, 30))
        basis, diagonal, beside = tridiagonal(lambda u: matrix @ u, jnp.asarray(start), 8)
        np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=1e-13)
        expected = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
        np.testing.assert_allclose(basis @ matrix @ basis.T, expected, atol=1e-13)
        residual = matrix @ basis[-1] - basis.T @ (basis @ matrix @ basis[-1])
        np.testing.assert_allclose(np.linalg.norm(residual), beside[-1], rtol=1e-9)


@pytest.mark.parametrize("kind", ["two", "classes"])
def test_traces_and_largest_eigenvalues_need_no_eigenpairs(kind: str) -> None:
    """Off Γ too, in a metric, against the eigenpairs of the kernel."""
    with jax.enable_x64(True):
        x = jnp.asarray(ravel(START))
        metric = mf.Diagonal(jnp.asarray(np.random.default_rng(9).uniform(0.5, 5.0, SIZE)))
        task = cast(problem(kind), jnp.float64)
        kernel, products = (task.flat_loss(Coordinates.of(START), route) for route in ("kernel", "matrix_free"))
        expected = kernel.normal_space(x, metric)
        largest, trace = jax.jit(lambda x: (products.largest_eigenvalue(x, metric), products.trace(x, metric)))(x)
        np.testing.assert_allclose(largest, expected.largest, rtol=1e-10)
        np.testing.assert_allclose(trace, jnp.sum(expected.values), rtol=1e-10)
        np.testing.assert_allclose(kernel.largest_eigenvalue(x, metric), expected.largest, rtol=1e-10)


def test_routes_are_chosen_by_size() -> None:
    assert [ss.Route().of_residuals(m, p) for m, p in ((50, 40), (50, 400), (500, 20_000))] == list(ROUTES)
    assert ss.Route(memory=10**5).of_residuals(50, 400) == "matrix_free"
    assert ss.Route("kernel").of_residuals(500, 20_000) == "kernel"


@pytest.mark.parametrize("route", [{"name": "fast"}, {"memory": 0}, {"memory": -1.5}, {"block": 0}, {"block": 1.5}])
def test_routes_that_do_not_exist_are_refused(route: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not one of|must be a positive (number|integer)"):
        ss.Route(**route)


def test_problems_without_residuals_have_one_route() -> None:
    with pytest.raises(ValueError, match=r"route='matrix_free' is not available .* Use 'auto'"):
        ss.to_manifold(ss.Problem(lambda x: (x @ x - 1) ** 2), np.ones(2), route="matrix_free")


@pytest.mark.filterwarnings("ignore:Computing in float32")
@pytest.mark.parametrize("route", [pytest.param("kernel", marks=SLOW), "matrix_free"])
def test_single_precision_keeps_six_digits_of_the_drift(route: str) -> None:
    """Gram matrices in double: with those of float32 errors grow with the condition of J S Jᵀ, to a few 1e-4 here."""
    task, optimizer = problem("two"), ss.adam(1.0, eps=1e-3)
    start = ss.to_manifold(task, START)
    found = [ss.coefficients(task, optimizer, start, route=route, dtype=dtype) for dtype in ("float64", "float32")]
    error = distance(found[1].drift, found[0].drift)
    print("float32", route, error)
    assert 1e-9 < error < 2e-5


@pytest.mark.filterwarnings("ignore:Computing in float32")
def test_runs_in_single_precision_take_their_kernels_in_double() -> None:
    """A slow flow on the matrix-free route, factorizations under vmap among it: four digits of all that it changes."""
    runs = [
        ss.simulate(
            problem("one"), ss.sgd(), START, 0.2, save_at=2, rtol=1e-4, route="matrix_free", dtype=dtype
        ).final_params
        for dtype in ("float64", "float32")
    ]
    assert runs[1]["w"].dtype == np.float32
    assert distance(runs[1], runs[0]) < 5e-4

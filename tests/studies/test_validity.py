"""Where the slow SDE may be trusted, against discrete runs that agree, fall out of the valley, or lag behind."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from test_label_noise import diagonal_network

import slowsde as ss
from manifolds import Identity
from manifolds.normal.normal_space import DenseNormalSpace
from manifolds.support.coordinates import Coordinates, ravel
from slowsde.dynamics.fast_motion import spectral_gap
from slowsde.studies.time_scale import slow_time_scale
from slowsde.studies.validity import CRITERIA, Start, _unsettled, validity_of_run

mpl.use("agg")
import matplotlib.pyplot as plt

TRACE = ("trace_hessian",)
NETWORK = diagonal_network(ss.LabelNoise(1.0))
ADAM = ss.adam(c=1.0, eps=2e-2)
SGD = ss.sgd()


@pytest.fixture(scope="module")
def start() -> Any:
    return ss.to_manifold(NETWORK, {"u": np.array([1.0, 0.9, 0.6]), "v": np.array([0.3, 0.5, 0.8])})


@pytest.fixture(scope="module")
def adam_flow(start: Any) -> ss.Trajectory:
    return ss.simulate(NETWORK, ADAM, start, 1.0, save_at=21, metrics=TRACE)


@pytest.fixture(scope="module")
def sgd_flow(start: Any) -> ss.Trajectory:
    return ss.simulate(NETWORK, SGD, start, 1.0, save_at=21, metrics=TRACE)


def discrete(problem: Any, optimizer: Any, start: Any, t1: float, lr: float, **options: Any) -> ss.Trajectory:
    defaults = {"paths": 128, "save_at": 11, "metrics": TRACE}
    return ss.run_discrete(problem, optimizer, start, t1, lr=lr, **defaults | options)


# --- three cases, judged by the optimizer itself -------------------------------------------------------------------


def test_comfortable_where_the_gap_is_small(start: Any, adam_flow: Any) -> None:
    compared = ss.compare(adam_flow, discrete(NETWORK, ADAM, start, 1.0, lr=0.01))
    assert compared.relative_gap("trace_hessian") < 0.03
    found = ss.validity(NETWORK, ADAM, adam_flow, 0.01)
    assert found.verdict == "comfortable"
    assert found.reasons == ()
    assert np.isnan(found.first_bad_time)
    assert "at lr=0.01: comfortable" in compared.table()


def test_too_large_a_learning_rate_is_not_valid_and_sharpness_is_named(start: Any, sgd_flow: Any) -> None:
    compared = ss.compare(sgd_flow, discrete(NETWORK, SGD, start, 1.0, lr=0.2))
    assert compared.relative_gap("trace_hessian") > 0.2
    unstable = discrete(NETWORK, SGD, start, 1.0, lr=0.3, throw=False)
    assert np.any(unstable.result != ss.Result.SUCCESS)
    for lr in (0.2, 0.3):
        found = ss.validity(NETWORK, SGD, sgd_flow, lr)
        assert found.verdict == "not valid"
        assert found.reasons[0].startswith("sharpness")
        assert found.first_bad_time == 0
    assert "at lr=0.2: not valid, do not trust: sharpness" in compared.table()


@pytest.mark.slow
def test_the_first_bad_time_is_when_the_edge_comes_near(start: Any) -> None:
    """RMSProp from a large state v: S and with it H' grow as v is forgotten, and the runs leave the flow."""
    quiet, optimizer, lr = diagonal_network(ss.LabelNoise(0.1)), ss.rmsprop(c=1.0, eps=2e-2), 0.07
    v0 = {"u": np.full(3, 2.0), "v": np.full(3, 2.0)}
    slow = ss.simulate(quiet, optimizer, start, 3.0, v0=v0, save_at=31, metrics=TRACE)
    found = ss.validity(quiet, optimizer, slow, lr)
    assert found.verdict == "not valid"
    assert 1.5 < found.first_bad_time < 2.7
    assert found.reasons[0].startswith("sharpness")
    compared = ss.compare(slow, discrete(quiet, optimizer, start, 3.0, lr, v0=v0))
    assert compared.relative_gap("trace_hessian") > 0.5
    size = np.abs(compared.gap["trace_hessian"])
    assert size[compared.ts < 0.5 * found.first_bad_time].max() < 0.3 * size.max()


def weak_valley(curvature: float) -> ss.Problem:
    """Two normal directions, equally noisy; the drift along y is the sum of what they cause."""

    def loss(x: Any) -> Any:
        return 0.5 * jnp.exp(-0.3 * x[2]) * x[0] ** 2 + 0.5 * curvature * jnp.exp(x[2]) * x[1] ** 2

    return ss.Problem(loss, ss.GaussianNoise(0.3 * np.eye(3)[:, :2]))


@pytest.mark.slow
def test_fluctuations_that_do_not_settle_are_named_relaxation() -> None:
    """1/(ηλ) = 370 steps of 400: the iterates have not felt the weak direction yet. Their limits Φ have."""
    problem, x0, lr = weak_valley(0.01), np.array([0.0, 0.0, 1.0]), 0.1
    height = {"y": lambda x: x[2]}
    slow = ss.simulate(problem, SGD, x0, 4.0, save_at=11, dt=0.04, metrics=height)
    found = ss.validity(problem, SGD, slow, lr)
    assert found.verdict == "not valid"
    assert found.reasons[0].startswith("relaxation")
    assert found.level("sharpness").max() == 0
    raw = discrete(problem, SGD, x0, 4.0, lr, paths=512, save_at=3, metrics=height, project=False)
    assert ss.compare(slow, raw).relative_gap("y") > 0.4
    returned = discrete(problem, SGD, x0, 4.0, lr, paths=512, save_at=[4.0], metrics=height)
    assert abs(ss.compare(slow, returned).gap["y"][0]) < 0.2 * np.ptp(slow.metrics["y"])


@pytest.mark.slow
def test_a_start_off_the_manifold_that_does_not_relax_is_named_relaxation() -> None:
    """λ_min = 0.01: after the whole run the iterates have not come down the weak direction, where simulate begins."""
    problem = ss.LeastSquares(
        lambda p, z: z[0] * p[0] * p[1] + z[1] * p[2], np.diag([1.0, 0.14]), np.array([1.0, 0.0]), ss.LabelNoise(1.0)
    )
    weak = {"weak": lambda p: p[2]}
    off, on = np.array([2.0, 0.5, 0.5]), np.array([2.0, 0.5, 0.0])
    slow = ss.simulate(problem, SGD, off, 2.0, save_at=11, metrics=weak)
    found = ss.validity(problem, SGD, slow, 0.05)
    assert found.verdict != "comfortable"
    assert found.reasons[0].startswith("relaxation")
    raw = discrete(problem, SGD, off, 2.0, 0.05, metrics=weak, project=False)
    lag = ss.compare(slow, raw).gap["weak"]
    assert lag[-1] > 0.25  # of 0.5
    assert ss.validity(problem, SGD, ss.simulate(problem, SGD, on, 2.0, save_at=11), 0.05).verdict != found.verdict


@pytest.mark.slow
def test_single_samples_lower_the_edge(start: Any) -> None:
    """Label noise of one sample a step: the Hessian of a step varies, and the gap is there well below the edge of H."""
    one = diagonal_network(ss.LabelNoise(0.3, batch_size=1))
    slow = ss.simulate(one, SGD, start, 4.0, save_at=21, metrics=TRACE)
    lr = 0.1
    assert lr * np.max(slow.stats["largest_eigenvalue"]) / 2 < 0.45
    assert ss.compare(slow, discrete(one, SGD, start, 4.0, lr)).relative_gap("trace_hessian") > 0.2
    assert ss.validity(one, SGD, slow, lr).verdict == "not valid"


@pytest.mark.slow
def test_a_short_memory_of_the_state_and_a_long_one_of_the_momentum_are_named(start: Any) -> None:
    quick = ss.rmsprop(c=200.0, eps=2e-2)
    slow = ss.simulate(NETWORK, quick, start, 1.0, save_at=21, metrics=TRACE)
    assert ss.validity(NETWORK, quick, slow, 0.01).reasons[0].startswith("state")
    assert ss.compare(slow, discrete(NETWORK, quick, start, 1.0, 0.01)).relative_gap("trace_hessian") > 0.1
    heavy = ss.sgd(b1=0.9)
    slow = ss.simulate(NETWORK, heavy, start, 1.0, save_at=21, metrics=TRACE)
    assert ss.validity(NETWORK, heavy, slow, 0.1).reasons[0].startswith("momentum")
    assert ss.compare(slow, discrete(NETWORK, heavy, start, 1.0, 0.1)).relative_gap("trace_hessian") > 0.2


@pytest.mark.slow
def test_the_demo_is_not_called_invalid() -> None:
    """Gaps of 1 to 2 % were measured there, at η/λ_min of a hundred times the horizon."""
    from slowsde import demo

    for compared in demo.sparse_regression(paths=2).values():
        assert compared.validity is not None
        assert compared.validity.verdict == "comfortable"


def readme_problem() -> tuple[Any, Any]:
    """Two of twelve weights from six equations: the rank of H falls from 6 to 3 before t = 3 under Adam."""
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))
    problem = ss.LeastSquares(NETWORK.predict, inputs, inputs[:, 0] - inputs[:, 1], ss.LabelNoise(1.0))
    return problem, {"u": np.full(12, 0.7), "v": np.full(12, 0.5)}


SPARSE, RAW = readme_problem()
SPARSE_ADAM = ss.adam(c=2.0, eps=1e-2)


def test_comfortable_through_a_sparse_end_where_the_gap_is_small() -> None:
    """Directions that have died carry no noise: the rank that they had at the start is no reason to doubt."""
    start, lr = ss.to_manifold(SPARSE, RAW), 0.02
    slow = ss.simulate(SPARSE, SPARSE_ADAM, start, 4.0, save_at=81, metrics=TRACE)
    assert slow.stats["ranks"][0, -1] == 3
    found = ss.validity(SPARSE, SPARSE_ADAM, slow, lr)
    assert found.verdict == "comfortable"
    assert "rank" not in found.ratios
    assert found.spectrum["rank counted"][-1] == 3
    assert np.all(found.spectrum["λ_min(H')"] > 1e-10 * found.spectrum["λ_max(H')"])
    compared = ss.compare(slow, discrete(SPARSE, SPARSE_ADAM, start, 4.0, lr, paths=64, save_at=21))
    assert compared.relative_gap("trace_hessian") < 0.05
    assert compared.validity is not None
    assert compared.validity.verdict == "comfortable"
    # No jump of the rank passes for motion: τ is that of the points.
    assert found.ratios["momentum"].max() == found.ratios["momentum"][0]


def test_a_start_off_the_manifold_counts_while_it_relaxes_and_no_longer() -> None:
    """λ_min falls by seven decades along the run, long after the start has come down to Γ."""
    lr, options = 0.01, {"save_at": 26, "metrics": TRACE}
    off = ss.simulate(SPARSE, SPARSE_ADAM, RAW, 2.5, **options)
    assert off.stats["start_distance"] > 0.5
    assert off.stats["smallest_eigenvalue"][0, -1] < 1e-6
    assert np.sum(off.stats["start_shares"]) == pytest.approx(1)
    found = ss.validity(SPARSE, SPARSE_ADAM, off, lr)
    assert found.verdict == "comfortable"
    where = jax.tree.map(lambda leaf: leaf[0, 0], (off.params, off.v))
    on = ss.simulate(SPARSE, SPARSE_ADAM, where[0], 2.5, v0=where[1], **options)
    again = ss.validity(SPARSE, SPARSE_ADAM, on, lr)
    np.testing.assert_allclose(found.ratios["relaxation"][5:], again.ratios["relaxation"][5:], rtol=1e-3)


def off_by(shares: Any, values: Any, decline: float = 0.0) -> np.ndarray:
    """The part of a start off Γ by 1 in "relaxation", of a path that moves by 4 in time 4; λ ∝ e^{−decline·t}."""
    ts = np.linspace(0, 4, 401)
    falling = np.exp(-decline * ts)[None]
    found = {"largest": max(values) * falling, "smallest": min(values) * falling}
    start = Start(1.0, np.asarray(shares), np.asarray(values))
    return _unsettled(ts, ts[None, :, None], found, np.full(ts.shape, 0.01), start, np.full((1, ts.size), 4.0))[0]


def test_what_is_left_of_a_start_is_an_integral_over_the_directions_it_is_off_in() -> None:
    ts = np.linspace(0, 4, 401)
    np.testing.assert_allclose(off_by([1.0], [0.02]), 0.125 * np.exp(-2 * ts) / 4, rtol=1e-4)
    fading = np.exp(-2 * (1 - np.exp(-3 * ts)) / 3)  # ∫ λ dt/η with λ = 0.02 e^{−3t}
    np.testing.assert_allclose(
        off_by([1.0], [0.02], 3.0), np.minimum(0.125 * np.exp(3 * ts), 1) * fading / 4, rtol=1e-3
    )
    assert off_by([0.0, 1.0], [1.0, 1e-6])[0] == pytest.approx(0.25)  # it never comes down: its share of the motion
    assert off_by([1.0, 0.0], [1.0, 1e-6])[0] < 1e-3


# --- the numbers ------------------------------------------------------------------------------------------------


def test_ratios_are_those_of_the_formulas(start: Any, adam_flow: Any) -> None:
    """At the start: H' from a full Hessian, weights λ_i/tr H' under label noise."""
    lr = 0.05
    found = ss.validity(NETWORK, ADAM, adam_flow, lr)
    with jax.enable_x64(True):
        chart = Coordinates.of(start)
        x = np.asarray(ravel(jax.tree.map(lambda leaf: leaf[0, 0], adam_flow.params)))
        hessian = np.asarray(jax.hessian(lambda y: NETWORK.loss(chart.unravel(y)))(jnp.asarray(x)))
    half = np.sqrt(1 / (np.sqrt(ravel(jax.tree.map(lambda leaf: leaf[0, 0], adam_flow.v))) + 2e-2))
    values = np.linalg.eigvalsh(half[:, None] * hessian * half)[-2:]
    settling = lr * 2 / values.sum()  # Σ (λ_i/tr H')/λ_i
    assert found.ratios["sharpness"][0] == pytest.approx(lr * values[-1] * 0.1 / (2 * 1.9), rel=1e-6)
    assert found.ratios["state"][0] == pytest.approx(max(settling, 2 * lr**2 / 0.1), rel=1e-6)
    assert found.ratios["relaxation"][0] / found.ratios["momentum"][0] == pytest.approx(settling * 0.1 / 2 / lr**2)
    assert found.spectrum["λ_min(H')"][0] == pytest.approx(values[0], rel=1e-6)
    assert np.all(found.spectrum["rank counted"] == 2)
    assert found.spectrum["λ_max(S)"][0] == pytest.approx(np.max(half**2), rel=1e-6)


def valley(factor: np.ndarray) -> ss.Problem:
    return ss.Problem(lambda x: 0.5 * (1 + x[1] ** 2) * x[0] ** 2, ss.GaussianNoise(factor))


def on_the_floor(ts: np.ndarray, y: np.ndarray) -> ss.Trajectory:
    """A slow trajectory made by hand: paths y (paths, T) on the floor x = 0 of the valley."""
    params = np.stack([np.zeros_like(y), y], axis=-1)
    return ss.Trajectory(ts, params, None, {}, {}, np.where(np.isfinite(y).all(axis=1), 0, 3), "slow")


def test_the_fluctuation_of_a_valley_is_known() -> None:
    """L = ½(1+y²)x²: ∇L(δ, y) − Hδ = (0, yδ²), so the ratio is ½ E y²δ⁴/E (hδ)² = 3y²ησ²/(4h³)."""
    slow = on_the_floor(np.array([0.0, 0.1]), np.array([[1.0, 1.0]]))
    problem = valley(np.array([[0.5], [0.0]]))
    found = ss.validity(problem, SGD, slow, 0.02).ratios["fluctuation"][0]
    assert 0.3 < found / (3 * 0.02 * 0.5**2 / (4 * 2**3)) < 3  # 16 draws
    assert ss.validity(problem, SGD, slow, 0.04).ratios["fluctuation"][0] == pytest.approx(2 * found, rel=1e-6)


def test_the_time_scale_is_that_of_the_motion() -> None:
    ts = np.linspace(0, 10, 201)
    still = np.zeros((1, ts.size))
    decay = np.exp(-ts)[None, :, None]
    assert slow_time_scale(ts, decay, (still,))[0, 0] == pytest.approx(1.2, abs=0.1)  # ln(3/2)·3
    assert np.all(slow_time_scale(ts, 0 * decay, (still,)) == 10)
    folding = slow_time_scale(ts, 0 * decay, (ts[None] / 2,))
    np.testing.assert_allclose(folding, 2.0, rtol=0.05)
    brownian = np.cumsum(np.random.default_rng(0).normal(size=(1, 2001, 1)), axis=1)
    coarse, fine = (slow_time_scale(np.linspace(0, 1, n), brownian[:, :: 2000 // (n - 1)], ()) for n in (201, 2001))
    assert 0.5 < np.median(fine) / np.median(coarse) < 1.2  # no difference quotients
    assert np.median(fine) > 0.1


def test_an_eigenvalue_that_counts_as_zero_but_is_not_is_seen() -> None:
    with jax.enable_x64(True):
        normal = DenseNormalSpace(jnp.diag(jnp.array([1.0, 0.5, 0.02])), Identity(), jnp.asarray(2))
        assert float(spectral_gap(normal)) == pytest.approx(0.04)


def by_hand(**ratios: Any) -> ss.Validity:
    ts = np.linspace(0, 1, 5)
    return ss.Validity(ts, 0.1, {name: np.asarray(values, float) for name, values in ratios.items()})


def test_verdicts_follow_the_thresholds() -> None:
    found = by_hand(sharpness=[0.01, 0.2, 0.6, 0.9, 0.3], relaxation=[0.06] * 5, rank=[1e-12] * 5)
    assert found.verdict == "not valid"
    assert found.first_bad_time == 0.5
    np.testing.assert_array_equal(found.levels, [1, 1, 2, 2, 1])
    assert len(found.reasons) == 2
    assert "0.9 of the stability edge" in found.reasons[0]
    assert "t=0.75" in found.reasons[0]
    assert "from t=0.5" in found.reasons[0]
    assert by_hand(relaxation=[0.06] * 5).verdict == "doubtful"
    assert by_hand(relaxation=[0.01] * 5).verdict == "comfortable"
    assert by_hand(sharpness=[np.nan] * 5).verdict == "not valid"
    assert str(found) == found.table()
    for word in (*found.ratios, "not valid", "lr=0.1"):
        assert word in str(found)
    assert all(criterion.doubtful < criterion.bad for criterion in CRITERIA.values())


# --- compare, files, figures ---------------------------------------------------------------------------------------


def test_a_finished_run_knows_enough_for_the_comparison(adam_flow: Any, tmp_path: Path) -> None:
    full = ss.validity(NETWORK, ADAM, adam_flow, 0.05)
    for run in (adam_flow, ss.load(adam_flow.save(tmp_path / "run.npz"))):
        part = validity_of_run(run, 0.05)
        assert part is not None
        for name in ("sharpness", "relaxation", "momentum", "state"):
            np.testing.assert_allclose(part.ratios[name], full.ratios[name], rtol=1e-6)


def test_trajectories_without_a_history_still_compare(adam_flow: Any) -> None:
    other = ss.Trajectory(
        adam_flow.ts, adam_flow.params, adam_flow.v, adam_flow.metrics, {"lr": 0.01}, adam_flow.result, "discrete"
    )
    bare = ss.Trajectory(adam_flow.ts, adam_flow.params, adam_flow.v, adam_flow.metrics, {}, adam_flow.result, "slow")
    assert ss.compare(bare, other).validity is None
    assert "comfortable" not in ss.compare(bare, other).table()
    assert ss.compare(adam_flow, other).validity is not None
    given = by_hand(sharpness=[0.6] * 5)
    assert ss.compare(bare, other, given).validity is given
    assert ss.validity(NETWORK, ADAM, bare, 0.01).verdict == "comfortable"


def test_diffusing_paths_are_judged_by_the_worst() -> None:
    ts, rng = np.linspace(0, 1, 11), np.random.default_rng(0)
    y = np.cumsum(0.1 * rng.normal(size=(3, ts.size)), axis=1)
    problem = valley(np.diag([0.3, 0.3]))
    found = ss.validity(problem, SGD, on_the_floor(ts, y), 0.1)
    np.testing.assert_allclose(found.ratios["sharpness"], 0.05 * np.max(1 + y**2, axis=0))
    np.testing.assert_allclose(found.spectrum["λ_min(H')"], np.min(1 + y**2, axis=0))
    assert all(np.isfinite(values).all() for values in found.ratios.values())
    y[1, 5:] = np.nan  # a path that failed
    failed = ss.validity(problem, SGD, on_the_floor(ts, y[1:2]), 0.1)
    assert failed.ts.size == 5


def test_the_figure_shows_every_ratio_and_the_shaded_regions(adam_flow: Any, sgd_flow: Any, start: Any) -> None:
    settings = dict(mpl.rcParams)
    found = ss.validity(NETWORK, ADAM, adam_flow, 0.08)
    ax = found.plot()
    assert ax.get_yscale() == "log"
    assert "slow time" in ax.get_xlabel()
    drawn = {line.get_label() for line in ax.lines}
    assert {"sharpness", "relaxation", "momentum", "state", "fluctuation"} <= drawn
    assert [text.get_text() for text in ax.texts] == ["not valid", "doubtful", "comfortable"]
    own = plt.figure().subplots()
    assert ss.plot.plot_validity(found, ax=own) is own
    compared = ss.compare(sgd_flow, discrete(NETWORK, SGD, start, 1.0, lr=0.2))
    labels = [text.get_text() for text in compared.plot().legend().get_texts()]
    assert "slow SDE not valid" in labels
    axes = plt.figure().subplots()
    ss.plot.shade_untrusted(by_hand(sharpness=[0.6, 0.1, 0.6, 0.6, 0.1]), axes)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    np.testing.assert_allclose(spans, [(0, 0.125), (0.375, 0.875)])
    assert dict(mpl.rcParams) == settings
    plt.close("all")


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_by_name(adam_flow: Any, start: Any) -> None:
    for lr in (0.0, -1.0, np.nan, "0.1", None):
        with pytest.raises(ValueError, match="lr="):
            ss.validity(NETWORK, ADAM, adam_flow, lr)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slow is 3"):
        ss.validity(NETWORK, ADAM, 3, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slow is a discrete Trajectory"):
        ss.validity(NETWORK, ADAM, discrete(NETWORK, ADAM, start, 0.1, 0.05, paths=2, save_at=2), 0.1)
    with pytest.raises(ValueError, match=r"slow was made with another optimizer or settings"):
        ss.validity(NETWORK, SGD, adam_flow, 0.1)
    with pytest.raises(ValueError, match=r"optimizer\.c=3"):
        ss.validity(NETWORK, ss.adam(c=3.0, eps=2e-2), adam_flow, 0.1)
    other = ss.LeastSquares(lambda w, z: z @ w, np.eye(4), np.ones(4), ss.LabelNoise(1.0))
    with pytest.raises(ValueError, match=r"problem does not fit slow\.params"):
        ss.validity(other, ADAM, adam_flow, 0.1)
    shifted = ss.LeastSquares(NETWORK.predict, NETWORK.inputs, NETWORK.targets + 1, NETWORK.noise)
    with pytest.raises(ValueError, match="slow was made with another loss or other data"):
        ss.validity(shifted, ADAM, adam_flow, 0.1)
    with pytest.raises(ValueError, match="optimizer="):
        ss.validity(NETWORK, 1, adam_flow, 0.1)  # type: ignore[arg-type]

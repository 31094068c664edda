"""v0 = 0 without bias correction: the limit η → 0 is not what an optimizer at η does, and users are told what to do."""

import re
import warnings
from typing import Any

import jax
import numpy as np
import pytest

import slowsde as ss
from slowsde.studies.validity import CRITERIA

INPUTS = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))
PROBLEM = ss.LeastSquares(
    lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), INPUTS, INPUTS[:, 0] - INPUTS[:, 1], ss.LabelNoise(1.0)
)
NOTHING = {"u": np.zeros(12), "v": np.zeros(12)}
SHARPNESS = "trace_sqrt_diag_hessian"
LR, C = 0.01, 10.0
REAL = ss.adam(c=C, eps=1e-6)


@pytest.fixture(scope="module")
def start() -> Any:
    return ss.to_manifold(PROBLEM, {"u": np.full(12, 0.7), "v": np.full(12, 0.5)})


def slow(optimizer: Any, start: Any, v0: Any) -> ss.Trajectory:
    return ss.simulate(PROBLEM, optimizer, start, 0.3, v0=v0, save_at=61, metrics=(SHARPNESS,))


def discrete(optimizer: Any, start: Any, lr: float = LR) -> ss.Trajectory:
    return ss.run_discrete(PROBLEM, optimizer, start, 0.3, lr=lr, v0=NOTHING, paths=32, save_at=7, metrics=(SHARPNESS,))


def equilibrium(optimizer: Any, start: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0, 0], slow(optimizer, start, None).v)


def test_the_slow_sde_from_nothing_is_not_the_optimizer_and_says_so(start: Any) -> None:
    """At ε ≪ η the slow SDE is near its end at once. The remedy is taken from the warning as it stands there."""
    fast = discrete(REAL, start)
    with pytest.warns(UserWarning, match=r"v0=0 without bias correction.*or use bias_correction=True") as caught:
        found = slow(REAL, start, NOTHING)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    compared = ss.compare(found, fast)
    assert compared.relative_gap(SHARPNESS) > 0.3
    assert "not valid, do not trust: start: from its small v0" in compared.table()
    judged = ss.validity(PROBLEM, REAL, found, LR)
    assert judged.verdict == "not valid"
    assert judged.first_bad_time == 0
    assert judged.reasons[0].startswith("start")
    factor = re.search(r"pass v0=(\S+)·lr²·V\(Σ\)", str(caught[0].message))
    assert factor is not None
    v0 = jax.tree.map(lambda leaf: float(factor.group(1)) * LR**2 * leaf, equilibrium(REAL, start))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = slow(REAL, start, v0)
    assert ss.compare(mended, fast).relative_gap(SHARPNESS) < 0.07
    again = ss.validity(PROBLEM, REAL, mended, LR)
    assert again.ratios["start"].max() < 0.07
    assert again.verdict != "not valid" or not again.reasons[0].startswith("start")


def test_bias_correction_is_the_other_remedy(start: Any) -> None:
    corrected = ss.adam(c=C, eps=1e-6, bias_correction=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = slow(corrected, start, NOTHING)
    assert ss.compare(found, discrete(corrected, start, LR / 2)).relative_gap(SHARPNESS) < 0.05
    assert "start" not in ss.validity(PROBLEM, corrected, found, LR / 2).ratios


def test_an_epsilon_above_the_first_steps_is_no_reason_to_warn(start: Any) -> None:
    """√v after 2/(1−β1) = 20 steps, η√(20cV), is below ε: it cuts off S in both."""
    gentle, lr = ss.adam(c=C, eps=0.1), 0.003
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = slow(gentle, start, NOTHING)
    assert ss.compare(found, discrete(gentle, start, lr)).relative_gap(SHARPNESS) < 0.05
    judged = ss.validity(PROBLEM, gentle, found, lr)
    assert 0 < judged.ratios["start"].max() < CRITERIA["start"].doubtful
    assert judged.verdict == "comfortable"


@pytest.mark.parametrize(("eps", "lr"), [(1e-6, 0.01), (1e-3, 0.003), (1e-2, 0.02)])
def test_the_ratio_is_that_of_the_integral(start: Any, eps: float, lr: float) -> None:
    """With S² ∝ 1/(√(cVt) + ε)² for v = V(1 − e^−ct): one weight of twelve would do, and all have V(Σ) alike here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ss.validity(PROBLEM, optimizer := ss.adam(c=C, eps=eps), slow(optimizer, start, NOTHING), lr)
    v = np.concatenate(list(equilibrium(optimizer, start).values()))
    t = np.geomspace(1e-18, 1 / C, 200_001)
    # |S(t)B|² = Σ V_i S_i².
    speed = sum(each / (np.sqrt(each * -np.expm1(-C * t)) + eps) ** 2 for each in v)
    way = np.concatenate([[0.0], np.cumsum(np.diff(t) * (speed[1:] + speed[:-1]) / 2)])
    h = 20 * lr**2
    excess = np.interp(h, t, way) - h * np.interp(h, t, speed)
    assert found.ratios["start"][0] == pytest.approx(excess / way[-1], rel=0.02)

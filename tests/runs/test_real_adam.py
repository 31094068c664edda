"""What real Adam adds, bias correction, weight decay and a schedule, in the slow SDE as in discrete runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slowsde as ss

INPUTS = np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
PROBLEM = ss.LeastSquares(
    lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2), INPUTS, np.array([0.5, 1.0]), ss.LabelNoise(1.0)
)
START = {"u": np.array([1.2, 0.8, 1.1]), "v": np.array([0.7, 1.0, 0.6])}
PATHS = 256


@pytest.mark.parametrize(
    ("setting", "c", "t1", "lr"),
    [
        ({"weight_decay": 0.5}, 2.0, 0.5, 0.025),
        pytest.param({"schedule": lambda t: jnp.exp(-2.0 * t)}, 2.0, 0.5, 0.025, marks=pytest.mark.slow),
        # A long memory, so that it matters whether v̂ is a mean since the start or still remembers V(Σ) there.
        ({"bias_correction": True}, 0.1, 1.0, 0.0125),
    ],
    ids=["weight decay", "schedule", "bias correction"],
)
def test_slow_sde_against_discrete_runs(setting: Any, c: float, t1: float, lr: float) -> None:
    """The gap in tr H over 256 paths is far below what leaving the setting out would make."""
    start = ss.to_manifold(PROBLEM, START)
    common: dict[str, Any] = {"metrics": ("trace_hessian",), "save_at": [t1]}
    optimizer, without = ss.adam(c, eps=0.05, **setting), ss.adam(c, eps=0.05)
    slow, plain = (
        ss.simulate(PROBLEM, adam, start, t1, **common).metrics["trace_hessian"][0, 0] for adam in (optimizer, without)
    )
    fast = ss.run_discrete(PROBLEM, optimizer, start, t1, lr=lr, paths=PATHS, **common)
    values = fast.metrics["trace_hessian"][:, 0]
    gap, error = values.mean() - slow, values.std(ddof=1) / np.sqrt(PATHS)
    print(f"{setting}: slow {slow:.4f}, gap {gap:.4f} ± {error:.4f}, without it {plain - slow:.4f}")
    assert abs(plain - slow) > 20 * error
    assert abs(gap) < 0.2 * abs(plain - slow) + 4 * error


def test_a_corrected_state_is_a_mean_of_squares_and_not_negative() -> None:
    """v/(1−β2^k) after k steps, from the uncorrected recursion; label noise here leaves some gradients at 0 exactly."""
    lr, c, steps = 0.0125, 2.0, 7
    start = ss.to_manifold(PROBLEM, START)
    times = lr**2 * np.arange(1, steps + 1)
    common: dict[str, Any] = {"lr": lr, "paths": 8, "save_at": times, "project": False}
    raw, corrected = (
        ss.run_discrete(PROBLEM, adam, start, times[-1], **common, v0=v0)
        for adam, v0 in (
            (ss.adam(c, b1=0.0, eps=1e9), jax.tree.map(np.zeros_like, start)),
            (ss.adam(c, b1=0.0, eps=1e9, bias_correction=True), None),
        )
    )
    weights = 1 - (1 - c * lr**2) ** np.arange(1, steps + 1)
    for name in ("u", "v"):
        assert np.min(corrected.v[name]) >= 0
        np.testing.assert_allclose(corrected.v[name], raw.v[name] / weights[:, None], rtol=1e-6, atol=1e-9)

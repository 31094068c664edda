"""Which parameters decay: numbers, trees of them, prefixes, and masks as Optax has them."""

from typing import Any

import numpy as np
import pytest
from flax.core import FrozenDict

import slowsde as ss
from manifolds.support.coordinates import Coordinates

PARAMS = {"a": np.ones((2, 2)), "b": {"c": np.ones(1), "d": np.ones(2)}}
CHART = Coordinates.of(PARAMS)


def decay(weight_decay: Any, mask: Any = None, chart: Coordinates = CHART) -> list[float]:
    found = np.asarray(ss.sgd(weight_decay=weight_decay, mask=mask).decay(chart), float)
    return np.broadcast_to(found, chart.size).round(6).tolist()


def test_a_prefix_and_none_are_weight_decays() -> None:
    assert decay(0.1) == [0.1] * 7
    assert decay(None) == [0.0] * 7
    assert decay({"a": 0.1, "b": 0.2}) == [0.1] * 4 + [0.2] * 3
    assert decay({"a": np.array([[0.1], [0.3]]), "b": 0.0}) == [0.1, 0.1, 0.3, 0.3, 0, 0, 0]


@pytest.mark.parametrize(
    "mask",
    [
        {"a": True, "b": {"c": False, "d": True}},
        {"a": True, "b": {"c": np.False_, "d": np.True_}},
        lambda params: {"a": params["a"].ndim > 1, "b": {"c": False, "d": params["b"]["d"].size > 1}},
    ],
)
def test_a_mask_beside_a_number(mask: Any) -> None:
    assert decay(0.1, mask) == [0.1] * 4 + [0.0] + [0.1] * 2
    assert decay({"a": 0.1, "b": 0.2}, mask) == [0.1] * 4 + [0.0] + [0.2] * 2


def test_a_mask_may_be_a_prefix() -> None:
    assert decay(0.1, {"a": False, "b": True}) == [0.0] * 4 + [0.1] * 3


def test_other_containers_of_the_same_names_fit() -> None:
    frozen = Coordinates.of(FrozenDict(PARAMS))
    assert decay({"a": 0.1, "b": {"c": 0.2, "d": 0.3}}, chart=frozen) == [0.1] * 4 + [0.2] + [0.3] * 2
    assert decay(0.1, {"a": True, "b": {"c": False, "d": False}}, frozen) == [0.1] * 4 + [0.0] * 3


def test_groups_have_masks_of_their_own() -> None:
    masked = ss.sgd(weight_decay=0.1, mask=lambda params: {"a": True, "b": None})
    both = ss.grouped({"x": masked, "y": ss.sgd(weight_decay=0.2)}, {"a": "x", "b": "y"})
    assert np.asarray(both.decay(CHART), float).round(6).tolist() == [0.1] * 4 + [0.2] * 3


def test_the_error_lists_leaves_and_no_values() -> None:
    with pytest.raises(
        ValueError, match=r"weight_decay does not fit params: it has leaves at \['a'\], \['z'\], params"
    ):
        decay({"a": 0.1, "z": 0.2})
    with pytest.raises(ValueError, match=r"at \['a'\] it has shape \(3,\), params \(2, 2\)"):
        decay({"a": np.ones(3), "b": 0.2})
    with pytest.raises(ValueError, match=r"mask returns for params=.* must be a pytree of True and False"):
        decay(0.1, lambda params: params)

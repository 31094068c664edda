"""Compiled programs are forgotten before the system runs out of memory mappings."""

import jax
import numpy as np
import pytest

import manifolds as mf
from manifolds.support import mappings

linux = pytest.mark.skipif(mappings.mappings() is None, reason="the system does not tell")


def fresh(i: int) -> float:
    """A loss that no program was compiled for."""
    point = mf.limit_map(lambda x: 0.25 * (x @ x - 1.0 - i) ** 2, np.array([1.5, 0.5]))
    return float(np.sum(point**2)) - 1 - i


@linux
def test_programs_that_are_no_longer_needed_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mappings.mappings()
    assert found is not None
    room = 300
    monkeypatch.setattr(mappings, "mappings_allowed", lambda: (found + room) / mappings.SHARE)
    monkeypatch.setattr(mappings, "PAUSE", 0.0)
    cleared: list[int] = []
    clear = jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1) or clear())
    for i in range(12):
        assert abs(fresh(i)) < 1e-12
        now = mappings.mappings()
        assert now is not None
        if cleared:
            break
    assert cleared, "twelve losses take fewer than 300 mappings"
    assert now < found + 2 * room


@linux
def test_nothing_is_forgotten_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "PAUSE", 0.0)
    monkeypatch.setattr(jax, "clear_caches", lambda: pytest.fail("programs were forgotten"))
    monkeypatch.setattr(mappings, "mappings", lambda: 1000)
    assert not mappings.spare_mappings()


def test_a_system_that_does_not_tell_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(mappings, "PAUSE", 0.0)
    monkeypatch.setattr(mappings, "MAPPINGS", tmp_path / "none")
    monkeypatch.setattr(jax, "clear_caches", lambda: pytest.fail("programs were forgotten"))
    assert mappings.mappings() is None
    assert not mappings.spare_mappings()

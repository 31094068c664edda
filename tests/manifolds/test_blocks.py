"""Maps over many points: the same numbers whatever the block, and large matrices never batched on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manifolds.support import blocks


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_every_point_is_mapped_once_and_in_order(size: int) -> None:
    points = {"a": jnp.arange(7.0), "b": jnp.ones((7, 2))}
    found = blocks.map_in_blocks(lambda p: {"y": p["a"] * p["b"] ** 2}, points, size)
    np.testing.assert_array_equal(found["y"], np.arange(7.0)[:, None] * np.ones((7, 2)))


def test_blocks_are_vectorized_and_single_points_are_not() -> None:
    def batched(size: int) -> bool:
        jaxpr = jax.make_jaxpr(lambda a: blocks.map_in_blocks(jnp.linalg.eigvalsh, a, size))(jnp.ones((6, 4, 4)))
        return "[3,4,4]" in str(jaxpr)

    assert batched(3)
    assert not batched(1)


def test_large_matrices_are_not_batched_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert blocks.batches_well(blocks.BATCHED_ROWS)
    assert not blocks.batches_well(blocks.BATCHED_ROWS + 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert blocks.batches_well(1000)

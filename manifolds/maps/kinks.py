"""Kinks of a loss, told from curvature by its derivatives on two sides of a point: asked only where something failed.

Along a segment through x the slope changes by a jump where it crosses a kink (of ReLU, of a maximum), and smoothly
elsewhere. Bisection towards the greater change makes what is smooth as small as the segment, and leaves the jump.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..losses.abstract import AbstractLoss
from ..losses.least_squares import LeastSquaresLoss
from ..support.compilation import compiled_once

Vector = Float[Array, " p"]
REACH = 1e-4  # of |x|: how near a kink has to be. Steps along one that slide from side to side stay within 1e-5
OTHERS = 3  # random directions that are tried besides


class Kink(NamedTuple):
    """A kink near a point: the samples whose derivatives jump (none where the loss does not tell), and the part."""

    samples: tuple[int, ...]
    part: str

    def explain(self) -> str:
        """Where the loss is not twice differentiable, and what to do about it."""
        shown = ", ".join(map(str, self.samples[:5])) + (", ..." if len(self.samples) > 5 else "")
        whose = f" of sample{'s' * (len(self.samples) > 1)} {shown}" if self.samples else ""
        return (
            "the loss has a kink (as of relu, abs or a maximum) or a jump (jnp.where, round) and is not twice "
            f"differentiable: the derivatives{whose} jump, most with respect to {self.part}. Use a smooth activation "
            "(gelu, softplus(βx)/β), or start elsewhere"
        )


def find_kink(loss: AbstractLoss, x: Vector, direction: Vector) -> Kink | None:
    """The kink next to x that the line along `direction`, or one of a few random ones, crosses; needs concrete values.

    None where there is none, however strongly the loss is curved: softplus(βx)/β counts as smooth up to β ≈ 10⁵ in
    float64.
    """
    jumps = np.asarray(_relative_jumps(loss, x, direction))  # (directions, samples, leaves)
    least = _least(x.dtype)
    across = np.linalg.norm(jumps, axis=-1) > least
    if not across.any():
        return None
    samples = tuple(int(i) for i in np.flatnonzero(across.any(0))) if isinstance(loss, LeastSquaresLoss) else ()
    weights = np.sqrt(np.sum(np.where(across[..., None], jumps, 0) ** 2, axis=(0, 1)))
    return Kink(samples, _names(loss)[int(np.argmax(weights))])


def _halvings(dtype: Any) -> int:
    """Until a segment is 30 times the rounding of x."""
    return int(np.log2(2 * REACH / (30 * float(jnp.finfo(dtype).eps))))


def _least(dtype: Any) -> float:
    """The least jump that counts, over the derivative: a smooth one has become as small as the segment, over |x|."""
    return 10 * (2 * REACH * 0.5 ** _halvings(dtype)) ** 0.5


def _names(loss: AbstractLoss) -> list[str]:
    arrays = loss.coordinates.unravel_arrays(jnp.zeros(loss.coordinates.size))
    return ["params" + jtu.keystr(path) for path, _ in jtu.tree_flatten_with_path(arrays)[0]]


@compiled_once
def _relative_jumps(loss: AbstractLoss, x: Vector, direction: Vector) -> Float[Array, "directions n leaves"]:
    others = jr.normal(jr.key(0), (OTHERS, *x.shape), x.dtype)
    directions = jnp.concatenate([direction[None], others])
    lengths = jnp.linalg.norm(directions, axis=1, keepdims=True)
    moves = REACH * jnp.linalg.norm(x) * directions / jnp.where(lengths > 0, lengths, 1)

    def along(move: Vector) -> Float[Array, "n leaves"]:
        if not isinstance(loss, LeastSquaresLoss):
            found = [
                _jump(loss.coordinates.unravel_arrays, slope, x, move)
                for slope in (loss.gradient, lambda y: jax.jvp(loss.gradient, (y,), (move,))[1])
            ]
            return jnp.maximum(*(jump / jnp.maximum(size, _TINY) for jump, size in found))[None]
        jacobian = loss.sample_jacobian

        def of_sample(datum: PyTree) -> tuple[Array, Array]:
            def slopes(y: Vector) -> PyTree:
                return jacobian(loss.coordinates.unravel_arrays(y), datum)

            return _jump(lambda rows: rows, slopes, x, move)

        jumps, sizes = jax.lax.map(of_sample, loss.inputs)
        return jumps / jnp.maximum(jnp.max(sizes), _TINY)

    return jax.lax.map(along, moves)


_TINY = 1e-30


def _jump(
    parts: Callable[[Any], PyTree], slopes: Callable[[Vector], Any], x: Vector, move: Vector
) -> tuple[Float[Array, " leaves"], Array]:
    """What is left of the change of `slopes` from x − move to x + move once bisection has followed the greater half,
    leaf by leaf of its `parts`, and the size of `slopes` itself."""

    def changes(a: Any, b: Any) -> Float[Array, " leaves"]:
        differences = jax.tree.leaves(parts(jax.tree.map(jnp.subtract, b, a)))
        return jnp.stack([jnp.linalg.norm(leaf) for leaf in differences])

    def halve(_: Any, ends: tuple[Any, ...]) -> tuple[Any, ...]:
        a, b, at_a, at_b = ends
        middle = (a + b) / 2
        at_middle = slopes(x + middle * move)
        left = jnp.linalg.norm(changes(at_a, at_middle)) > jnp.linalg.norm(changes(at_middle, at_b))
        return jax.tree.map(
            lambda here, there: jnp.where(left, here, there), (a, middle, at_a, at_middle), (middle, b, at_middle, at_b)
        )

    first = (-jnp.ones((), x.dtype), jnp.ones((), x.dtype), slopes(x - move), slopes(x + move))
    _, _, at_a, at_b = jax.lax.fori_loop(0, _halvings(x.dtype), halve, first)
    sizes = [jnp.linalg.norm(changes(jax.tree.map(jnp.zeros_like, end), end)) for end in first[2:]]
    return changes(at_a, at_b), jnp.maximum(*sizes)

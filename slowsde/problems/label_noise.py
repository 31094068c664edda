"""Fresh noise on labels: Σ = αH on Γ, and nothing diffuses."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from manifolds.support.coordinates import Coordinates
from manifolds.support.precision import is_traced
from manifolds.support.user_functions import shown

from ..support.arguments import is_symbolic
from .abstract import (
    AbstractLabelledProblem,
    AbstractNoise,
    AbstractProblem,
    Vector,
    check_batch_size,
    drawn_batch,
    labelled,
    mean_gradient,
)
from .classification import Classification


class LabelNoise(AbstractNoise):
    """Fresh noise on the label of every sample drawn, for `LeastSquares` and `Classification`.

    `batch_size` samples are drawn with replacement each step; None is the full batch, b = n below.

    - `LeastSquares`: y_i + std_i ξ, ξ = ±1 (`kind` "rademacher") or normal. On an interpolating Γ one gradient is
      (1/b) Σ_batch J_iᵀ(std_i ξ), J_i = ∂f_i/∂θ, so that Σ = (1/(nb)) Σ_i J_iᵀ Diag(std_i²) J_i. With one std that is
      αH, α = std²/b. `std` is a number, an array (n,) of one a sample, or one that broadcasts to the targets (n, k).
    - `Classification`: a class drawn from π_i, and its one-hot label; `std` must be None. On Γ one gradient is
      (1/b) Σ_batch J_iᵀ(π_i − onehot), of mean zero, and onehot has covariance Λ_i = Diag(π_i) − π_iπ_iᵀ, so that
      Σ = (1/(nb)) Σ_i J_iᵀ Λ_i J_i = H/b, α = 1/b.

    B = Jᵀ Diag(std)/√b with the Jacobian J of the residuals (see `manifolds.CrossEntropyLoss`, std = 1 there), normal
    to Γ: nothing diffuses, whatever std is.

    Raises ValueError for a negative std, one that is zero throughout, or one that does not fit the problem.

    Example:
        >>> LabelNoise(0.5, batch_size=1)  # one sample a step, α = 0.25
        >>> clean = np.array([True, True, False])
        >>> LabelNoise(np.where(clean, 0.1, 1.0), batch_size=8)  # some labels are noisier
        >>> LabelNoise(batch_size=1)  # for Classification, α = 1
    """

    std: Any  # None, a number, or an array where it varies
    shape: tuple[int, ...] = eqx.field(static=True)  # that of std as it was given
    batch_size: int | None = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    def __init__(self, std: Any = None, batch_size: int | None = None, kind: str = "rademacher"):
        check_batch_size(batch_size, optional=True)
        if kind not in ("rademacher", "normal"):
            raise ValueError(f"kind={shown(kind)} is not 'rademacher' or 'normal'.")
        unchecked = std is None or is_traced(std) or is_symbolic(std)
        self.std = std if unchecked else _deviations(std)
        # Kept beside std, which becomes one number where all are equal: only the shape tells whether it was meant as
        # one a sample.
        self.shape = () if std is None else np.shape(std)
        self.batch_size = batch_size
        self.kind = kind

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        problem = labelled(problem)
        rows = problem.least_squares_loss(chart).rows(x)
        # The rows are divided by √n already: Σ = (1/(nb)) Σ_i J_iᵀ Diag(std_i²) J_i.
        return rows.T * jnp.ravel(self._scales(problem)) / np.sqrt(self._size(problem))

    def sum_over_columns(
        self, function: Callable[[PyTree], PyTree], problem: AbstractProblem, chart: Coordinates, x: Vector
    ) -> PyTree:
        problem = labelled(problem)
        scales = (self._scales(problem) / np.sqrt(self._size(problem))).astype(x.dtype)

        # Sample by sample, so that V(Σ) never holds B, which is p×m: 3 ms where a stored one took 100 (p = 20 000, m =
        # 500).
        def of_sample(rows: PyTree, scale: Array) -> PyTree:
            columns = jax.tree.map(lambda leaf: (leaf.T * scale).T, rows)
            return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(function)(columns))

        return problem.least_squares_loss(chart).sum_over_samples(of_sample, x, scales)

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        problem = labelled(problem)
        # Two keys: noise drawn with the key of the batch would be tied to which samples were drawn.
        draw, flip = (key, key) if self.batch_size is None else jr.split(key)
        if isinstance(problem, Classification):
            inputs, targets = drawn_batch(problem.data, problem.num_samples, self.batch_size, draw)
            # Each label is drawn anew from its target, so that its covariance is Λ_i exactly, at any number of classes.
            classes = jr.categorical(flip, jnp.log(targets))
            labels = jax.nn.one_hot(classes, targets.shape[1], dtype=x.dtype)
        else:
            # std travels with its sample into the batch.
            std = jnp.broadcast_to(self._std(problem), problem.targets.shape)
            (inputs, targets), std = drawn_batch((problem.data, std), problem.num_samples, self.batch_size, draw)
            sample = _signs if self.kind == "rademacher" else jr.normal
            labels = targets + std * sample(flip, targets.shape, dtype=x.dtype)
        return mean_gradient(problem.datum_loss, chart, x, (inputs, labels))

    def hessian_scale(self, problem: AbstractProblem) -> Any:
        problem = labelled(problem)
        if isinstance(problem, Classification):
            return 1 / self._size(problem)
        # With several std Σ is JᵀDJ, no multiple of H: Lyapunov weights are needed, though still nothing diffuses.
        return self.std**2 / self._size(problem) if jnp.ndim(self.std) == 0 else None

    # B = Jᵀ(...) is normal to Γ for every std, so that Π S B = 0: not decided by α as elsewhere.
    def diffuses(self, problem: AbstractProblem) -> bool:
        return False

    def check(self, problem: AbstractProblem) -> None:
        problem = labelled(problem)
        if isinstance(problem, Classification):
            if self.std is not None or self.kind != "rademacher":
                raise ValueError(
                    f"LabelNoise(std={self.std}, kind={self.kind!r}) does not suit Classification, whose labels are "
                    "drawn from its targets: use LabelNoise(batch_size=...)."
                )
        elif self.std is None:
            raise ValueError(
                "LabelNoise(std=None) does not suit LeastSquares: give std, the standard deviation of the label noise."
            )
        else:
            self._std(problem)

    def _size(self, problem: AbstractLabelledProblem) -> int:
        """b."""
        return self.batch_size or problem.num_samples

    def _scales(self, problem: AbstractLabelledProblem) -> Float[Array, "n k"]:
        """The standard deviation of each residual's noise, one row a sample."""
        if isinstance(problem, Classification):
            return jnp.ones((problem.num_samples, problem.targets.shape[1] - 1))
        std = jnp.broadcast_to(self._std(problem), problem.targets.shape)
        return std.reshape(problem.num_samples, -1)

    def _std(self, problem: AbstractLabelledProblem) -> Any:
        """std as an array that broadcasts against the targets."""
        targets = problem.targets.shape
        # One number a sample goes with all of its outputs, even where there are as many outputs as samples.
        shape = self.shape + (1,) * (len(targets) - 1) if len(self.shape) == 1 else self.shape
        if len(shape) > len(targets) or any(s not in (1, t) for s, t in zip(shape[::-1], targets[::-1], strict=False)):
            raise ValueError(
                f"std has shape {self.shape}, but targets {targets}: give one number, one a sample ({targets[0]},), or "
                "an array that broadcasts to the targets."
            )
        return self.std if jnp.ndim(self.std) == 0 else jnp.reshape(self.std, shape)


def _signs(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """±1, of one bit each: `jr.rademacher` draws a number of 64 bits and compares it with a half."""
    words = jr.bits(key, (-(-math.prod(shape) // 32),), jnp.uint32)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    return (2 * bits.astype(dtype) - 1).ravel()[: math.prod(shape)].reshape(shape)


def _deviations(std: Any) -> np.ndarray:
    """std as one number where it is the same throughout, so that Σ = αH, else as an array; ValueError if unfit."""
    try:
        given = np.asarray(std)
        # Not strings of digits, and not True, which is no deviation.
        found = given.astype(float) if given.dtype.kind in "iuf" else np.asarray(np.nan)
    except (TypeError, ValueError):
        found = np.asarray(np.nan)
    if not (np.all(np.isfinite(found)) and np.all(found >= 0) and np.any(found > 0)):
        raise ValueError(
            f"std={shown(std)} must be a positive number, the standard deviation of the label noise, or an array of "
            "them, one a sample, none negative and not all zero."
        )
    return found.reshape(-1)[0, ...] if np.ptp(found) == 0 else found

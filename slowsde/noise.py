"""Models of gradient noise: each knows its covariance factor B(θ), Σ = B Bᵀ, and how to draw a stochastic gradient.

The two agree on Γ: the covariance of `gradient` there is B Bᵀ.
"""

import abc
from collections.abc import Callable
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from manifolds.blocks import sum_in_blocks
from manifolds.coordinates import Coordinates, ravel
from manifolds.precision import in_working_precision, is_traced

from .problems import AbstractLabelledProblem, AbstractProblem, AbstractSampledProblem, Classification

Vector = Float[Array, " p"]


class AbstractNoise(eqx.Module):
    """A noise model. x is the flat vector of parameters, `chart` ties it to the user's pytree."""

    @abc.abstractmethod
    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        """B(x), the factor of the covariance Σ = B Bᵀ of one stochastic gradient."""

    def sum_over_columns(
        self, function: Callable[[PyTree], PyTree], problem: AbstractProblem, chart: Coordinates, x: Vector
    ) -> PyTree:
        """Σ_j function(b_j) over the columns b_j of B(x) as params-like pytrees: V(Σ) for V, tr SΣ for |S^½·|²."""
        columns = self.factor(problem, chart, x).T
        return sum_in_blocks(lambda b: function(chart.unravel_arrays(b)), columns, columns.shape[0])

    @abc.abstractmethod
    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        """One stochastic gradient at x: unbiased, of covariance Σ on Γ."""

    def hessian_scale(self, problem: AbstractProblem) -> Any:
        """α if Σ = αH on Γ, where the drift is −(α/4) Π S T[S]; None otherwise."""
        return None

    def diffuses(self, problem: AbstractProblem) -> bool:
        """Whether the noise has a part along Γ. Without one, Π S B = 0 on Γ, the slow SDE is an ODE."""
        return self.hessian_scale(problem) is None

    @abc.abstractmethod
    def check(self, problem: AbstractProblem) -> None:
        """ValueError unless this noise makes sense for `problem`."""

    def report(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> dict[str, float]:
        """What a run should tell about the accuracy of this noise model at its start x on Γ; ValueError if unfit."""
        return {}


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
            raise ValueError(f"kind={kind!r} is not 'rademacher' or 'normal'.")
        unchecked = std is None or is_traced(std)
        self.std = std if unchecked else _deviations(std)
        self.shape = () if std is None else np.shape(std)
        self.batch_size = batch_size
        self.kind = kind

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        problem = _labelled(problem)
        rows = problem.least_squares_loss(chart).rows(x)
        return rows.T * jnp.ravel(self._scales(problem)) / np.sqrt(self._size(problem))

    def sum_over_columns(
        self, function: Callable[[PyTree], PyTree], problem: AbstractProblem, chart: Coordinates, x: Vector
    ) -> PyTree:
        problem = _labelled(problem)
        scales = (self._scales(problem) / np.sqrt(self._size(problem))).astype(x.dtype)

        def of_sample(rows: PyTree, scale: Array) -> PyTree:
            columns = jax.tree.map(lambda leaf: (leaf.T * scale).T, rows)
            return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(function)(columns))

        return problem.least_squares_loss(chart).sum_over_samples(of_sample, x, scales)

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        problem = _labelled(problem)
        draw, flip = jr.split(key)
        if isinstance(problem, Classification):
            inputs, targets = _batch(problem.data, problem.num_samples, self.batch_size, draw)
            classes = jr.categorical(flip, jnp.log(targets))
            labels = jax.nn.one_hot(classes, targets.shape[1], dtype=x.dtype)
        else:
            std = jnp.broadcast_to(self._std(problem), problem.targets.shape)
            (inputs, targets), std = _batch((problem.data, std), problem.num_samples, self.batch_size, draw)
            sample = jr.rademacher if self.kind == "rademacher" else jr.normal
            labels = targets + std * sample(flip, targets.shape, dtype=x.dtype)
        return _mean_gradient(problem.datum_loss, chart, x, (inputs, labels))

    def hessian_scale(self, problem: AbstractProblem) -> Any:
        problem = _labelled(problem)
        if isinstance(problem, Classification):
            return 1 / self._size(problem)
        return self.std**2 / self._size(problem) if jnp.ndim(self.std) == 0 else None

    def diffuses(self, problem: AbstractProblem) -> bool:
        return False

    def check(self, problem: AbstractProblem) -> None:
        problem = _labelled(problem)
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


class GaussianNoise(AbstractNoise):
    """g = ∇L + B ξ, ξ ~ N(0, I), with `factor` B a scalar σ (B = σI), a (p, r) array or params -> (p, r) array.

    Rows of B follow the order of `jax.flatten_util.ravel_pytree(params)`.

    Example:
        >>> GaussianNoise(lambda x: jnp.diag(jnp.array([0.5, 0.1 * x[1]])))
    """

    function: Callable[[PyTree], Array] | Any

    def __init__(self, factor: Any):
        self.function = factor if callable(factor) or is_traced(factor) else np.asarray(factor, float)

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        factor = self.function(chart.unravel(x)) if callable(self.function) else self.function
        factor = jnp.asarray(factor, x.dtype)
        if factor.ndim == 0:
            return factor * jnp.eye(chart.size, dtype=x.dtype)
        if factor.ndim != 2 or factor.shape[0] != chart.size:
            raise ValueError(
                f"The factor of GaussianNoise has shape {factor.shape}. It must be a scalar or (p, r) with p = "
                f"{chart.size} parameters, one column for each independent noise."
            )
        return factor

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        factor = self.factor(problem, chart, x)
        slope = problem.flat_loss(chart).gradient(x)
        return slope + factor @ jr.normal(key, factor.shape[1:], dtype=x.dtype)

    def check(self, problem: AbstractProblem) -> None:
        return None


class MinibatchNoise(AbstractNoise):
    """Gradients of `batch_size` samples drawn with replacement, for `EmpiricalRisk` and other means over samples.

    Σ = (1/b) Cov_i(∇ℓ_i): B has the n columns (∇ℓ_i − ∇L)/√(n b). It vanishes where every sample is fitted exactly.

    Example:
        >>> MinibatchNoise(32)
    """

    batch_size: int = eqx.field(static=True)

    def __init__(self, batch_size: int):
        check_batch_size(batch_size, optional=False)
        self.batch_size = batch_size

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        problem = _sampled(problem)

        def one(datum: PyTree) -> Vector:
            return jax.grad(lambda y: problem.datum_loss(chart.unravel(y), datum))(x)

        gradients = jax.vmap(one)(problem.data)
        return (gradients - jnp.mean(gradients, axis=0)).T / jnp.sqrt(problem.num_samples * self.batch_size)

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        problem = _sampled(problem)
        batch = _batch(problem.data, problem.num_samples, self.batch_size, key)
        return _mean_gradient(problem.datum_loss, chart, x, batch)

    def check(self, problem: AbstractProblem) -> None:
        _sampled(problem)


class SampledNoise(AbstractNoise):
    """Noise known by its draws alone: `sample(params, key)` -> one stochastic gradient, params-like and unbiased.

    Σ is estimated from N = `draws` gradients g_j at fixed keys (common random numbers, so that B is as smooth in params
    as `sample` is): B has the columns (g_j − ḡ)/√(N−1), or with `rank` = r their r leading principal components.

    B Bᵀ is unbiased for Σ, and so is all that is linear in Σ: V(Σ) and, at a given v, Π S B BᵀS Πᵀ and the drift. But
    the estimate is the same all along a run: coefficients are off by a relative O(1/√N) that neither time nor paths
    average out, and what is curved in Σ (S(V(Σ)), means over a run) by a bias of O(1/N) on top. `rank` loses the
    variance beyond r components. `error` measures all this; change `seed` to see its effect on a result.

    A sampler whose draws depend on params in jumps (labels drawn from the model) is not smooth: prefer reparametrized
    draws. The stats of `simulate` hold the errors at its start. It refuses a sampler whose mean is not ∇L (by 6 s.e.).

    Args:
        sample: (params, key) -> params-like.
        draws: N ≥ 2.
        rank: r, 1 ≤ r ≤ N; None for N columns. Work grows with the number of columns.
        seed: of the fixed keys.

    Example:
        >>> noise = SampledNoise(lambda w, key: gradient(w, batch(key)), draws=512)
        >>> noise.error(problem, params)["noise_error"]
    """

    sample: Callable[[PyTree, PRNGKeyArray], PyTree]
    draws: int = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    seed: Int[Any, ""]

    def __init__(
        self, sample: Callable[[PyTree, PRNGKeyArray], PyTree], draws: int = 256, rank: int | None = None, seed: int = 0
    ):
        if not callable(sample):
            raise ValueError(f"sample={sample!r} must be a function (params, key) -> stochastic gradient.")
        if not (_is_integer(draws) and draws >= 2):
            raise ValueError(f"draws={draws!r} must be an integer of at least 2.")
        if rank is not None and not (_is_integer(rank) and 1 <= rank <= draws):
            raise ValueError(f"rank={rank!r} must be an integer from 1 to draws={draws}, or None.")
        if not _is_integer(seed):
            raise ValueError(f"seed={seed!r} must be an integer.")
        self.sample, self.draws, self.rank = sample, int(draws), rank
        self.seed = np.asarray(seed)  # an array, so that compiled code serves every seed

    def gradients(self, chart: Coordinates, x: Vector) -> Float[Array, "N p"]:
        """The N gradients at the fixed keys."""
        keys = jr.split(jr.key(self.seed), self.draws)
        return jax.vmap(lambda key: self._draw(chart, x, key))(keys)

    def factor(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> Float[Array, "p r"]:
        gradients = self.gradients(chart, x)
        columns = (gradients - jnp.mean(gradients, axis=0)).T / np.sqrt(self.draws - 1)
        if self.rank is None:
            return columns
        if chart.size > self.draws:  # through the smaller of the two Gram matrices
            return columns @ jnp.linalg.eigh(columns.T @ columns)[1][:, -self.rank :]
        values, axes = jnp.linalg.eigh(columns @ columns.T)
        return (axes * jnp.sqrt(jnp.maximum(values, 0)))[:, -self.rank :]

    def gradient(self, problem: AbstractProblem, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        return self._draw(chart, x, key)

    def check(self, problem: AbstractProblem) -> None:
        return None

    @in_working_precision
    def error(self, problem: AbstractProblem, params: PyTree) -> dict[str, Any]:
        """How well Σ is known at params from the draws.

        Returns a dict: noise_error, the relative standard error of tr Σ; noise_covariance_error, that of Σ itself in
        the Frobenius norm (E|Σ̂ − Σ|²)^½/|Σ|; noise_lost, the share of tr Σ beyond `rank`; noise_bias, |ḡ − ∇L| in
        units of its standard error (tr Σ/N)^½.
        """
        chart = Coordinates.of(params)
        return _sampling_error(self, problem, chart, ravel(params))

    def report(self, problem: AbstractProblem, chart: Coordinates, x: Vector) -> dict[str, float]:
        found = {name: float(value) for name, value in _sampling_error(self, problem, chart, x).items()}
        if found["noise_bias"] > 6:
            raise ValueError(
                f"sample is not an unbiased gradient of the loss: at the start on Γ the mean of {self.draws} draws "
                f"differs from ∇L by {found['noise_bias']:.3g} standard errors. Check its scale (mean or sum over a "
                "batch?) and that it differentiates the same loss."
            )
        return found

    def _draw(self, chart: Coordinates, x: Vector, key: PRNGKeyArray) -> Vector:
        params = chart.unravel(x)
        gradient = self.sample(params, key)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(eqx.filter(gradient, eqx.is_array))]
        expected = [shape for shape in chart.shapes if shape is not None]
        if shapes != expected:
            raise ValueError(f"sample returns arrays of shapes {shapes}; a gradient has those of params, {expected}.")
        return ravel(gradient)


@eqx.filter_jit
def _sampling_error(
    noise: SampledNoise, problem: AbstractProblem, chart: Coordinates, x: Vector
) -> dict[str, Float[Array, ""]]:
    n = noise.draws
    gradients = noise.gradients(chart, x)
    mean = jnp.mean(gradients, axis=0)
    gram = (gradients - mean) @ (gradients - mean).T  # its diagonal is |g_j − ḡ|²
    trace = jnp.trace(gram) / (n - 1)
    frobenius = jnp.sum(gram**2) / (n - 1) ** 2  # |Σ̂|²
    # Σ̂ is nearly the mean of the matrices (g_j − ḡ)(g_j − ḡ)ᵀ: their spread over n is its squared error.
    squared = jnp.maximum(jnp.mean(jnp.diagonal(gram) ** 2) - frobenius, 0) / n
    kept = jnp.sum(noise.factor(problem, chart, x) ** 2)
    bias = jnp.linalg.norm(mean - problem.flat_loss(chart).gradient(x))
    return {
        "noise_error": jnp.std(jnp.diagonal(gram)) / jnp.sqrt(n) / _nonzero(trace),
        "noise_covariance_error": jnp.sqrt(squared / _nonzero(frobenius - squared)),
        "noise_lost": jnp.maximum(1 - kept / _nonzero(trace), 0),
        "noise_bias": bias / _nonzero(jnp.sqrt(trace / n)),
    }


def _deviations(std: Any) -> np.ndarray:
    """std as one number where it is the same throughout, so that Σ = αH, else as an array; ValueError if unfit."""
    try:
        found = np.asarray(std, float)
    except (TypeError, ValueError):
        found = np.asarray(np.nan)
    if not (np.all(np.isfinite(found)) and np.all(found >= 0) and np.any(found > 0)):
        raise ValueError(
            f"std={std} must be a positive number, the standard deviation of the label noise, or an array of them, one "
            "a sample, none negative and not all zero."
        )
    return found.reshape(-1)[0, ...] if np.ptp(found) == 0 else found


def check_batch_size(batch_size: int | None, optional: bool) -> None:
    """ValueError unless batch_size is a positive integer (or None, where that means the full batch)."""
    if batch_size is None and optional:
        return
    if not (_is_integer(batch_size) and batch_size >= 1):
        raise ValueError(f"batch_size={batch_size!r} must be a positive integer{' or None' if optional else ''}.")


def _labelled(problem: AbstractProblem) -> AbstractLabelledProblem:
    if not isinstance(problem, AbstractLabelledProblem):
        raise ValueError(
            f"LabelNoise needs labels: a LeastSquares problem or Classification, not {type(problem).__name__}. Rewrite "
            "the loss as LeastSquares(predict, inputs, targets), or use GaussianNoise."
        )
    return problem


def _sampled(problem: AbstractProblem) -> AbstractSampledProblem:
    if not isinstance(problem, AbstractSampledProblem):
        raise ValueError(
            f"MinibatchNoise needs samples: an EmpiricalRisk, LeastSquares or Classification, not "
            f"{type(problem).__name__}."
        )
    return problem


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _nonzero(value: Array) -> Array:
    return jnp.where(value > 0, value, 1)


def _batch(data: PyTree, num_samples: int, batch_size: int | None, key: PRNGKeyArray) -> PyTree:
    if batch_size is None:
        return data
    rows = jr.randint(key, (batch_size,), 0, num_samples)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)


def _mean_gradient(
    datum_loss: Callable[[PyTree, PyTree], Array], chart: Coordinates, x: Vector, batch: PyTree
) -> Vector:
    def mean_loss(y: Vector) -> Array:
        return jnp.mean(jax.vmap(datum_loss, (None, 0))(chart.unravel(y), batch))

    return jax.grad(mean_loss)(x)

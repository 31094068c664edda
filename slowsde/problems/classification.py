"""Classification with smoothed labels: mean cross-entropy against target probabilities."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, PyTree

import manifolds as mf
from manifolds.losses.cross_entropy import kl_divergence
from manifolds.support.coordinates import Coordinates
from manifolds.support.precision import is_traced

from ..support.arguments import as_targets, check_data, check_leading_axis, function
from .abstract import AbstractLabelledProblem, AbstractNoise


class Classification(AbstractLabelledProblem):
    """L(params) = (1/n) Σ_i KL(π_i ‖ softmax logits(params, x_i)): mean cross-entropy against target probabilities.

    That is −(1/n) Σ_i Σ_k π_ik log softmax(logits_i)_k less the mean entropy of the targets, which moves no gradient
    and makes L vanish on Γ, where softmax(logits(params, x_i)) = π_i for every i.

    Args:
        logits: (params, x) -> (K,), K ≥ 2.
        inputs: a pytree with leading axis n.
        targets: (n, K) probabilities, all positive; rows sum to 1 (to 1e-4, and are then scaled to do so exactly).
            Hard labels have no minimizer at finite parameters: smooth them, (1 − s)·onehot + s/K with 0 < s < 1.
        noise: such as `LabelNoise(batch_size=1)`, which draws each label from its target.

    Raises ValueError for other targets.

    Example:
        >>> images, digits = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8)
        >>> smoothed = 0.9 * np.eye(10)[digits] + 0.1 / 10
        >>> network = lambda w, image: w["out"] @ jnp.tanh(w["in"] @ image)
        >>> problem = Classification(network, images, smoothed, noise=LabelNoise(batch_size=1))
    """

    logits: Callable[[PyTree, PyTree], Any]
    inputs: PyTree
    targets: Float[Array, "n K"]
    noise: "AbstractNoise | None"

    def __init__(
        self,
        logits: Callable[[PyTree, PyTree], Any],
        inputs: PyTree,
        targets: Any,
        noise: "AbstractNoise | None" = None,
    ):
        check_data(inputs, "inputs")
        targets = as_targets(targets)
        check_leading_axis((inputs, targets), "inputs and targets")
        self.logits = function("logits", logits, "logits(params, x)")
        self.inputs = inputs
        self.targets = check_probabilities(targets)
        self.noise = noise

    def check_form(self, chart: Coordinates) -> None:
        self.least_squares_loss(chart)  # which has to know

    def datum_loss(self, params: PyTree, datum: PyTree) -> Float[Array, ""]:
        """KL(π ‖ softmax logits(params, x)); for a one-hot π that is −log of the probability of its class."""
        x, probabilities = datum
        return kl_divergence(probabilities, self.logits(params, x))

    @property
    def num_residuals(self) -> int:
        return self.targets.size - self.num_samples  # K − 1 a sample

    def least_squares_loss(self, chart: Coordinates, **route: Any) -> mf.CrossEntropyLoss:
        found = self._output_shape(self.logits, "logits(params, x)", chart)
        if found != self.targets.shape[1:]:
            raise ValueError(
                f"targets has shape {self.targets.shape}, but logits returns shape {found} for each of the "
                f"{self.num_samples} inputs: it must return one number for each of the {self.targets.shape[1]} classes."
            )
        return mf.CrossEntropyLoss(self.logits, self.inputs, self.targets, like=chart, **route)


def check_probabilities(targets: Any) -> Any:
    """The rows of `targets` (n, K), scaled to sum to 1 exactly; ValueError unless they are positive probabilities."""
    if np.ndim(targets) != 2 or np.shape(targets)[1] < 2:
        raise ValueError(
            f"targets has shape {np.shape(targets)}; it must be (n, K), K ≥ 2 class probabilities for each sample. For "
            "class numbers y, smooth one-hot rows: (1 − s) * np.eye(K)[y] + s / K."
        )
    if is_traced(targets):
        return targets
    # In NumPy and so in float64: rows scaled in float32 do not sum to 1 exactly, and softmax f = π would have no
    # solution.
    rows = np.asarray(targets, float)
    # Also log π and F need π > 0.
    if not (np.all(rows > 0) and np.all(rows < 1)):  # NaN fails too
        bad = int(np.argmin(np.all((rows > 0) & (rows < 1), axis=1)))
        raise ValueError(
            f"targets[{bad}] = {rows[bad]} must lie strictly between 0 and 1: hard labels have no minimizer at finite "
            "parameters. Smooth them: (1 - s) * onehot + s / K with 0 < s < 1."
        )
    sums = np.sum(rows, axis=1)
    if np.max(np.abs(sums - 1)) > 1e-4:
        bad = int(np.argmax(np.abs(sums - 1)))
        raise ValueError(f"targets[{bad}] sums to {sums[bad]:.6g}, not to 1. Divide each row by its sum.")
    return rows / sums[:, None]

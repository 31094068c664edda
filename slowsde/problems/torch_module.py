"""PyTorch modules as functions of JAX, by torchax: a thin layer, loaded when it is asked for.

Of the two libraries that do this torchax 0.0.13 was taken: of 18 small networks (with convolutions, norms, an
embedding, attention, a GRU, ...) it gives all, equal to PyTorch to rounding with products of their Hessians. torch2jax
0.1.0 lacks a function for ten of them, softplus, softmax and average pooling among these, and its exact GELU is off by
6e-5 without a word.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manifolds.support.precision import to_numpy, working_precision
from manifolds.support.user_functions import shown

AGREES = 1e-5  # of the size of the outputs: float32 rounds by a tenth of it, an exact GELU is not its tanh form by ten


def from_torch(module: Any, example: Any = None) -> tuple[Callable[[Any, Any], Any], dict[str, np.ndarray]]:
    """(predict, params) of a PyTorch module, for `LeastSquares`, `Classification` or a loss of your own.

    predict(params, x) takes one input x, without the axis of the batch, and is the module as it is in evaluation
    (`module.eval()`: no dropout, fixed statistics of batch norms). params are its trainable parameters, {name: array};
    frozen ones and buffers are constants. The module itself is neither changed nor kept: a copy is.

    Args:
        module: a `torch.nn.Module` whose forward takes one tensor, a batch, and returns one.
        example: a batch of inputs on which both are compared; None for no comparison.

    Raises: ImportError without PyTorch and torchax (the `torch` extra); ValueError for what is no module, for one
        without trainable parameters, and if the two differ on `example`.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> inputs, targets = torch.randn(2, 3), torch.randn(2, 1)
        >>> predict, params = from_torch(module, example=inputs)
        >>> problem = LeastSquares(predict, inputs.numpy(), targets.numpy(), noise=LabelNoise(0.1, batch_size=1))
        >>> slow = simulate(problem, adam(c=10.0), params, t1=1.0)
    """
    torch, torchax = _libraries()
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module={shown(module)} must be a torch.nn.Module.")
    module = copy.deepcopy(module).cpu().eval()
    params = {name: _array(p) for name, p in module.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("module has no trainable parameters (requires_grad): there is nothing to drift.")
    tensors, call = torchax.extract_jax(module)
    every = dict(module.state_dict(keep_vars=True)) | dict(module.named_buffers())
    fixed = {name: _array(every[name]) for name in tensors if name not in params}
    predict = functools.partial(_predict, call, fixed)
    if example is not None:
        _check_agrees(torch, module, predict, params, example)
    return predict, params


def into_torch(module: Any, params: Mapping[str, Any], path: int | None = None) -> Any:
    """The module with `params`, {name: array}, written into it, in its own precision and on its own device.

    `path` picks one of the leading axis that the leaves of a trajectory have. Returns the module, changed.
    Raises ValueError for names that it has not, and for other shapes.

    Example:
        >>> import torch
        >>> into_torch(torch.nn.Linear(2, 1), {"weight": np.ones((1, 2)), "bias": np.zeros(1)}).weight.sum().item()
        2.0
    """
    torch, _ = _libraries()
    own = dict(module.named_parameters())
    arrays = {name: np.asarray(leaf) if path is None else np.asarray(leaf)[path] for name, leaf in params.items()}
    for name, array in arrays.items():
        if name not in own:
            raise ValueError(f"params has {name!r}, which module has not: it has {sorted(own)}.")
        if array.shape != tuple(own[name].shape):
            raise ValueError(
                f"params[{name!r}] has shape {array.shape}, the module's {tuple(own[name].shape)}. Leaves of a "
                "trajectory have an axis of paths (pass path=0) and one of times (take trajectory.at(t).params)."
            )
    with torch.no_grad():
        for name, array in arrays.items():
            own[name].copy_(torch.from_numpy(np.array(array)))
    return module


def _predict(call: Any, fixed: dict[str, np.ndarray], params: Mapping[str, Any], x: Any) -> Any:
    dtype = jnp.result_type(*jax.tree.leaves(params))
    # Constants in the precision of the parameters, whatever the module's was.
    constants = {name: jnp.asarray(c, dtype if c.dtype.kind == "f" else None) for name, c in fixed.items()}
    return call({**constants, **jax.tree.map(jnp.asarray, dict(params))}, (jnp.asarray(x)[None],))[0]


def _array(tensor: Any) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())


def _check_agrees(torch: Any, module: Any, predict: Any, params: dict[str, np.ndarray], example: Any) -> None:
    """ValueError unless the function of JAX is that of PyTorch."""
    batch = torch.as_tensor(example)
    with torch.no_grad():
        expected = module(batch).numpy()
    with working_precision("float64"):  # not that of JAX's flag, in which float64 may be float32
        got = to_numpy(jax.vmap(functools.partial(predict, params))(batch.numpy()))
    worst = float(np.max(np.abs(got - expected)))
    if not worst <= AGREES * max(1e-3, float(np.max(np.abs(expected)))):
        raise ValueError(
            f"module gives other outputs in JAX than in PyTorch, off by up to {worst:.2g} on example: torchax has one "
            "of its layers wrong. Write that layer by elementary functions, or the model in JAX."
        )


@functools.cache
def _libraries() -> tuple[Any, Any]:
    """PyTorch and torchax, ready."""
    try:
        import torch  # pyright: ignore[reportMissingImports]

        with _absent_overloads():
            import torchax  # pyright: ignore[reportMissingImports]

            torchax.default_env()
    except ImportError as error:
        raise ImportError('from_torch needs PyTorch and torchax: pip install "slowsde[torch]".') from error
    return torch, torchax


@contextlib.contextmanager
def _absent_overloads() -> Iterator[None]:
    """torchax 0.0.13 registers overloads for named tensors, which PyTorch has dropped in 2.13: names stand for them."""
    from torch._ops import OpOverloadPacket  # pyright: ignore[reportMissingImports]

    found = OpOverloadPacket.__getattr__

    def lenient(self: Any, key: str) -> Any:
        try:
            return found(self, key)
        except AttributeError:
            if key.startswith("__"):
                raise
            return f"{self}.{key}"

    OpOverloadPacket.__getattr__ = lenient
    try:
        yield
    finally:
        OpOverloadPacket.__getattr__ = found

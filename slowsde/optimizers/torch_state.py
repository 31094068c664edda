"""The second moment of a PyTorch optimizer, where the slow SDE can take over from a training run.

PyTorch is not imported: tensors are asked for their arrays.
"""

from typing import Any

import numpy as np


def from_torch_optimizer(optimizer: Any, module: Any) -> dict[str, np.ndarray]:
    """The second moment v of a PyTorch optimizer, {name: array} like the params of `from_torch`: a `v0`.

        v = ν/(1−β2^k),   ν ← β2 ν + (1−β2) g²  after k steps from ν = 0

    as Adam, AdamW and NAdam divide by it; RMSprop's ν as it is, less the squared mean if it is centered. The corrected
    v belongs to an AGM with `bias_correction=True` at slow time t0 = kη²: pass t0 as well (see `from_optax_state`).

    Raises ValueError if the optimizer keeps no second moment for a trainable parameter of `module`, has made no step,
    or is AMSGrad, whose largest moment so far never relaxes.

    Example:
        >>> import torch
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        >>> module(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.step()  # a training run, stopped near a minimum: where is it heading?
        >>> v0 = from_torch_optimizer(optimizer, module)  # for adam(c=slow_rate(1e-3, 0.999), bias_correction=True)
        >>> v0["weight"].shape
        (1, 2)
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: _moment(name, optimizer.state.get(p, {}), groups.get(id(p), {})) for name, p in trainable.items()}


def _moment(name: str, state: Any, group: Any) -> np.ndarray:
    if group.get("amsgrad"):
        raise ValueError("optimizer is AMSGrad: it divides by the largest second moment so far, which never relaxes.")
    if "exp_avg_sq" in state:
        share = -np.expm1(float(state["step"]) * np.log(group["betas"][1]))
        return _array(state["exp_avg_sq"]) / np.asarray(share, _array(state["exp_avg_sq"]).dtype)
    if "square_avg" in state:
        return _array(state["square_avg"]) - (_array(state["grad_avg"]) ** 2 if group.get("centered") else 0)
    raise ValueError(
        f"optimizer has no second moment for {name!r}: Adam, AdamW, NAdam and RMSprop keep one once they have made a "
        "step with it; SGD needs no v0. Pass the optimizer of this very module."
    )


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()

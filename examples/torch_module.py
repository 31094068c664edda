"""PyTorch trains a network; where is it heading? Asked of the slow SDE, then seen by training on.

    pip install ".[torch]" && python examples/torch_module.py

A tanh network fits eight points. On the minimizers Adam goes on with fresh noise on every label, as in PyTorch with
bias correction, and drifts. The slow SDE is asked for the drift before it happens: it takes the weights and the second
moments as they are. Then every copy of the network trains on in PyTorch with noise of its own. It prints

                              before   predicted  trained on     s.e.
    trace_hessian              8.436       7.564       7.610    0.013
    trace_sqrt_diag_hessian   14.968      13.420      13.522    0.014

gaps of 5 and 7 % of the change, as they are at this learning rate (`run_discrete` ends at 7.609 and 13.490).
"""

import copy

import jax
import numpy as np
import torch
from jax.flatten_util import ravel_pytree
from torch import nn

import slowsde as ss

LR, B2, STD, FIT, NOISY, STEPS, COPIES = 0.01, 0.999, 0.3, 2000, 1000, 1500, 12
EPS = 1e-2


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, std: float, seed: int) -> None:
    """Adam on the whole batch, with fresh noise of deviation std on every label."""
    noise = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = TARGETS + std * torch.randn(TARGETS.shape, generator=noise, dtype=TARGETS.dtype)
        optimizer.zero_grad()
        (0.5 * (module(INPUTS) - labels).square().sum(dim=1).mean()).backward()
        optimizer.step()


def adam_for(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=LR, betas=(0.9, B2), eps=EPS)


torch.manual_seed(0)
torch.set_num_threads(1)
INPUTS = torch.randn(8, 3, dtype=torch.float64)
TARGETS = torch.sin(INPUTS[:, :1])
module = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 1)).double()
for weights in module.parameters():
    nn.init.normal_(weights, std=0.7)
optimizer = adam_for(module)
train(module, optimizer, FIT, std=0.0, seed=0)  # to the minimizers
train(module, optimizer, NOISY, STD, seed=1)  # the second moments come to know the noise

# Three lines: the module, its problem, its optimizer.
predict, params = ss.from_torch(module, example=INPUTS)
problem = ss.LeastSquares(predict, INPUTS.numpy(), TARGETS.numpy(), noise=ss.LabelNoise(STD, kind="normal"))
adam = ss.adam(ss.slow_rate(LR, B2), eps=EPS, bias_correction=True)

names = ("trace_hessian", "trace_sqrt_diag_hessian")
t0 = ss.slow_time((FIT + NOISY), LR)
t1 = t0 + ss.slow_time(STEPS, LR)
v0 = ss.from_torch_optimizer(optimizer, module)
slow = ss.simulate(problem, adam, params, t1, t0=t0, v0=v0, metrics=names)
print(ss.validity(problem, adam, slow, LR).summary)

ends = []
for seed in range(COPIES):
    one = copy.deepcopy(module)
    going_on = adam_for(one)
    going_on.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(one, going_on, STEPS, STD, seed=100 + seed)
    # Without the fluctuation about the minimizers, along the optimizer's own flow.
    metric = jax.tree.map(lambda v: 1 / (np.sqrt(v) + EPS), ss.from_torch_optimizer(going_on, one))
    ends.append(ss.to_manifold(problem, ss.from_torch(one)[1], ravel_pytree(metric)[0]))

print(f"{'':<26}{'before':>10}{'predicted':>12}{'trained on':>12}{'s.e.':>9}")
for name in names:
    measured = np.array([float(ss.metrics.NAMED[name](problem, end)) for end in ends])
    error = measured.std(ddof=1) / np.sqrt(COPIES)
    print(f"{name:<26}{slow[name][0, 0]:10.3f}{slow[name][0, -1]:12.3f}{measured.mean():12.3f}{error:9.3f}")

ss.into_torch(module, slow.at(t1).params, path=0)
with torch.no_grad():
    print(f"the module at the predicted end fits to {float((module(INPUTS) - TARGETS).abs().max()):.0e}")

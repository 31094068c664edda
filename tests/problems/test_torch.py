"""A PyTorch module goes in and comes out: the same function with its derivatives, weights and second moments.

Needs the `torch` extra; skipped without it.
"""

from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import pytest

import slowsde as ss
from manifolds.support.precision import working_precision
from slowsde.problems import torch_module

if find_spec("torch") is None or find_spec("torchax") is None:
    pytest.skip('pip install "slowsde[torch]"', allow_module_level=True)
torch, _ = torch_module._libraries()
nn = torch.nn

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


class Residual(nn.Module):
    """Weights used twice, an exact GELU, a norm, a buffer and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 2)
        self.norm = nn.LayerNorm(3)
        self.register_buffer("scale", torch.tensor(0.7))
        self.frozen = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]), requires_grad=False)

    def forward(self, x: Any) -> Any:
        for _ in range(2):
            x = x + self.scale * nn.functional.gelu(self.inner(self.norm(x))) + self.frozen
        return self.out(x)


def seeded(module: Any) -> Any:
    torch.manual_seed(0)
    for p in module.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.5)
    return module.double()


def tanh_network() -> Any:
    return seeded(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)))


@pytest.mark.parametrize("module", [tanh_network(), seeded(Residual())], ids=["tanh", "residual"])
def test_it_is_the_same_function_with_its_second_derivatives(module: Any) -> None:
    predict, params = ss.from_torch(module, example=X)
    module = module.eval()
    weights = [p for p in module.parameters() if p.requires_grad]
    slopes = torch.autograd.grad((module(X) ** 2).sum(), weights, create_graph=True)
    expected = torch.autograd.grad(sum(s.sum() for s in slopes), weights)
    assert list(params) == [name for name, p in module.named_parameters() if p.requires_grad]
    with working_precision("float64"):
        batch = jax.numpy.asarray(X.numpy())

        def loss(w: Any) -> Any:
            return (jax.vmap(lambda x: predict(w, x))(batch) ** 2).sum()

        ones = jax.tree.map(np.ones_like, params)
        product = jax.jvp(jax.grad(loss), (jax.tree.map(jax.numpy.asarray, params),), (ones,))[1]
    for name, wanted in zip(params, expected, strict=True):
        np.testing.assert_allclose(product[name], wanted.numpy(), rtol=1e-9, atol=1e-11)


def test_a_layer_that_differs_is_noticed() -> None:
    module = nn.Linear(3, 1).double()
    with pytest.MonkeyPatch.context() as patched:
        wrong = torch_module._predict
        patched.setattr(torch_module, "_predict", lambda *given: 1.01 * wrong(*given))
        with pytest.raises(ValueError, match="gives other outputs in JAX than in PyTorch, off by up to"):
            ss.from_torch(module, example=X)


def test_a_run_goes_through_and_back_into_the_module() -> None:
    module = tanh_network().float()
    predict, params = ss.from_torch(module)
    assert {leaf.dtype for leaf in params.values()} == {np.dtype("float32")}
    inputs, targets = X.numpy(), np.array([[0.1], [-0.2], [0.3], [0.0]])
    problem = ss.LeastSquares(predict, inputs, targets, noise=ss.LabelNoise(0.3, batch_size=1))
    slow = ss.simulate(problem, ss.adam(c=2.0, eps=1e-2), params, t1=0.1, save_at=3, metrics=("trace_hessian",))
    assert slow["trace_hessian"][0, -1] < slow["trace_hessian"][0, 0]
    assert ss.into_torch(module, slow.at(0.1).params, path=0) is module
    with torch.no_grad():
        np.testing.assert_allclose(module.eval()(X.float()).numpy(), targets, atol=1e-5)  # on Γ: it fits
    with pytest.raises(ValueError, match=r"has shape \(1, 6\), the module's \(6,\).*path=0"):
        ss.into_torch(module, slow.at(0.1).params)
    with pytest.raises(ValueError, match="'w', which module has not"):
        ss.into_torch(module, {"w": np.ones(2)})


def test_what_is_no_module_or_has_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"module=.* must be a torch.nn.Module"):
        ss.from_torch(torch.tanh)
    with pytest.raises(ValueError, match="no trainable parameters"):
        ss.from_torch(nn.Tanh())


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RMSprop"])
def test_second_moments_are_those_of_the_gradients(kind: str) -> None:
    module = tanh_network().eval()
    optimizer = getattr(torch.optim, kind)(module.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match=r"no second moment for '0.weight'.* made a step"):
        ss.from_torch_optimizer(optimizer, module)
    b2 = optimizer.defaults["alpha"] if kind == "RMSprop" else optimizer.defaults["betas"][1]
    nu, steps = 0.0, 5
    for _ in range(steps):
        optimizer.zero_grad()
        (module(X) ** 2).mean().backward()
        nu = b2 * nu + (1 - b2) * module[0].weight.grad.numpy() ** 2
        optimizer.step()
    v0 = ss.from_torch_optimizer(optimizer, module)
    assert list(v0) == [name for name, _ in module.named_parameters()]
    np.testing.assert_allclose(v0["0.weight"], nu / (1 if kind == "RMSprop" else 1 - b2**steps), rtol=1e-9)


def test_amsgrad_and_sgd_have_none() -> None:
    module = nn.Linear(3, 1)
    for optimizer, said in (
        (torch.optim.Adam(module.parameters(), amsgrad=True), "never relaxes"),
        (torch.optim.SGD(module.parameters(), lr=0.1), "SGD needs no v0"),
    ):
        module(X.float()).sum().backward()
        optimizer.step()
        with pytest.raises(ValueError, match=said):
            ss.from_torch_optimizer(optimizer, module)

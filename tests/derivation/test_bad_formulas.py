"""What cannot be derived is refused, with what does not fit and what to do."""

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from formulas import ADAM, CASES, CIRCLE, LABEL, A, G, c, delta, h, sx, u, v, with_numbers, x, y

import slowsde as ss

POSITIVE = sympy.Symbol("x", positive=True)
z = sympy.Symbol("z")


@pytest.mark.parametrize(
    ("expr", "symbols", "optimizer", "noise", "message"),
    [
        ("x**2", [x, y], ss.sgd(), sx, "is a string"),
        (["x"], [x, y], ss.sgd(), LABEL, "is a string"),
        (x**2, ["x", y], ss.sgd(), sx, "symbols has 'x', a str"),
        (x**2, [x, x], ss.sgd(), sx, "each once"),
        (x**2, [], ss.sgd(), sx, "at least one symbol"),
        (x**2, [POSITIVE, y], ss.sgd(), sx, "another of that name, with other assumptions \\(positive and no assump"),
        (x**2, [u, v], ss.sgd(), sx, "has none of symbols"),
        (x**2, [x, y], "adam", sx, "optimizer='adam' must be an AGM"),
        ([u * v - sympy.I], [u, v], ss.sgd(), LABEL, "expr\\[0\\] = .* is not real"),
        ([sympy.sqrt(-1 - u**2)], [u, v], ss.sgd(), LABEL, "is not real"),
        (x**2 * sympy.zoo, [x, y], ss.sgd(), sx, "is not finite"),
        ([sympy.true], [u, v], ss.sgd(), LABEL, "must be a SymPy expression"),
        # noise
        (x**2 * h(y), [x, y], ss.sgd(), sympy.eye(3), "noise has shape \\(3, 3\\)"),
        (x**2 * h(y), [x, y], ss.sgd(), sympy.Matrix([[1, 1, 1]]), "one row for each of symbols"),
        (x**2 * h(y), [x, y], ss.sgd(), None, "noise=None has no formula"),
        (x**2 * h(y), [x, y], ss.sgd(), ss.GaussianNoise(lambda w: w), "has no formula"),
        (x**2 * h(y), [x, y], ss.sgd(), ss.MinibatchNoise(1), "has no formula"),
        (x**2 * h(y), [x, y], ss.sgd(), LABEL, "needs residuals"),
        ([u * v - 1], [u, v], ss.sgd(), ss.LabelNoise(), "give std, a number or a symbol"),
        ([u * v - 1], [u, v], ss.sgd(), ss.LabelNoise([1.0, 2.0]), "there are 1 residuals"),
        # Γ
        ((x - 1) ** 2 + y**2, [x, y], ss.sgd(), sx, "minimizers are isolated"),
        ([u - 1, v - 2], [u, v], ss.sgd(), LABEL, "minimizers are isolated"),
        ([u**2 + v**2 + 1], [u, v], ss.sgd(), LABEL, "vanishes nowhere"),
        (x**4, [x, y], ss.sgd(), sx, "rank 0 .* degenerate"),
        (-(x**2), [x, y], ss.sgd(), sx, "no minimum"),
        (x + y**2, [x, y], ss.sgd(), sx, "no manifold of minimizers that could be found"),
        (sympy.exp(x) - y * x, [x, y], ss.sgd(), sx, "no manifold of minimizers that could be found"),
        # optimizers
        ([u * v - 1], [u, v], ss.AGM(lambda g: sympy.Abs(g[0]), lambda v: v, c), LABEL, "must be quadratic"),
        ([u * v - 1], [u, v], ss.AGM(np.cos, lambda v: v, c), LABEL, "V cannot be evaluated on symbols"),
        (
            [u * v - 1],
            [u, v],
            ss.AGM(lambda g: g * g, np.sqrt, c),
            LABEL,
            "S cannot be evaluated on symbols.*v\\*\\*0.5",
        ),
        ([u * v - 1], [u, v], ss.AGM(lambda g: g * g, lambda v: v[:1], c), LABEL, "no metric for 2 symbols"),
        ([u * v - 1], [u, v], ss.grouped({"a": ADAM}, "a"), LABEL, "group of optimizers"),
        ([A[0] * u + v], [sympy.Matrix(2, 3, sympy.symbols("k0:6")), u, v, A[0]], ss.shampoo(c), LABEL, "up to 2×2"),
        ([u * v - 1], [u, v], ss.sgd(schedule=jnp.cos), LABEL, "schedule cannot be evaluated on a symbol"),
    ],
)
def test_refused(expr: Any, symbols: Any, optimizer: Any, noise: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.derive(expr, symbols, optimizer, noise)


@pytest.mark.parametrize(
    ("manifold", "message"),
    [
        ({x: 1}, "the gradient does not vanish at"),
        ({x: 0, y: 0}, "isolated"),
        ({y: 0}, "does not vanish"),
        ({z: 0}, "none of the symbols"),
        ({x: y, y: x}, "must not depend"),
        ([x**2 + y**2 + 1], "no point was found"),
        ([x - 1], "does not vanish"),
    ],
)
def test_a_manifold_that_does_not_fit(manifold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.derive(sympy.exp(y) * x**2, [x, y], ss.sgd(), sx, manifold=manifold)


def test_a_part_of_the_manifold_is_none() -> None:
    """Codimension 2 where H has rank 1."""
    with pytest.raises(ValueError, match=r"rank 1 .* but 2 equations"):
        ss.derive(sympy.exp(y) * x**2, [x, y, z], ss.sgd(), sx, manifold={x: 0, z: 0})


def test_wrong_ways_to_use_a_derivation() -> None:
    valley, product = CASES["valley"].derive(), CASES["uv = 1, Adam"].derive()
    for call, message in (
        (lambda: valley.evaluate(np.zeros(2)), "h, .*sigma_x.* have no value: put numbers and functions in first"),
        (lambda: valley.as_problem(), "have no value"),
        (lambda: valley.as_optimizer(), "have no value"),
        (lambda: valley.on({x: 1}), "not on Γ"),
        (lambda: valley.on({z: 1}), "values has z, on which nothing here depends"),
        (lambda: valley.on({"x": 1}), "give symbols, or functions"),
        (lambda: valley.on({h(2 * y): 1}), "a function of symbols"),
        (lambda: valley.reduced([x, y]), "must be 1 of the parameters"),
        (lambda: valley.reduced({x: z}), "must have new symbols"),
        (lambda: valley.reduced({x: 1 + z, y: z}), "not on Γ"),
        (lambda: product.reduced({u: z * A[0], v: 1 / z}), "Γ has 1 dimensions"),
        (lambda: with_numbers(product).evaluate(np.array([2.0, 2.0])), "not on Γ: .*as_problem"),
        (lambda: with_numbers(product).evaluate(np.array([2.0, 2.0, 1.0])), "2 symbols"),
        (lambda: with_numbers(product).evaluate(np.array([2.0, 0.5]), np.ones(3)), "v has leaves of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_advice_works() -> None:
    """A loss that SymPy cannot solve, with its manifold; a point off Γ, moved there; a factor without a formula."""
    loss = (1 - sympy.cos(x - sympy.exp(y))) * h(y)
    found = ss.derive(loss, [x, y], ss.sgd(), sx, manifold={x: sympy.exp(y)})
    assert found.projector.free_symbols == {y}
    numbers = with_numbers(CASES["uv = 1, Adam"].derive())
    moved = ss.to_manifold(numbers.as_problem(), np.array([2.0, 0.6]))
    assert np.all(np.isfinite(numbers.evaluate(moved).drift))
    with pytest.raises(ValueError, match="has a schedule: pass the slow time"):
        ss.derive([u * v - 1], [u, v], ss.sgd(schedule=lambda t: 1 / (1 + t)), ss.LabelNoise(1.0)).evaluate(np.ones(2))
    assert ss.derive(CIRCLE, [x, y], ss.sgd(), ss.GaussianNoise(0.5)).diffusion.shape == (2, 2)
    assert ss.derive([G.det() - 1], [G], ss.sgd(), ss.LabelNoise(delta)).drift.shape == (4, 1)


def test_importing_slowsde_does_not_import_sympy() -> None:
    code = "import sys, slowsde as ss; assert 'sympy' not in sys.modules; ss.derive; assert 'sympy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Formulas that are known come out as they are known, and as they are written."""

import numpy as np
import pytest
import sympy
from formulas import (
    CASES,
    CIRCLE,
    LABEL,
    Case,
    as_params,
    c,
    delta,
    epsilon,
    h,
    lam,
    p,
    points_of,
    q,
    sx,
    u,
    v,
    with_numbers,
    x,
    x1,
    x2,
    y,
)

import slowsde as ss

w, phi, s = sympy.symbols("w varphi s")


def same(a: sympy.Expr, b: sympy.Expr) -> bool:
    return sympy.simplify(a - b) == 0


def test_the_valley_prints_its_equation() -> None:
    valley = CASES["valley"].derive()
    assert str(valley.reduced([y])).splitlines() == [
        "dy = -1/4 S_x S_y σ_x² (ln h)'(y) dt + S_y σ_y dW",
        "dv_x = c (σ_x² - v_x) dt",
        "dv_y = c (σ_y² - v_y) dt",
        "S_x = 1/(ε + √v_x)",
        "S_y = 1/(ε + √v_y)",
    ]
    first = valley.reduced([y]).latex().splitlines()[1]
    assert first == r"dy &= -\frac{1}{4}\, S_{x} S_{y} \sigma_{x}^{2} (\ln h)'(y) dt + S_{y} \sigma_{y} dW \\"
    Sx, Sy = (1 / (sympy.sqrt(state) + epsilon) for state in valley.state)
    assert same(valley.drift[1], -Sx * Sy * sx**2 * sympy.diff(sympy.log(h(y)), y) / 4)
    assert valley.drift[0] == 0
    assert valley.projector == sympy.Matrix([[0, 0], [0, 1]])
    assert valley._repr_latex_().startswith(r"$\displaystyle \begin{aligned}")


def test_a_function_put_in_is_differentiated() -> None:
    valley = Case(h(y) * x**2 / 2, [x, y], ss.sgd(), sympy.Matrix([sx, 0])).derive()
    for key, value in ((h(y), sympy.exp(y**2 / 2)), (h, lambda z: sympy.exp(z**2 / 2))):
        found = valley.on({key: value})
        assert same(found.drift[1], -(sx**2) * y / 4)
    assert valley.on({h(y): 1}).drift[1] == 0


def test_uv_is_one_under_sgd() -> None:
    """d(u² − v²)/dt = −α(u² − v²), α = δ², which comes to rest at u = v, where tr H is least."""
    derivation = CASES["uv = 1, SGD"].derive()
    found = derivation.reduced({w: u**2 - v**2})
    assert str(found) == "dw = -δ² w dt"
    potential = derivation.potential()
    assert potential.closed
    assert same(potential.value, delta**2 * (u**2 + v**2) / 4)
    assert {(point[u], point[v]) for point in potential.stationary_points()} == {(1, 1), (-1, -1)}
    batch = ss.derive([u * v - 1] * 2, [u, v], ss.sgd(), ss.LabelNoise(delta, batch_size=5))
    assert batch.reduced({w: u**2 - v**2}).drift[0] == -(delta**2) * w / 5


def test_uv_is_one_under_adam_without_epsilon() -> None:
    """d(u − v)/dt = −½(u − v), whatever the noise, and F = (δ/2)(u + v)."""
    derivation = CASES["uv = 1, c = ∞"].derive().on({epsilon: 0})
    assert str(derivation.reduced({w: p - q})) == "dw = -1/2 w dt"
    potential = derivation.potential()
    assert same(potential.value, delta * (p + q) / 2)
    assert potential.stationary_points() == [{p: 1, q: 1}]


def test_uv_is_one_under_adame() -> None:
    """u^{2−2λ} − v^{2−2λ} falls at the rate (1−λ) δ^{2−4λ}, and F = α^{1−λ}/(4(1−λ)) (u^{2−2λ} + v^{2−2λ}), ε → 0."""
    derivation = Case([p * q - 1], [p, q], ss.adame(sympy.oo, lam, eps=epsilon), LABEL).derive().on({epsilon: 0})
    value = derivation.potential().value
    expected = (delta**2) ** (1 - lam) * (p ** (2 - 2 * lam) + q ** (2 - 2 * lam)) / (4 * (1 - lam))
    numbers = {lam: 0.3, delta: 0.7, p: 1.9, q: 0.6}
    assert float(value.subs(numbers)) == pytest.approx(float(expected.subs(numbers)), rel=1e-12)
    law = derivation.reduced({w: p ** (2 - 2 * lam) - q ** (2 - 2 * lam)})
    assert str(law) == "dw = δ^(2 - 4 λ) w (λ - 1) dt"
    for power, expected in ((0, "-1/2 δ² tanh(2 s)"), (sympy.Rational(1, 2), "-1/2 tanh(s)")):
        found = derivation.on({lam: power}).reduced({p: sympy.exp(s), q: sympy.exp(-s)})
        assert str(found) == f"ds = {expected} dt"


def test_brownian_motion_on_the_circle() -> None:
    derivation = ss.derive(CIRCLE, [x, y], ss.sgd(), 1)
    assert derivation.ito_drift == sympy.Matrix([-x / 2, -y / 2])
    assert derivation.tangential_drift == sympy.zeros(2, 1)
    found = derivation.reduced({x: sympy.cos(phi), y: sympy.sin(phi)})
    assert found.drift[0] == 0
    assert same(sum(e**2 for e in found.diffusion), 1)


def test_the_ellipse_has_the_oblique_projector_and_second_derivative_of_the_limit_map() -> None:
    """Π and D²[t, t] of L = ¼(x² + 4y² − 1)² in the metric diag(½, 2), as measured through the resolved flow."""
    metric = ss.AGM(lambda g: g * g, lambda v: sympy.diag(sympy.Rational(1, 2), 2), c)
    at = {x: sympy.cos(1), y: sympy.sin(1) / 2}
    t = sympy.Matrix([-sympy.sin(1), sympy.cos(1) / 2])  # tangential
    found = ss.derive((x**2 + 4 * y**2 - 1) ** 2 / 4, [x, y], metric, metric.S(None).inv() * t / t.norm())
    value = sympy.Matrix(2, 1, [2 * e for e in found.ito_drift.subs(at)]).evalf()
    N = sympy.Matrix([[at[x], 4 * at[y]]])
    E = metric.S(None) * N.T
    assert sympy.simplify(found.projector.subs(at) - (sympy.eye(2) - E * N / (N * E)[0])) == sympy.zeros(2, 2)
    bend = (t.T * sympy.diag(2, 8) * t)[0] / (t.T * t)[0] / 2
    np.testing.assert_allclose(np.array(value, float)[:, 0], np.array((-E * bend / (N * E)[0]).evalf(), float)[:, 0])


@pytest.mark.parametrize("name", ["u² − v², two samples", "factorization of rank one"])
def test_adam_has_a_potential_on_larger_manifolds(name: str) -> None:
    """tr Diag(H)^½ for ε = 0, by closedness in random points and by its gradient."""
    case = CASES[name]
    symbols = list(case.symbols)
    derivation = ss.derive(case.expr, symbols, ss.adam(c, eps=0), ss.LabelNoise(delta)).on({delta: 1})
    potential = derivation.potential()
    assert potential.closed
    H = derivation.equilibrium * derivation.within.formula.batch  # V(Σ) = diag(H) α
    expected = sum(sympy.sqrt(e) for e in H) / (2 * sympy.sqrt(derivation.within.formula.batch))
    numbers = dict(zip(symbols, (0.7, 1.3, 0.4, 1.1), strict=True)) | {x1: 0.9, x2: -0.7}
    numbers |= dict.fromkeys((potential.value.free_symbols | expected.free_symbols) - set(numbers), 0.5)
    assert float(potential.value.subs(numbers)) == pytest.approx(float(expected.subs(numbers)), rel=1e-12)


def test_where_there_is_no_potential_the_curl_says_so() -> None:
    """Each S depends on two entries of v: S_i = 1/√(v_i + 2 v_{i+1}) is no gradient."""
    mixed = ss.AGM(lambda g: g * g, lambda v: 1 / (v + 2 * np.roll(v, 1)) ** 0.5, c)
    case = CASES["u² − v², two samples"]
    one = ss.derive([case.expr[0]], case.symbols, mixed, LABEL)
    potential = one.potential()
    assert not potential.closed
    assert potential.value is None
    assert potential.curl != sympy.zeros(4, 4)
    assert "curl" in str(potential)


def test_a_reduced_equation_is_the_whole_one_in_other_coordinates() -> None:
    """dy of a bent valley, and of all parameters by one: the same numbers as the rows of the whole drift."""
    whole = with_numbers(CASES["bent valley"].derive())
    reduced = whole.reduced([y]).expanded()
    by_new = whole.reduced({x: sympy.sin(s), y: s}).expanded()
    observed = whole.reduced({w: sympy.exp(y)}).expanded()
    for point in points_of(whole, 3):
        state = dict(zip(whole.state, (0.3, 0.7), strict=True))
        values = whole.evaluate(as_params(whole, point), np.array([0.3, 0.7]))
        drift, noise = float(values.drift[1]), values.diffusion[1]
        for found, at in ((reduced, {y: point[1]}), (by_new, {s: point[1]})):
            assert float(found.drift[0].subs(at | state)) == pytest.approx(drift, rel=1e-10)
            np.testing.assert_allclose(np.array(found.diffusion.subs(at | state), float)[0], noise, rtol=1e-10)
        at = {w: np.exp(point[1])} | state
        expected = np.exp(point[1]) * (drift + noise @ noise / 2)
        assert float(observed.drift[0].subs(at)) == pytest.approx(expected, rel=1e-9)


def test_the_whole_derivation_reads_well() -> None:
    text = str(CASES["network"].derive()).splitlines()
    assert text[0] == "da1 = -S_a1 (T_1 - μ_1 φ(w1 x1) - μ_2 φ(w1 x2)) dt"
    assert text[-1] == "0 = a1 φ(w1 x2) + a2 φ(w2 x2) - y2 on Γ"

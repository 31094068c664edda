"""Every formula is what `coefficients` computes, at 20 random points of Γ with random states, to 1e-10."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from formulas import CASES, LABEL, OBLIQUE, Case, as_params, points_of, random_state, u, v, with_numbers, x, y

import slowsde as ss

# One of each kind; the others, of which some take many seconds to simplify, are slow tests.
QUICK = {
    "valley",
    "ellipse",
    "uv = 1, Adam",
    "uv = 1, AdamE",
    "u² − v², two samples",
    "factorization of rank one, layers",
}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@functools.cache
def ellipse() -> ss.Derivation:
    return with_numbers(CASES["ellipse"].derive())


def gaps(derivation: ss.Derivation, t: Any = None, **library: Any) -> dict[str, float]:
    """The largest relative difference from `coefficients` in each part."""
    problem, optimizer, rng = derivation.as_problem(), derivation.as_optimizer(), np.random.default_rng(5)
    found = {"drift": 0.0, "diffusion": 0.0, "v_drift": 0.0}
    for point in points_of(derivation):
        params = as_params(derivation, point)
        state = random_state(optimizer, params, rng) if derivation.state else None
        ours = derivation.evaluate(params, state, t)
        theirs = ss.coefficients(problem, library.get("optimizer", optimizer), params, state, t=t)
        for part in found:
            a, b = (
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(c, part))] or [[]]) for c in (ours, theirs)
            )
            if derivation.state or part != "v_drift":
                assert a.shape == b.shape
                found[part] = max(
                    found[part], float(np.max(np.abs(a - b), initial=0) / np.max(np.abs(b), initial=1e-12))
                )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_what_the_library_computes(name: str) -> None:
    found = gaps(with_numbers(CASES[name].derive()))
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("name", ["valley", "uv = 1, AdamE"])
def test_unsimplified_formulas_have_the_same_values(name: str) -> None:
    found = gaps(with_numbers(CASES[name].derive(simplify=False)))
    assert max(found.values()) < 1e-10, found


def test_time_schedule_decay_and_bias_correction_are_those_of_simulate() -> None:
    settings: dict[str, Any] = {
        "bias_correction": True,
        "schedule": lambda t: 1 / (1 + t),
        "weight_decay": np.array([0.3, 0.7]),
    }
    adam = ss.adam(1.3, eps=0.07, **settings)
    for case in (Case([u * v - 1], [u, v], adam, LABEL), Case((x**2 + 4 * y**2 - 1) ** 2 / 4, [x, y], adam, OBLIQUE)):
        derivation = with_numbers(case.derive())
        assert max(gaps(derivation, t=0.8).values()) < 1e-10
        # Each of them is seen.
        for name, other in (("bias_correction", False), ("schedule", None), ("weight_decay", 0.0)):
            mutant = ss.adam(1.3, eps=0.07, **settings | {name: other})
            assert max(gaps(derivation, t=0.8, optimizer=mutant).values()) > 1e-3, name


@pytest.mark.parametrize("mutant", ["half of the Itô term", "no Itô term", "no tangential drift", "a projector less"])
def test_a_wrong_factor_or_a_missing_part_would_be_seen(mutant: str) -> None:
    right = ellipse()
    parts = right.within.coefficients
    wrong = {
        "half of the Itô term": replace(parts, ito=parts.ito / 2),
        "no Itô term": replace(parts, ito=0 * parts.ito),
        "no tangential drift": replace(parts, tangential=0 * parts.tangential),
        "a projector less": replace(parts, diffusion=right.within.metric() * right.within.formula.factor),
    }[mutant]
    found = gaps(ss.Derivation(replace(right.within, coefficients=wrong)))
    assert max(found["drift"], found["diffusion"]) > 1e-2


def test_lambdify_gives_the_same_numbers_flat() -> None:
    derivation = ellipse()
    point, state = points_of(derivation, 1)[0], np.array([0.3, 0.8])
    drift, diffusion, v_drift = derivation.lambdify()(point, state)
    found = derivation.evaluate(point, state)
    np.testing.assert_array_equal(drift, found.drift)
    np.testing.assert_array_equal(diffusion, found.diffusion)
    np.testing.assert_array_equal(v_drift, found.v_drift)


def test_label_noise_has_no_column_of_diffusion() -> None:
    found = ss.derive([x * y - 1], [x, y], ss.sgd(), ss.LabelNoise(1.0))
    assert found.diffusion.shape == (2, 0)
    assert found.evaluate(np.ones(2), ()).diffusion.shape == (2, 0)
    assert "dW" not in found.latex() + str(found) + str(found.reduced([x]))


def test_no_state_given_is_the_equilibrium() -> None:
    derivation = with_numbers(CASES["uv = 1, Adam"].derive())
    still = derivation.evaluate(np.array([2.0, 0.5]))
    np.testing.assert_allclose(still.v_drift, 0, atol=1e-15)
    expected = ss.coefficients(derivation.as_problem(), derivation.as_optimizer(), np.array([2.0, 0.5]))
    np.testing.assert_allclose(still.drift, expected.drift, rtol=1e-10)

"""Results show themselves: short in a terminal, a table and a figure in a notebook; trajectories are asked by name."""

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sympy

import slowsde as ss
from slowsde.plot.cards import card
from slowsde.studies.convergence import study_of_runs
from slowsde.support import progress

TS = np.linspace(0.0, 1.0, 5)


def run(label: str, gap: float = 0.0, paths: int = 1, **stats: Any) -> ss.Trajectory:
    """tr H falls from 4 to 3; discrete paths scatter about it by 0.01."""
    rng = np.random.default_rng(0)
    values = 3 + (1 - TS) ** 2 + gap * TS + 0.01 * TS * rng.normal(size=(paths, 1))
    params = {"u": np.ones((paths, TS.size, 2, 3)) * TS[:, None, None], "v": np.zeros((paths, TS.size))}
    stats = {"solver": "implicit", "num_steps": 40} | stats
    return ss.Trajectory(TS, params, None, {"trace_hessian": values}, stats, np.zeros(paths, int), label)


SLOW, FAST = run("slow"), run("discrete", gap=0.1, paths=8, lr=0.1)
RATIOS = {"sharpness": np.array([0.05, 0.2]), "relaxation": np.array([0.01, 0.3])}
RUNS = [run("discrete", gap=2 * lr, paths=64, lr=lr) for lr in (0.4, 0.2, 0.1)]
REST = ss.StationaryPoint(np.ones(2), None, {"trace_hessian": 6.25}, 12.5, 1e-12, 2e-10, SLOW)
RESULTS = {
    "slow: 1 path, 5 times from t=0 to 1, 7 parameters; metrics trace_hessian": SLOW,
    "discrete: 8 paths, 5 times from t=0 to 1, 7 parameters; metrics trace_hessian": FAST,
    "at 5 times: trace_hessian: visible gap": ss.compare(SLOW, FAST),
    "at lr=0.1: not valid, do not trust: relaxation": ss.Validity(np.array([0.0, 1.0]), 0.1, RATIOS),
    "at 3 learning rates: trace_hessian: order 1": study_of_runs(SLOW, [4, 4, 4], RUNS),
    "at t=12.5, stillness 2e-10, speed 1e-12, trace_hessian 6.25": REST,
}


def page(result: Any) -> ElementTree.Element:
    """The HTML of a result, which must be well-formed."""
    return ElementTree.fromstring(re.sub(r"(<img [^>]*)>", r"\1/>", result._repr_html_()))


@pytest.mark.parametrize("said", RESULTS)
def test_a_repr_is_one_line_that_says_what_it_is(said: str) -> None:
    result = RESULTS[said]
    shown = repr(result)
    assert shown.startswith(f"<{type(result).__name__} ")
    assert said in shown
    assert "\n" not in shown
    assert len(shown) < 400


@pytest.mark.parametrize("result", RESULTS.values(), ids=lambda result: type(result).__name__)
def test_in_a_notebook_there_is_a_table_and_a_figure(result: Any) -> None:
    import matplotlib.pyplot as plt

    found = page(result)
    rows = [[cell.text or "" for cell in row] for row in found.iter("tr")]
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}
    pictures = [image.get("src", "") for image in found.iter("img")]
    assert len(pictures) == (0 if isinstance(result, ss.StationaryPoint) else 1)
    assert all(source.startswith("data:image/png;base64,iVBOR") and len(source) > 5000 for source in pictures)
    assert plt.get_fignums() == []  # none is left that the notebook would show once more


def test_the_numbers_of_a_card_are_those_of_the_table() -> None:
    comparison = ss.compare(SLOW, FAST)
    rows = [[cell.text or "" for cell in row] for row in page(comparison).iter("tr")]
    for row in rows:
        assert " ".join(" ".join(row).split()) in " ".join(comparison.table().split())
    assert rows[1][1:4] == ["0", "4", "4"]
    assert comparison.trust in "".join(page(comparison).itertext())


def test_failed_paths_are_told_and_left_out_of_means() -> None:
    values = FAST.metrics["trace_hessian"].copy()
    values[:2, 3:] = np.nan
    codes = np.array([3, 3, 0, 0, 0, 0, 0, 0])
    failed = ss.Trajectory(TS, FAST.params, None, {"trace_hessian": values}, {}, codes, "discrete")
    assert "2 of 8 paths failed (2 NON_FINITE)" in repr(failed)
    cells = [cell.text for cell in list(page(failed).iter("tr"))[1]]
    assert cells[3] == f"{values[2:, -1].mean():.5g}"
    nothing = ss.Trajectory(TS, FAST.params, None, {"trace_hessian": 0 * values + np.nan}, {}, codes * 0 + 3, "slow")
    assert not list(page(nothing).iter("img"))


def test_without_observables_and_with_one_time() -> None:
    bare = ss.Trajectory(TS[:1], {"w": np.ones((1, 1, 3))}, None, {}, {}, np.zeros(1, int))
    assert repr(bare) == "<Trajectory slow: 1 path, t=0, 3 parameters>"
    assert "1 path, t=0" in bare._repr_html_()


def test_texts_are_escaped() -> None:
    shown = card("a < b & c", ["x"], [["<script>"]], notes=["gap > 4 s.e."])
    assert "<script>" not in shown
    assert "a &lt; b &amp; c" in shown
    assert "gap &gt; 4" in shown


class FakeIPython(ModuleType):
    """As much of IPython as a bar asks for: what is shown is kept."""

    def __init__(self, shown: list[str]):
        super().__init__("IPython")
        self.get_ipython = lambda: SimpleNamespace(kernel=object())
        self.HTML = str
        self.display = lambda text, display_id: shown.append(text) or SimpleNamespace(update=shown.append)


def test_progress_is_a_line_in_a_terminal_and_a_bar_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    progress.Line("simulate", True).show(0.25)
    assert re.fullmatch(r"\rsimulate   25 % +-?0 s", capsys.readouterr().err)
    assert not progress.in_notebook()
    shown: list[str] = []
    fake = FakeIPython(shown)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    line = progress.Line("simulate", None)  # without being asked for
    for fraction in (0.25, 0.5, 1.0):
        line.show(fraction)
    progress.StepMeter("to rest", 100)._show(50)
    assert re.findall(r'value="([\d.]+)"', "".join(shown)) == ["0.250", "0.500", "1.000"]
    assert "50 of at most 100 steps" in shown[-1]
    assert capsys.readouterr().err == ""


def test_a_derivation_is_one_line_and_stays_typeset() -> None:
    x, y, sigma = sympy.symbols("x y sigma")
    valley = ss.derive((1 + y**2) * x**2 / 2, [x, y], ss.sgd(), noise=sympy.diag(sigma, 0))
    assert repr(valley).startswith("<Derivation dx = ")
    assert repr(valley.reduced([y])).startswith("<Reduced dy = ")
    assert "\n" not in repr(valley)
    assert valley._repr_latex_().startswith("$")


def test_a_trajectory_is_asked_by_name_and_by_time() -> None:
    assert FAST["trace_hessian"] is FAST.metrics["trace_hessian"]
    assert "trace_hessian" in FAST
    assert "loss" not in FAST
    assert len(FAST) == 5
    with pytest.raises(KeyError, match=r"'loss' is not an observable .* it has \['trace_hessian'\]"):
        FAST["loss"]
    with pytest.raises(TypeError, match="not iterable"):
        list(FAST)  # pyright: ignore


def test_at_gives_the_nearest_saved_time() -> None:
    moment = FAST.at(0.6)
    assert moment.t == 0.5
    assert moment.params["u"].shape == (8, 2, 3)
    np.testing.assert_array_equal(moment.params["u"], 0.5)
    assert moment.params["v"].shape == (8,)
    assert moment.v is None
    np.testing.assert_array_equal(moment.metrics["trace_hessian"], FAST["trace_hessian"][:, 2])
    assert FAST.at(1.0 + 1e-12).t == 1.0
    for t in (-0.1, 1.1, np.nan, "0.5", None):
        with pytest.raises(ValueError, match=r"t=.* is not within the run, t from 0 to 1"):
            FAST.at(t)  # pyright: ignore


def test_a_trajectory_draws_an_observable() -> None:
    import matplotlib.pyplot as plt

    axes = FAST.plot()
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), FAST["trace_hessian"].mean(axis=0))
    with pytest.raises(ValueError, match="name='loss' is not an observable"):
        FAST.plot(name="loss")
    plt.close("all")

"""The notebooks of examples/: each belongs to its script, was executed without an error, and runs."""

import importlib.util
import operator
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import slowsde as ss

pytest.importorskip("jupytext", reason='pip install "slowsde[examples]"')
FOLDER = Path(__file__).parents[2] / "examples"


def runner() -> ModuleType:
    """examples/run.py as a module."""
    spec = importlib.util.spec_from_file_location("examples_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = runner()


@pytest.mark.parametrize("script", RUN.scripts(), ids=lambda path: path.stem)
def test_notebooks_belong_to_their_scripts(script: Path) -> None:
    path = script.with_suffix(".ipynb")
    assert RUN.is_current(script), f"{path.name} is missing or old: python examples/run.py {script.name[:2]}"
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a = 1"', '"a = 2"'),  # a cell that was edited
        ('"execution_count": 1', '"execution_count": null'),  # that was never run
        ('"execution_count": 1', '"execution_count": 7'),  # that was run out of order
        ('"output_type": "stream"', '"output_type": "error", "ename": "E", "evalue": "", "traceback": []'),
    ],
)
def test_an_old_notebook_is_noticed(old: str, new: str, tmp_path: Path) -> None:
    script, path = tmp_path / "01_x.py", tmp_path / "01_x.ipynb"
    script.write_text("# %% [markdown]\n# # A title\n\n# %%\na = 1\n")
    assert not RUN.is_current(script)
    text = (
        '{"metadata": {}, "nbformat": 4, "nbformat_minor": 5, "cells": ['
        '{"id": "a", "cell_type": "markdown", "metadata": {}, "source": "# A title"}, '
        '{"id": "b", "cell_type": "code", "metadata": {}, "source": "a = 1", "execution_count": 1, '
        '"outputs": [{"output_type": "stream", "name": "stdout", "text": ""}]}]}'
    )
    path.write_text(text)
    assert RUN.is_current(script)
    assert old in text
    path.write_text(text.replace(old, new))
    assert not RUN.is_current(script)


@pytest.mark.parametrize("script", RUN.scripts(), ids=lambda path: path.stem)
def test_what_notebooks_call_exists(script: Path) -> None:
    # A constant once left `ss.plot` unnoticed: notebooks are run by the long tests alone.
    for name in set(re.findall(r"\bss((?:\.\w+)+)", script.read_text(encoding="utf-8"))):
        assert operator.attrgetter(name[1:])(ss) is not None


def test_a_cell_ends_at_its_marker_alone(tmp_path: Path) -> None:
    script = tmp_path / "01_x.py"
    header = "# ---\n# jupyter:\n#   jupytext:\n#     text_representation:\n#       format_name: percent\n# ---\n\n"
    script.write_text(header + "# %% [markdown]\n# # A title\n\n# %%\na = 1\n\nb = 2\n")
    assert RUN.cells(RUN.source(script)) == [("markdown", "# A title"), ("code", "a = 1\n\nb = 2")]


def test_names_choose_scripts() -> None:
    assert [path.name[:2] for path in RUN.scripts(["02", "01"])] == ["01", "02"]
    with pytest.raises(ValueError, match="99"):
        RUN.scripts(["99"])


@pytest.mark.slow
@pytest.mark.parametrize("script", RUN.scripts(), ids=lambda path: path.stem)
def test_they_run(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nbclient", reason='pip install "slowsde[examples]"')
    before = script.with_suffix(".ipynb").read_bytes()
    assert RUN.main(["--quick", script.name]) == 0, capsys.readouterr().out
    assert script.with_suffix(".ipynb").read_bytes() == before


@pytest.mark.slow
def test_a_failing_cell_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nbclient", reason='pip install "slowsde[examples]"')
    monkeypatch.setattr(RUN, "FOLDER", tmp_path)
    (tmp_path / "01_bad.py").write_text("# %%\nraise RuntimeError('broken on purpose')\n")
    good = f"import os, sys\nassert sys.executable == {sys.executable!r}\nassert 'SLOWSDE_QUICK' not in os.environ\n"
    (tmp_path / "02_good.py").write_text("# %%\n" + good)
    assert RUN.main([]) == 1
    assert "broken on purpose" in capsys.readouterr().out
    assert not (tmp_path / "01_bad.ipynb").exists()
    assert RUN.is_current(tmp_path / "02_good.py")

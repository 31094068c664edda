"""Every public function has an example in its docstring, and the examples run and print what they show."""

import contextlib
import doctest
import functools
import inspect
import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from project.test_site import documented, found

ROOT = Path(__file__).parents[2]
SETUP = re.compile(r"^\.\. code-block:: python\n\n(.*?)(?=^\S)", re.M | re.S)
NEEDS = {"torch": "torchax", "optax": "optax"}  # what an example imports -> the package that it takes
# Runs of an example's own take seconds each to compile; the two that all share are compiled once.
RUN = re.compile(
    r"\b(simulate|run_discrete|resume|stationary_point|predict|convergence_study|weak_estimate|conventional_sde"
    r"|backward_error|derive)\("
)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Shown(doctest.OutputChecker):
    """Compares what is shown: an example that shows nothing only has to run."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def examples(name: str, value: Any) -> list[doctest.DocTest]:
    """Those of a docstring and of the methods, if it is a class."""
    return [test for test in doctest.DocTestFinder().find(value, name, globs={}) if test.examples]


EXAMPLES = {test.name: test for name in documented() for test in examples(name, found(name))}


def source(test: doctest.DocTest) -> str:
    return "".join(example.source for example in test.examples)


def by_length(tests: dict[str, doctest.DocTest]) -> list[Any]:
    """Their names; those that run something are for the longer studies."""
    slow = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=slow[RUN.search(source(test)) is not None]) for name, test in tests.items()]


@functools.cache
def names() -> dict[str, Any]:
    """What the page of the reference defines before all examples."""
    setup = SETUP.search((ROOT / "docs" / "reference" / "index.rst").read_text())
    assert setup is not None
    defined: dict[str, Any] = {}
    exec(inspect.cleandoc(setup[1]), defined)
    return defined


def failures(test: doctest.DocTest) -> str:
    """What an example does otherwise than it shows; empty if nothing."""
    test.globs = names().copy()
    told = io.StringIO()
    doctest.DocTestRunner(Shown(), optionflags=OPTIONS).run(test, out=told.write)
    return told.getvalue()


@pytest.mark.parametrize("name", by_length(EXAMPLES))
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word, package in NEEDS.items():
        if f"import {word}" in source(EXAMPLES[name]) and find_spec(package) is None:
            pytest.skip(f"needs {package}")
    monkeypatch.chdir(tmp_path)  # some write files
    with mpl.rc_context({"backend": "agg"}), contextlib.redirect_stderr(io.StringIO()):
        assert failures(EXAMPLES[name]) == ""


def test_every_public_function_has_an_example() -> None:
    without = [name for name in documented() if inspect.isfunction(found(name)) and name not in EXAMPLES]
    assert without == []


@pytest.mark.parametrize(
    ("text", "told"), [(">>> 1 + 1\n3", "Expected"), (">>> nowhere", "NameError"), (">>> 1 + 1", "")]
)
def test_an_example_that_shows_something_else_is_noticed(text: str, told: str) -> None:
    made = doctest.DocTestParser().get_doctest(text, {}, "made", None, None)
    assert told in failures(made)
    assert bool(told) == bool(failures(made))

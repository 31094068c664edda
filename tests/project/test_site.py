"""The documentation site: no public name is missing or undocumented, no error of the FAQ is made up.

The pages are read as they are; building them, strictly, is `python -m sphinx -W -c docs . build/site`.
"""

import ast
import importlib
import inspect
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "ext"))
typesetting = importlib.import_module("typeset")

MODULES = ("slowsde", "manifolds", "slowsde.metrics", "slowsde.metrics.estimated", "slowsde.plot")


def public_names(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    own = [n for n, o in vars(loaded).items() if n[0] != "_" and getattr(o, "__module__", "") == module]
    names = getattr(loaded, "__all__", own)
    return {f"{module}.{name}" for name in names if not isinstance(getattr(loaded, name), ModuleType)}


def documented() -> list[str]:
    """What the pages of the reference have, in order."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.rst"))
    return [name for page in pages for name in re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.M)]


def found(name: str) -> object:
    module = max((m for m in MODULES if name.startswith(m + ".")), key=len)
    return getattr(importlib.import_module(module), name.removeprefix(module + "."))


def texts_below(module: str) -> set[str]:
    """Names of a package below whose assignment there is a text, in the place of a docstring."""
    names = set()
    for path in Path(inspect.getfile(importlib.import_module(module))).parent.glob("*.py"):
        body = ast.parse(path.read_text()).body
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.Assign) and isinstance(following, ast.Expr):
                names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return names


def test_every_public_name_is_on_one_page() -> None:
    names = set().union(*map(public_names, MODULES))
    assert names - set(documented()) == set(), "add them to a page of docs/reference/"
    assert set(documented()) - names == set()
    assert [name for name, count in Counter(documented()).items() if count > 1] == []


def test_every_public_name_has_a_docstring() -> None:
    for name in documented():
        value, module = found(name), name.rpartition(".")[0]
        if inspect.isclass(value) or inspect.isfunction(value):
            # Not one that a dataclass makes of its fields, nor that of a base class.
            doc = value.__doc__ if inspect.isfunction(value) else vars(value).get("__doc__")
            assert doc, name
            assert not doc.startswith(f"{name.rpartition('.')[2]}("), name
        else:
            assert name.rpartition(".")[2] in texts_below(module), name


def test_every_page_is_in_the_contents() -> None:
    docs = ROOT / "docs"
    home, reference = (docs / "index.md").read_text(), (docs / "reference" / "index.rst").read_text()
    gallery = (docs / "gallery.md").read_text()
    for page in docs.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", home, re.M), page
    for page in (docs / "reference").glob("*.rst"):
        assert page.stem == "index" or re.search(rf"^   {page.stem}$", reference, re.M), page
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        assert gallery.count(f"../examples/{notebook.stem}") >= 2, notebook  # a card and an entry


def messages() -> Iterator[str]:
    """Every text in the code, as it is once its pieces are joined, and the names of the ends of a run."""
    for path in [*(ROOT / "slowsde").rglob("*.py"), *(ROOT / "manifolds").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    yield from importlib.import_module("slowsde").Result.__members__


def test_the_errors_of_the_faq_are_those_of_the_code() -> None:
    quoted = re.findall(r"^### `([^`]+)`$", (ROOT / "docs" / "faq.md").read_text(), re.M)
    assert len(quoted) > 30
    said = list(messages())
    assert [words for words in quoted if not any(words in text for text in said)] == []


@pytest.mark.parametrize(
    ("written", "typeset"),
    [
        ("dζ = Π S B dW + ½ ∂²Φ_S dt", r"d\zeta = \Pi S B dW + \tfrac12 \partial ^{2}\Phi _{S} \,dt"),
        ("‖g‖_{1,ε} = Σ_i √(g_i²+ε)", r"\|g\|_{1,\varepsilon} = \sum _{i} \sqrt{g_{i}^{2}+\varepsilon}"),
        ("mean of f over t1/η² steps", r"\text{mean of } f \text{ over } t_1/\eta ^{2} \text{ steps}"),
        ("−½ S^½(H')⁺S^½ T[Σ_∥]", r"-\tfrac12 S^{1/2}(H')^{+}S^{1/2} T[\Sigma _{\parallel}]"),
    ],
)  # fmt: skip
def test_formulas_are_typeset(written: str, typeset: str) -> None:
    assert typesetting.latex(written) == typeset


def test_wide_formulas_take_rows() -> None:
    wide = typesetting.latex("a = b" + "   " + "c" * 80)
    assert wide.startswith(r"\begin{gathered}")
    assert wide.count(r"\\") == 1

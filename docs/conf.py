"""The site: `python -m sphinx -W -c docs . build/site` from the root of the repository, read at build/site/index.html.

The root is the source folder, so that the pages of docs/, the notebooks of examples/ and the links between them are
those of the repository. Notebooks are shown as committed, not executed.
"""

import importlib.util
import inspect
import re
import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "ext"))

from typeset import latex  # noqa: E402  (a file of ext/)

project = "slowsde"
author = "the slowsde authors"
copyright = "the slowsde authors, Apache-2.0"
version = release = installed("slowsde")

root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/**.rst", "examples/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["build", ".venv", "**/.ipynb_checkpoints"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_copybutton",
    "docstrings",
]

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_dmath_double_inline = True  # $$...$$ within a paragraph, as notebooks have it
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
add_module_names = False
# Copied examples run as they are, without their prompts.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

highlight_language = "none"
html_theme = "furo"
html_title = "slowsde"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_show_sphinx = False
html_copy_source = False
templates_path: list[str] = []
mathjax_path = "mathjax/tex-svg.js"
TYPESET = ("docs/index", "docs/guide")


def carry_mathjax(app: Sphinx) -> None:
    """MathJax from its package: one file, which needs no network and no fonts."""
    if app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec is not None
    assert spec.origin is not None
    target = app.outdir / "_static" / mathjax_path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(spec.origin).parent / "static" / mathjax_path, target)


def from_readme(text: str, first: str, last: str) -> str:
    """The part of the README from `first` to before `last`, its links as from this folder."""
    start = text.index(first)
    part = text[start : text.index(last, start + len(first))]
    part = re.sub(r"\]\((?!docs/|https?:)", "](../", part)
    return part.replace("](docs/", "](")


def expand_readme(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts parts of the README where a page says `{{readme: FIRST ... LAST}}`; links to it lead to the home page."""
    readme = (HERE.parent / "README.md").read_text()
    source[0] = re.sub(
        r"^\{\{readme: (.*?) \.\.\. (.*?)\}\}$", lambda m: from_readme(readme, m[1], m[2]), source[0], flags=re.M
    )
    if docname.startswith("docs/") or docname == "CONTRIBUTING":
        source[0] = source[0].replace("](../README.md)", "](index.md)").replace("](README.md)", "](docs/index.md)")


def typeset(app: Sphinx, docname: str, source: list[str]) -> None:
    """Indented blocks of the README and the guide are formulas in Unicode, as they must read on other sites too."""
    del app
    if docname in TYPESET:
        source[0] = re.sub(r"(?<=\n\n)(?: {4,}\S.*\n)+", lambda m: _display(m[0]), source[0])


def _display(block: str) -> str:
    margin = " " * (2 if block.startswith(" " * 6) else 0)  # within an item of a list
    lines = ["```{math}", *latex(inspect.cleandoc(block)).split("\n"), "```"]
    return "".join(f"{margin}{line}\n" for line in lines)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", carry_mathjax)
    app.connect("source-read", expand_readme)
    app.connect("source-read", typeset)

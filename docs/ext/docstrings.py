"""Docstrings of the house as reStructuredText: sections, formulas, names in backticks, examples.

A docstring is plain text that is read in a terminal. Here its indented formulas are typeset (`typeset`), its sections
(Args, Attributes, Returns, Raises, Example) become fields, and what stands in backticks becomes a link where it is a
public name, code elsewhere.
"""

import ast
import importlib
import inspect
import itertools
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging
from typeset import latex

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example|Examples)(?: \(([^)]*)\))?:(.*)$")
ENTRY = re.compile(r"^(\w+) {2,}(\S.*)$")
MODULES = ("slowsde", "manifolds", "slowsde.metrics", "slowsde.metrics.estimated", "slowsde.plot")
log = logging.getLogger(__name__)


def public_names(module: str) -> list[str]:
    """The public names of a module that are no modules: what it lists, or what it defines."""
    loaded = importlib.import_module(module)
    own = [n for n, o in vars(loaded).items() if n[0] != "_" and getattr(o, "__module__", "") == module]
    names = getattr(loaded, "__all__", own)
    return sorted({n for n in names if not isinstance(getattr(loaded, n), ModuleType)})


def known_names() -> dict[str, str]:
    """What may stand in backticks -> the name it is documented under."""
    known: dict[str, str] = {}
    for module in MODULES:
        for name in public_names(module):
            full = f"{module}.{name}"
            known |= {full: full, f"{module.split('.')[-1]}.{name}": full}
            if module in ("slowsde", "manifolds"):
                known.setdefault(name, full)
            target = getattr(importlib.import_module(module), name)
            for member, value in vars(target).items() if inspect.isclass(target) else ():
                if member[0] != "_" and (inspect.isfunction(value) or isinstance(value, property)):
                    known |= {f"{name}.{member}": f"{full}.{member}", f"{full}.{member}": f"{full}.{member}"}
    return known


def as_rst(doc: str, known: dict[str, str], package: str) -> list[str]:
    """The docstring, in reStructuredText."""
    out: list[str] = []
    lines = doc.split("\n")
    while lines:
        section = SECTION.match(lines[0])
        if section:
            lines.pop(0)
            out += _section(section, _indented(lines), known, package)
        elif lines[0].startswith("    "):
            out += _block("\n".join(_indented(lines)), known, package)
        else:
            out += _inline("\n".join(_paragraph(lines)), known, package).split("\n")
    return out


def _paragraph(lines: list[str]) -> list[str]:
    """Takes the lines to the next blank one, that included, or to an indented block or a section; one at least."""
    taken = [lines.pop(0)]
    while lines and taken[-1].strip() and not (lines[0].startswith("    ") or SECTION.match(lines[0])):
        taken.append(lines.pop(0))
    return taken


def _indented(lines: list[str]) -> list[str]:
    """Takes the indented block that `lines` begin with, dedented."""
    taken: list[str] = []
    while lines and (not lines[0].strip() or lines[0].startswith("    ")):
        taken.append(lines.pop(0))
    return textwrap.dedent("\n".join(taken)).strip("\n").split("\n")


def _section(header: re.Match[str], body: list[str], known: dict[str, str], package: str) -> list[str]:
    name, extra, first = header.groups()
    if name.startswith("Example"):
        code = [f"    {line}" if line else "" for line in body]
        return ["", ".. rubric:: Example", "", ".. code-block:: pycon", "", *code, ""]
    if name in ("Args", "Attributes"):
        title = f"{name} ({extra})" if extra else name
        return ["", f":{title}:", *_entries(body, known, package), ""]
    text = " ".join([first.strip(), *(line.strip() for line in body)]).strip()
    return ["", f":{name}: {_inline(text, known, package)}", ""]


def _entries(body: list[str], known: dict[str, str], package: str) -> list[str]:
    out: list[str] = []
    for entry in re.split(r"\n(?=\S)", "\n".join(body)):
        names, _, text = entry.partition(":")
        shown = _inline(textwrap.dedent(text.strip()), known, package)
        lines = [line.strip() for line in shown.split("\n")]
        title = _escaped(" ".join(names.split()))
        out += [f"    **{title}**", *(f"        {line}" if line else "" for line in lines)]
    return out


def _block(block: str, known: dict[str, str], package: str) -> list[str]:
    """A formula, or a list of names with what they are."""
    rows = block.split("\n")
    if ENTRY.match(rows[0]) and sum(bool(ENTRY.match(row)) for row in rows) > 1:
        out: list[str] = [""]
        for row in rows:
            entry = ENTRY.match(row)
            text = entry[2] if entry else row.strip()
            out += ([f"``{entry[1]}``"] if entry else []) + [f"    {_inline(text, known, package)}"]
        return [*out, ""]
    return ["", ".. math::", "", *textwrap.indent(latex(block), "    ").split("\n"), ""]


def _inline(text: str, known: dict[str, str], package: str) -> str:
    parts = re.split(r"(`[^`]+`)", text)
    marked = [_span(" ".join(p[1:-1].split()), known, package) if p[:1] == "`" else _escaped(p) for p in parts]
    # A letter right behind a name in backticks (`load`ed) would undo the markup.
    return "".join(rf"\ {m}" if n and m[:1].isalnum() else m for n, m in enumerate(marked))


def _span(name: str, known: dict[str, str], package: str) -> str:
    full = known.get(re.sub(r"\(.*\)$", "", name).replace("ss.", "slowsde.").replace("mf.", "manifolds."))
    # `project` and `limit` are arguments in one package and functions of the other.
    elsewhere = full is not None and full.split(".")[0] != package and "." not in name and name.islower()
    return f"``{name}``" if full is None or elsewhere else f":py:obj:`{name} <{full}>`"


def _escaped(text: str) -> str:
    return re.sub(r"([\\*|_])", r"\\\1", text)


def constant_docs(module: str) -> dict[str, str]:
    """Name -> the text below the assignment, in all files of a package: constants have no docstring of their own."""
    found: dict[str, str] = {}
    for path in Path(inspect.getfile(importlib.import_module(module))).parent.glob("*.py"):
        body = ast.parse(path.read_text()).body
        for statement, following in itertools.pairwise(body):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(statement, ast.Assign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                found |= {t.id: inspect.cleandoc(text.value) for t in statement.targets if isinstance(t, ast.Name)}
    return found


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """`autodoc-process-docstring`."""
    del app, options
    module, _, last = name.rpartition(".")
    doc = constant_docs(module).get(last, "") if what == "data" else "\n".join(lines)
    if not doc.strip():
        log.warning("%s has no docstring", name)
    lines[:] = [*as_rst(inspect.cleandoc(doc), known_names_once(), name.split(".")[0]), ""]


_known: dict[str, str] = {}


def known_names_once() -> dict[str, str]:
    if not _known:
        _known.update(known_names())
    return _known


def link_public(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """`missing-reference`: types of private modules lead to the public name; public names that no page has warn."""
    if node.get("refdomain") != "py":
        return None
    full = known_names_once().get(node["reftarget"].split(".")[-1])
    if full and node.get("reftype") == "class":
        return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)
    if node.get("reftype") == "obj" and node["reftarget"].split(".")[0] in ("slowsde", "manifolds"):
        log.warning("%s is on no page of the reference", node["reftarget"], location=node)
    return None


def shorten_types(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """`autodoc-process-signature`: types by the names that the code has for them."""
    del app, what, name, obj, options
    return _short(signature), _short(returns)


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    text = text.replace("jaxlib._jax.Array", "Array").replace("~jaxtyping.", "")
    return re.sub(r"Key\[Array, ''\](?: \| UInt32\[Array, '\d'\])*", "PRNGKeyArray", text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("missing-reference", link_public)
    return {"parallel_read_safe": True}

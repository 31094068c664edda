"""README, guide and first steps: their Python blocks run and print what they show, and their links lead somewhere."""

import contextlib
import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slowsde as ss

ROOT = Path(__file__).parents[2]
STORIES = ("README.md", "docs/guide.md", "docs/getting_started.md")  # each one script
MODELS = "docs/your_model.md"  # a script a section
PAGES = (*STORIES, MODELS)
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```\n(?P<shown>.*?)^```$)?", re.M | re.S)


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Every Python block of a page with the bare block that follows it, which shows what it prints."""
    return [(match["code"], match["shown"]) for match in BLOCK.finditer(text)]


def same(printed: str, shown: str) -> bool:
    """Whether two outputs have the same words, and numbers that agree to 5 % (rounding differs between machines)."""
    left, right = (re.split(r"[\s(),%]+", text.strip()) for text in (printed, shown))
    return len(left) == len(right) and all(_same_word(a, b) for a, b in zip(left, right, strict=True))


def _same_word(a: str, b: str) -> bool:
    try:
        return bool(np.isclose(float(a), float(b), rtol=0.05, atol=1e-9))
    except ValueError:
        return a == b


def run(text: str) -> None:
    """Runs the blocks of a page in order, in one namespace; AssertionError if one prints something else."""
    names: dict[str, Any] = {}
    for code, shown in blocks(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<page>", "exec"), names)
        if shown is not None:
            assert same(printed.getvalue(), shown), f"{code}\nprints\n{printed.getvalue()}\ninstead of\n{shown}"


@pytest.mark.slow
@pytest.mark.parametrize("page", STORIES)
def test_their_code_prints_what_they_show(page: str) -> None:
    run((ROOT / page).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("section", (ROOT / MODELS).read_text().split("\n## ")[1:], ids=lambda s: s.split("\n")[0])
def test_every_kind_of_model_runs(section: str) -> None:
    for name, package in {"PyTorch": "torchax", "Flax": "flax", "Haiku": "haiku"}.items():
        if section.startswith(name) and find_spec(package) is None:
            pytest.skip(f"needs {package}")
    run(section)


@pytest.mark.parametrize("page", PAGES)
def test_they_name_what_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for chain in sorted(set(re.findall(r"\bss((?:\.[a-z_]\w*)+)", text, re.I))):
        found: Any = ss
        for name in chain[1:].split("."):
            assert hasattr(found, name), f"{page}: ss{chain}"
            found = getattr(found, name)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text):
        target = link[0] or link[1]
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_the_number_of_blocks_is_that_of_their_fences() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert len(blocks(text)) == text.count("```python") > 0


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(f'{1.0:.2f} wide')\n```\n\n```\n1.10 wide\n```\n",  # another number
        "```python\nprint(f'{1.0:.2f} wide')\n```\n\n```\n1.00 high\n```\n",  # another word
        "```python\nprint(1.0)\n```\n\n```\n1.0 2.0\n```\n",  # less than shown
        "```python\nx = 1\n```\n\n```python\nprint(x + 1)\n```\n\n```\n1\n```\n",  # the second block
    ],
)
def test_a_page_that_shows_something_else_is_noticed(page: str) -> None:
    with pytest.raises(AssertionError, match="instead of"):
        run(page)
    run(page.replace("1.10", "1.00").replace("high", "wide").replace("1.0 2.0", "1.0").replace("\n1\n", "\n2\n"))

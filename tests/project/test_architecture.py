"""The house: every import points down the floors or stays on its own, and no two files need each other.

Imports for type checkers and imports within functions count like any other: what only looks lazily upwards still
cannot be read, tested or moved without what lies above.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up. A floor is a folder, or a file that stands between folders.
FLOORS = (
    "manifolds/support",
    "manifolds/metrics",
    "manifolds/normal",
    "manifolds/losses",
    "manifolds/maps",
    "manifolds/second_order",
    "manifolds/geometry",
    "manifolds",
    "slowsde/support",
    "slowsde/plot",
    "slowsde/problems",
    "slowsde/optimizers",
    "slowsde/dynamics",
    "slowsde/derivation",
    "slowsde/metrics",
    "slowsde/runs",
    "slowsde/studies",
    "slowsde",  # the public names
    "slowsde/demo",
    "slowsde/__main__",
)


def files() -> list[Path]:
    return [path.relative_to(ROOT) for top in ("manifolds", "slowsde") for path in sorted((ROOT / top).rglob("*.py"))]


def floor(path: Path) -> int:
    """The number of the floor of a file: that of the longest name that it begins with."""
    name = path.with_suffix("").as_posix().removesuffix("/__init__")
    return max((i for i, f in enumerate(FLOORS) if name == f or name.startswith(f + "/")), key=lambda i: len(FLOORS[i]))


def imports(path: Path, source: str) -> Iterator[Path]:
    """The files of the two packages that a file imports from, wherever in it."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name.split("."), []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            names = [(base + (node.module.split(".") if node.module else []), [alias.name for alias in node.names])]
        else:
            continue
        for module, members in names:
            if module and module[0] in ("manifolds", "slowsde"):
                found = {_file([*module, member]) for member in members} - {None} or {_file(module)}
                yield from (target for target in found if target is not None and target != path)


def _file(module: list[str]) -> Path | None:
    path = Path(*module)
    candidates = path.with_suffix(".py"), path / "__init__.py"
    return next((candidate for candidate in candidates if (ROOT / candidate).is_file()), None)


def upwards(sources: dict[Path, str]) -> list[str]:
    return [
        f"{path} -> {target}"
        for path, source in sources.items()
        for target in imports(path, source)
        if floor(target) > floor(path)
    ]


def sources() -> dict[Path, str]:
    return {path: (ROOT / path).read_text() for path in files()}


def test_no_import_points_upwards() -> None:
    assert upwards(sources()) == []


def test_no_two_files_need_each_other() -> None:
    graph = {path: set(imports(path, source)) for path, source in sources().items()}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_every_floor_is_there_and_says_what_it_knows() -> None:
    for name in FLOORS:
        module = ROOT / name / "__init__.py" if (ROOT / name).is_dir() else ROOT / f"{name}.py"
        assert ast.get_docstring(ast.parse(module.read_text())), module


@pytest.mark.parametrize(
    "mutant",
    [
        "from slowsde.studies.validity import validity",
        "from ..runs import simulate",
        "def late():\n    from ..runs.trajectory import Trajectory",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..metrics.metric import Metric",
        "import slowsde.demo",
        "import slowsde as ss",
    ],
)
def test_an_import_that_points_upwards_is_seen(mutant: str) -> None:
    path = Path("slowsde/dynamics/slow_sde.py")
    assert len(upwards({path: mutant})) == 1
    assert upwards({Path("manifolds/geometry.py"): "from slowsde.support import arguments"})


def test_a_circle_is_seen() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({Path("a.py"): {Path("b.py")}, Path("b.py"): {Path("a.py")}}).prepare()

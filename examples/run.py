"""Run the notebooks of this folder: numbered scripts in jupytext's percent format, each beside its executed notebook.

    python examples/run.py [--quick] [name ...]

Every script (or those whose names begin with one of the given, such as `02`) is executed in this interpreter's kernel
and its notebook written beside it, outputs and all. With --quick the scripts find SLOWSDE_QUICK in their environment
and take fewer seeds, paths and steps; nothing is written then, it only shows that they run. Needs the `examples` extra.
"""

import argparse
import base64
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat

FOLDER = Path(__file__).parent
FLAG = "SLOWSDE_QUICK"


def scripts(names: list[str] | None = None) -> list[Path]:
    """The numbered scripts, in order: all, or those that begin with one of `names`; ValueError if one begins none."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    for name in names or []:
        if not any(path.name.startswith(name) for path in found):
            raise ValueError(f"{name!r} begins no script; there are {', '.join(path.stem for path in found)}.")
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def percent(script: Path) -> Any:
    """The script's cells. By itself jupytext takes them for another format, with a cell at every blank line."""
    return jupytext.read(script, fmt="py:percent")


def source(script: Path) -> Any:
    """The script as a notebook without outputs; cells are numbered, so that running again changes outputs alone."""
    notebook = percent(script)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def cells(notebook: Any) -> list[tuple[str, str]]:
    """(type, source) of every cell: what a script and its notebook have in common."""
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def is_current(script: Path) -> bool:
    """Whether the notebook beside `script` has its cells, and was executed from first to last without an error."""
    path = script.with_suffix(".ipynb")
    if not path.exists():
        return False
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    executed = [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    failed = any(output.output_type == "error" for cell in code for output in cell.outputs)
    return executed and not failed and cells(notebook) == cells(percent(script))


def in_palette(png: str) -> str:
    """A figure, in base64, on white and in 256 colours: a third of the bytes, which Git keeps for ever."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    small = io.BytesIO()
    flat = Image.alpha_composite(white, image).convert("RGB")
    flat.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def execute(script: Path, quick: bool) -> Any:
    """The executed notebook; `nbclient.exceptions.CellExecutionError` if a cell fails."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = source(script)
    here = KernelSpecManager(kernel_dirs=[])  # of this interpreter, whatever kernels the user has installed
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=here)
    environment = {name: value for name, value in os.environ.items() if name != FLAG} | ({FLAG: "1"} if quick else {})
    client = NotebookClient(
        notebook, km=manager, timeout=1800, coalesce_streams=True, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.owns_km = True  # it shuts the kernel down
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if "slowsde-progress" not in str(out.get("data", ""))]
            for out in cell.outputs:
                if "image/png" in out.get("data", {}):
                    out["data"]["image/png"] = in_palette(out["data"]["image/png"])
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Executes the chosen scripts; 1 if one fails, with its error printed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 02; all if there are none")
    parser.add_argument("--quick", action="store_true", help="few seeds and paths; writes nothing")
    options = parser.parse_args(arguments)
    failures = 0
    for script in scripts(options.names):
        begun = time.perf_counter()
        try:
            notebook = execute(script, options.quick)
        except Exception as error:  # the others still run
            failures += 1
            print(f"{script.stem}: FAILED\n{error}", flush=True)
            continue
        if not options.quick:
            nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(f"{script.stem}: {time.perf_counter() - begun:.0f} s", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())

"""`import slowsde` loads what runs need and nothing that only pictures, formulas or statistics do."""

import subprocess
import sys


def test_import_is_small() -> None:
    """Half a second of SciPy and a fifth of one of SymPy were paid by every script."""
    code = """
import sys
import jax, diffrax
before = set(sys.modules)
import slowsde
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}), sep="\\n")
"""
    new = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert "slowsde" in new
    assert not new & {"sympy", "matplotlib", "scipy", "xarray", "sklearn", "optax", "flax", "IPython", "tqdm"}

"""The command line."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_info_names_versions_devices_and_precision() -> None:
    found = subprocess.run([sys.executable, "-m", "slowsde", "info"], capture_output=True, text=True, check=True).stdout
    for word in ("diffrax", "jax", "cpu", "float64"):
        assert word in found


@pytest.mark.slow
def test_demo_writes_two_figures_and_agrees_with_the_discrete_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slowsde", "demo", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {path.name for path in tmp_path.glob("*.png")} == {"sparse_regression.png", "digits.png"}
    assert all(path.stat().st_size > 20_000 for path in tmp_path.glob("*.png"))
    assert "LARGE gap" not in found
    assert found.count("agree") + found.count("small gap") >= 12

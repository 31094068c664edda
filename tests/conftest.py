"""Keeps the number of compiled programs of a long test run within what the system allows."""

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

MAPS = Path("/proc/self/maps")
MANY = 20_000  # Linux allows a process 65 530 mappings of memory; a program compiled for a CPU takes several


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget compiled programs after a file when they are many: XLA aborts where it is refused memory for another."""
    yield
    if MAPS.exists() and MAPS.read_text().count("\n") > MANY:
        jax.clear_caches()
        gc.collect()

"""Compiled programs within what the system allows a process to map."""

import gc
import time
from pathlib import Path

import jax

# Every program that XLA compiles for a CPU takes about a dozen mappings and keeps them: a fresh loss with its run took
# 870, and after some 80 of them the process died of SIGSEGV at Linux's limit of 65 530. At half of it 2 GB are taken.
SHARE = 0.5
PAUSE = 1.0  # seconds between looks: to count 6000 mappings takes 3 ms, and to compile as many programs a minute
MAPPINGS, LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_looked = -PAUSE


def spare_mappings() -> bool:
    """Forget all compiled programs (`jax.clear_caches`) once they take half of what the system allows.

    To be called between computations; whether it was done. What is needed again is compiled again. On systems that do
    not tell (other than Linux) nothing is done.
    """
    global _looked
    now = time.monotonic()
    if now - _looked < PAUSE:
        return False
    _looked = now
    count, limit = mappings(), mappings_allowed()
    if count is None or limit is None or count < SHARE * limit:
        return False
    # JAX cannot tell which of them will be asked for again: a loss that is gone lives on as the key of its programs.
    jax.clear_caches()
    gc.collect()
    return True


def mappings() -> int | None:
    """How many memory mappings this process has; None where the system does not tell."""
    try:
        return MAPPINGS.read_bytes().count(b"\n")
    except OSError:
        return None


def mappings_allowed() -> int | None:
    """How many it may have; None where the system does not tell."""
    try:
        return int(LIMIT.read_text())
    except (OSError, ValueError):
        return None

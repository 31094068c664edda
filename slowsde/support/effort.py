"""How much work and memory a run would take, told before it starts: a run without an end is refused with its number."""

import os
from pathlib import Path

MOST_STEPS = 10**9  # a day of one small problem
UNKNOWN = 16 * 2**30  # bytes, where the system does not tell how many it has


def check_steps(steps: float, max_steps: int, asked: str, remedy: str) -> None:
    """ValueError where a run that was asked for as `asked` would take more than `max_steps` steps."""
    if not steps <= max_steps:
        raise ValueError(
            f"{asked} would take {steps:.3g} steps, more than max_steps={max_steps:.3g}: {remedy}, or raise max_steps."
        )


def check_memory(needed: dict[str, tuple[float, str]], memory: float | None) -> None:
    """ValueError where what a run needs, {what: (bytes, remedy)}, is together more than `memory` bytes.

    None for what this machine has.
    """
    allowed = machine_memory() if memory is None else memory
    total = sum(size for size, _ in needed.values())
    if total > allowed:
        what, (size, remedy) = max(needed.items(), key=lambda item: item[1][0])
        bound = "this machine has" if memory is None else "memory= allows"
        raise ValueError(
            f"{what} would take {in_units(size)}, and {bound} {in_units(allowed)}: {remedy}, or raise the bound by "
            f"memory={10 ** len(str(int(total))):.0e} (bytes)."
        )


def grid_needed(length: float, dt: float) -> dict[str, tuple[float, str]]:
    """What a grid of fixed steps takes, with the keys of its noise."""
    return {f"{length / dt:.3g} steps of dt={dt:g}": (48.0 * length / dt, "a larger step, or a shorter run")}


def machine_memory() -> float:
    """The bytes of memory that this process may have, as far as the system tells."""
    found = [_physical(), _of_container()]
    return min((size for size in found if size is not None), default=UNKNOWN)


def _physical() -> float | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_container() -> float | None:
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max" where there is no limit
        return None


def in_units(size: float) -> str:
    """Bytes in the largest unit of which there is one at least: 1.6e12 is "1.6 TB"."""
    for unit, worth in (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= worth:
            return f"{size / worth:.3g} {unit}"
    return f"{size:.3g} bytes"

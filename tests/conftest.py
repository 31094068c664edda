"""How the suite compiles, which is most of its seconds: briefly, and no more programs than the system allows.

What is run for milliseconds need not be optimized, so that XLA leaves most of it out: its older code for fused
operations, none of LLVM's passes, one piece of code a program. A test whose claim is about bits is marked
`as_users`, and compiled as a user's program is; so are the longer studies, all tests with `--as-users`, and every
process that a test starts.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

try:  # No public place takes options for all programs: where this one has moved, tests compile as users do.
    from jax._src import compiler
except ImportError:
    compiler = None

MAPS = Path("/proc/self/maps")
MANY = 20_000  # Linux allows a process 65 530 mappings of memory; a program compiled for a CPU takes several
# A program of a thousand lines: 5.2 s by default, 2.6 s by the library's own options, half a second by these. What
# runs takes up to twice as long; a third less in all, over a dozen files.
BRIEF = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-users", action="store_true", help="compile every program as users get it")


def pytest_configure(config: pytest.Config) -> None:
    # Tracing makes many objects that live on: to look for garbage as often as Python does takes a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    wanted = not config.option.as_users and config.option.markexpr == "not slow"
    if not wanted or not hasattr(compiler, "get_compile_options") or not known(BRIEF):
        return
    plain = compiler.get_compile_options

    def brief(*args: Any, env_options_overrides: Any = None, **kwargs: Any) -> Any:
        options = env_options_overrides or {}
        return plain(*args, env_options_overrides=options if Compiling.as_users else BRIEF | options, **kwargs)

    compiler.get_compile_options = brief


def known(options: dict[str, Any]) -> bool:
    """Whether this version of XLA has these options, on a CPU."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


class Compiling:
    """How the test that runs is compiled."""

    as_users = False


@pytest.hookimpl(tryfirst=True)  # before the fixtures of its file
def pytest_runtest_setup(item: pytest.Item) -> None:
    as_users = item.get_closest_marker("as_users") is not None
    if as_users != Compiling.as_users:
        jax.clear_caches()
        Compiling.as_users = as_users


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget compiled programs after a file when they are many: XLA aborts where it is refused memory for another."""
    yield
    if MAPS.exists() and MAPS.read_text().count("\n") > MANY:
        jax.clear_caches()
        gc.collect()

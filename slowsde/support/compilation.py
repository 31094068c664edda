"""Compiled programs kept on disk, so that the next process need not compile them again."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from manifolds.support.user_functions import shown

# What JAX keeps by default took a second to compile; a run has dozens of smaller programs, 30 to 50 ms each.
SETTINGS = {
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def cache_compilations(path: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs in a folder, where later processes find them: JAX's persistent cache, with no threshold.

    Off unless called, as it is a setting of the whole process: whatever else it compiles by JAX is kept, too. To be
    called before the first run; called again with another folder, it changes to that.

    Args:
        path: a folder, made if there is none; None for the one JAX was told already (`JAX_COMPILATION_CACHE_DIR`), else
            "slowsde" in the user's folder of caches (Linux: $XDG_CACHE_HOME or ~/.cache). Programs are known by its
            path as well: a folder that was moved starts anew. It grows without a bound, and may be deleted at any time.
            What is in it is run: no one else should be able to write there.

    A program that shows progress calls Python, and JAX keeps none that does: with a cache the steps of the way to Γ are
    counted only if `progress=True` asks for it. Other runs show theirs as without.

    Returns: the folder.
    Raises: ValueError if there can be no such folder, or if it cannot be written to.

    Example:
        >>> cache_compilations("cache")
        PosixPath('.../cache')
    """
    folder = _writable(_default() if path is None else _as_path(path))
    if _told() != str(folder):
        # JAX opens its cache once: without this another folder would be told and not used.
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    return folder


def caches_compilations() -> bool:
    """Whether compiled programs are kept on disk."""
    return bool(_told()) and jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]


def _told() -> str | None:
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def _default() -> Path:
    told = _told()
    return _as_path(told) if told else _user_caches() / "slowsde"


def _user_caches() -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path("~/AppData/Local").expanduser())
    # A relative path there is to be ignored, says the convention.
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if os.path.isabs(given) else Path("~/.cache").expanduser()


def _as_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"path={shown(path)} must be the name of a folder, or None for the user's folder of caches.")
    if "://" in str(path):
        raise ValueError(
            f"path={shown(path)} must be a folder of this machine. For one elsewhere, see "
            "jax.config.update('jax_compilation_cache_dir', ...)."
        )
    return Path(path).expanduser().absolute()


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # rights alone do not tell: a disk may be mounted read-only
            return folder
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"path={str(folder)!r} is a file, or lies in one: pass the name of a folder.") from None
    except OSError as error:
        raise ValueError(
            f"path={str(folder)!r} cannot be written to ({error.strerror}): pass a folder of your own, such as "
            "path='.slowsde-cache'."
        ) from error

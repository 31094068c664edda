"""Files: written whole or not at all, read with every byte checked, and without pickles.

A file is a .npz archive. Pytrees are kept as the arrays of their leaves, and their containers as JSON; a digest over
all arrays tells whether what is read is what was written.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

FORMAT = 2  # 1 had no checksum
CHECKSUM = "checksum"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is whole: what is interrupted leaves the old one.

    A symbolic link is followed, a file keeps its mode and a new one gets that of the umask. OSError for a target that
    may not be written.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    _clear_orphans(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    descriptor, unnamed = _opened(temporary)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            if unnamed:
                # With a `src_dir_fd`, of which an absolute path makes no use: without one Python's `link` gives a name
                # to the symbolic link in /proc.
                os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=descriptor, follow_symlinks=True)
        # In the same folder, as a move across file systems is no longer atomic.
        os.replace(temporary, target)
    # Also on Ctrl-C: a failed save once left its temporary file.
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """OSError unless a file of this name can be written: one that is there is not read-only, nor its folder."""
    target = Path(os.path.realpath(path))
    _mode(target)
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder is read-only", str(target.parent))


def _mode(target: Path) -> int | None:
    """The mode that a file has, None for a new one; OSError where it may not be written."""
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return None
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    # By its mode too: to root every file is writable.
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only", str(target))
    return mode


def _opened(temporary: Path) -> tuple[int, bool]:
    """A new file to write, and whether it has no name yet: a process that is killed then leaves nothing."""
    with contextlib.suppress(AttributeError, OSError):
        if os.path.isdir("/proc/self/fd"):
            return os.open(temporary.parent, os.O_TMPFILE | os.O_RDWR, 0o666), True
    return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), False


def _clear_orphans(target: Path) -> None:
    """Remove the temporary files that processes left which are no more."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        process = path.name.removesuffix(".tmp").rpartition(".")[2]
        if process.isdigit() and not _is_alive(int(process)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> None:
    """An archive of arrays with a checksum over all of them, see `replaced`."""
    # NumPy before 2.2 takes savez's allow_pickle=False for one more array.
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise ValueError(f"{', '.join(objects)} cannot be written: arrays of Python objects.")
    save: Any = np.savez_compressed if compressed else np.savez
    with replaced(path) as file:
        save(file, **{CHECKSUM: np.array(checksum(arrays))}, **arrays)


def read_arrays(path: Path, what: str = "file of Trajectory.save") -> dict[str, np.ndarray]:
    """The arrays of an archive by `write_arrays`, of this format or an older one; ValueError where it is damaged, or
    no `what`."""
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays["header"]))
            number = header["format"]
    # Whatever a damaged archive makes of its readers: BadZipFile, KeyError, zlib.error, struct.error, OSError ...
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no {what} ({type(error).__name__}).") from error
    if not isinstance(number, int) or number > FORMAT:
        raise ValueError(f"{path} has format {number}, and this version of slowsde reads up to {FORMAT}: update it.")
    if number > 1 and str(arrays.pop(CHECKSUM, "")) != checksum(arrays):
        raise ValueError(f"{path} is damaged: its contents are not those that were written.")
    return arrays


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of names, kinds, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def named_leaves(tree: PyTree) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves if is_array(leaf)]


def is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def describe(tree: PyTree) -> Any:
    """The container structure of `tree` as JSON; leaves are "*", foreign containers their named leaves."""
    # In the order in which JAX flattens a dict. The leaves of a loaded module once came back in another (bias before
    # weight).
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": {key: describe(tree[key]) for key in sorted(tree)}}
    # Not `isinstance`: a named tuple is a container that only its own code can rebuild.
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [describe(item) for item in tree]}
    if tree is None or is_array(tree):
        return None if tree is None else "*"
    return {"dict": {name: "*" for name, _ in named_leaves(tree)}}


def rebuild(structure: Any, leaves: Any) -> PyTree:
    if structure is None:
        return None
    if structure == "*":
        return next(leaves)
    ((kind, items),) = structure.items()
    if kind == "dict":
        return {key: rebuild(item, leaves) for key, item in items.items()}
    return {"list": list, "tuple": tuple}[kind](rebuild(item, leaves) for item in items)


def plain(stats: dict[str, Any]) -> dict[str, Any]:
    """stats with NumPy arrays and numbers as plain lists and numbers, for headers."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in stats.items()}

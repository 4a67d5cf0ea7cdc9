"""Things made once from files and used again: where they stand, and who makes them."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xtuner.errors import XTunerError
from xtuner.log import get_logger


class CacheError(XTunerError):
    """The cache cannot be written."""


def cache_folder() -> Path:
    """Returns the folder for automatic caches: ``$XTUNER_CACHE``, else ``~/.cache/xtuner``."""
    return Path(os.environ.get("XTUNER_CACHE") or Path.home() / ".cache" / "xtuner")


def build_once(target: Path, build: Callable[[], None]) -> None:
    """Calls `build`, which must make `target` appear by a rename, unless it is there already.

    Of several processes on a machine one builds while the others wait for its lock, however long that takes; no
    process group is involved. Where a network's disk knows no locks, all build, and the first rename wins.
    """
    if target.exists():
        return
    with lock(target):
        if not target.exists():
            _remove_leftovers(target)
            build()


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """Holds the lock that belongs to `target`; says so where another process has it.

    Raises:
        CacheError: the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.path.abspath(target).encode()).hexdigest()[:32]
    held = FileLock(cache_folder() / "locks" / name)
    try:
        Path(held.lock_file).parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=1)
    except Timeout:
        get_logger().info("Another process is preparing '%s': waiting for it.", target)
        held.acquire()
    except OSError as error:
        raise CacheError(
            f"the cache '{cache_folder()}' cannot be written ({error}): set XTUNER_CACHE to a writable folder."
        ) from error
    try:
        yield
    finally:
        held.release()


def remember(mark: Path) -> None:
    """Leaves the empty file `mark` in the cache: what it stands for need not be done again."""
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        get_logger().warning("'%s' cannot be written (%s): the next start repeats this work.", mark, error)


def unfinished_name(target: Path) -> Path:
    """Returns a name beside `target` for what is being written; no two processes have the same."""
    return target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}")


def _remove_leftovers(target: Path) -> None:
    """Removes what killed processes of this machine left of `target`: who holds its lock is the only one alive."""
    start = unfinished_name(target).name.rpartition("-")[0] + "-"
    for leftover in target.parent.iterdir() if target.parent.is_dir() else ():
        if leftover.name.startswith(start):
            shutil.rmtree(leftover, ignore_errors=True)


def publish(unfinished: Path, target: Path) -> None:
    """Renames `unfinished` to `target`; what another process has put there in the meantime stays."""
    try:
        os.replace(unfinished, target)
    except OSError:
        # a folder with content is not replaced: the other process made the same
        if not target.is_dir():
            raise


def remembered_digest(path: str) -> str:
    """Digest of a file's content, remembered by place, size and time: not read again at every start."""
    return remembered_of([path], "", lambda: _file_digest(path))


def remembered_of(files: Sequence[str], what: str, compute: Callable[[], str]) -> str:
    """Returns what `compute` finds out of files, remembered by their places, sizes and times.

    Args:
        files: that it depends on.
        what: is found out, where it depends on more than the files.
        compute: is called where it is not remembered.

    Raises:
        OSError: a file is not there.
    """
    states = [(os.path.abspath(file), os.stat(file)) for file in files]
    key = "\n".join(f"{path}\n{state.st_size}\n{state.st_mtime_ns}" for path, state in states) + what
    memory = cache_folder() / "digests" / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        return memory.read_text()
    except OSError:
        found = compute()
    write_text(memory, found)
    return found


def write_text(file: Path, text: str) -> None:
    """Writes a small file into the cache; a read-only home only costs finding its content out again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_name(file)
        unfinished.write_text(text)
        os.replace(unfinished, file)
    except OSError as error:
        get_logger().debug("'%s' cannot be written: %s", file, error)


def _file_digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()

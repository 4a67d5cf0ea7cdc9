"""Writing weights: files that other users may read as far as the umask lets them, and disks that refuse, in one
sentence.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from xtuner.errors import XTunerError, bytes_text, reason_of

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
# libraries that turn the system's error into one of their own keep its number or words
_LIBRARY_WORDS = re.compile(
    rf"os error ({'|'.join(map(str, _DISK_ERRORS))})\)|PytorchStreamWriter failed|unexpected pos \d|No space left"
)


def write_safetensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file with ordinary permissions, ``0666 & ~umask``.

    safetensors itself writes 0600, so that a server of another user could not read a model.

    Args:
        tensors: by name, contiguous, on the CPU.
        path: target; its folder exists.
    """
    # the system gives a new file its permissions; the umask cannot be read without changing it for all threads
    path.unlink(missing_ok=True)
    path.touch()
    ordinary = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(ordinary)


def disk_reason(error: BaseException) -> str | None:
    """Returns why a disk refused, in the system's words; None where `error` has another cause."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        named = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{named}"
    if not isinstance(error, OSError) and _LIBRARY_WORDS.search(str(error)):
        return reason_of(error)
    return None


def free_space(path: Path) -> str:
    """Returns ``12.3 GB free there`` for the disk that holds `path`, which need not exist."""
    place = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path("/"))
    return f"{bytes_text(shutil.disk_usage(place).free)} free there"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises while `path` is written into one sentence.

    Raises:
        XTunerError: in place of the error of the system, of torch or of safetensors.
    """
    try:
        yield
    except XTunerError:
        raise
    except Exception as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise XTunerError(
            f"'{path}' cannot be written: {reason} ({free_space(path)}): free some disk space, or choose another place."
        ) from error

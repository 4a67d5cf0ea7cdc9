"""Files of weights: permissions, and disks that refuse."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xtuner.errors import XTunerError
from xtuner.model.files.checkpoints import save_file_atomic
from xtuner.model.files.shards import ShardWriter
from xtuner.model.files.writing import disk_errors


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_ordinary_permissions(tmp_path: Path, umask: int, name: str) -> None:
    save_file_atomic({"a": torch.ones(2)}, tmp_path / name)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_shards_too(tmp_path: Path, umask: int) -> None:
    writer = ShardWriter(tmp_path, 16, max_bytes=8)
    writer.add("a", torch.ones(2))
    writer.add("b", torch.ones(2))
    writer.finish()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and all(file.stat().st_mode & 0o777 == 0o666 & ~umask for file in files)
    assert load_file(files[0])["a"].tolist() == [1, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda content, _: real(content, "/dev/full"))
    with pytest.raises(XTunerError, match=r"a\.pth' cannot be written: .*GB free there"):
        save_file_atomic({"a": torch.ones(100_000)}, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        Exception("I/O error: No space left on device (os error 28)"),
    ],
)
def test_words_of_libraries(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(XTunerError, match="cannot be written"), disk_errors(tmp_path / "new" / "file"):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none"), RuntimeError("size mismatch")])
def test_other_errors_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), disk_errors(tmp_path):
        raise error

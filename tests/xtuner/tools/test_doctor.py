"""``xtuner doctor``: one line a fact, the same as JSON, and a broken torch said instead of raised."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from xtuner import cli
from xtuner.tools.doctor import folder_bytes


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[:17].strip() for line in lines]
    assert len(names) == len(set(names)) and all(line[17:].strip() for line in lines)
    assert {"xtuner", "torch", "threads", "memory", "disk", "cache", "flash-attn", "gradio"} <= set(names)
    assert f"{torch.get_num_threads()} of torch" in lines[names.index("threads")]


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "data").write_bytes(bytes(1234))
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path))
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cache"] == {"folder": str(tmp_path), "bytes": 1234}
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(report["gpus"]) == torch.cuda.device_count()
    assert all(part["brings"] for part in report["parts"])


def test_a_torch_that_cannot_be_imported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert cli.main(["doctor"]) == 1
    assert "cannot be imported: OSError: libcudart.so.12" in capsys.readouterr().out


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path / "none") == 0

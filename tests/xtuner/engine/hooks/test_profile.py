"""A profile that cannot be written does not end the run."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xtuner.engine.hooks.profile import ProfileHook


def run(work_dir: Path) -> None:
    environment = SimpleNamespace(device=torch.device("cpu"))
    runner: Any = SimpleNamespace(
        rank=0, max_iters=6, iter=0, plan=SimpleNamespace(environment=environment, work_dir=work_dir)
    )
    hook = ProfileHook(steps=2, skip=1)
    hook.before_train(runner)
    for step in range(6):
        torch.ones(3).sum()
        hook.after_train_iter(runner, step)
    hook.after_train(runner)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_written(tmp_path: Path) -> None:
    run(tmp_path)
    assert (tmp_path / "profile" / "trace.json").stat().st_size and "aten::sum" in (
        tmp_path / "profile" / "operators.txt"
    ).read_text()


@pytest.mark.parametrize("fault", ["file in the way", "table", "trace", "cut off", "failing torch"])
def test_a_fault_is_a_warning(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "file in the way":
        (tmp_path / "profile").write_text("")
    elif fault == "table":
        monkeypatch.setattr(Path, "write_text", full_disk)
    else:

        def export(profiler: Any, path: str) -> None:
            if fault == "trace":
                full_disk()
            if fault == "failing torch":
                raise RuntimeError("cannot save")
            Path(path).write_bytes(b'{"traceEvents": [{"a"')

        monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    logger = logging.getLogger("xtuner")
    logger.addHandler(caplog.handler)
    try:
        run(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.levelname for record in caplog.records if "profile is not written" in record.getMessage()] == [
        "WARNING"
    ]

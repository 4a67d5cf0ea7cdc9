"""Counting, listing and limiting the samples that could not be read; losses of sources in the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xtuner.data.batches.bad_samples import BadSample
from xtuner.engine.hooks.bad_samples import BadSampleHook
from xtuner.engine.hooks.step_log import StepLogHook
from xtuner.engine.preflight import missing_files
from xtuner.engine.processes.environment import Collective
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.errors import XTunerError


def runner(folder: Path, step: int) -> Any:
    plan = SimpleNamespace(work_dir=folder, source_names=("a", "b", "c"))
    collective = Collective()
    return SimpleNamespace(iter=step - 1, max_iters=100, interrupted=False, rank=0, plan=plan, collective=collective)


def micro_batch(*bad: BadSample, size: int = 50) -> dict[str, Any]:
    return {"labels": torch.zeros(size, 1), "bad_samples": list(bad)}


BROKEN = BadSample("x", 3, "picture does not decode", "picture 'x.jpg' does not decode.")
GONE = BadSample("y", 4, "missing picture", "picture 'y.jpg' does not exist.")


def test_they_are_counted_and_listed(tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
    hook = BadSampleHook(interval=2, limit=0.01)
    hook.after_train_iter(runner(tmp_path, 1), 0, [micro_batch(BROKEN), micro_batch(GONE)])
    assert not (tmp_path / "bad_samples.jsonl").exists()
    hook.after_train_iter(runner(tmp_path, 2), 1, [micro_batch(BROKEN)])
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["sample_id"]) for line in lines] == [(2, "x"), (2, "y"), (2, "x")]
    assert hook.seen == 150 and hook.kinds == {"picture does not decode": 2, "missing picture": 1}
    said = framework_log[-1].getMessage()
    assert "bad samples replaced: 3, in total 3 (picture does not decode 2, missing picture 1)" in said


def test_the_run_stops_past_the_limit(tmp_path: Path) -> None:
    hook = BadSampleHook(interval=1, limit=0.002)
    # 2 of the first thousand are allowed
    hook.after_train_iter(runner(tmp_path, 1), 0, [micro_batch(BROKEN, GONE)])
    hook.after_train_iter(runner(tmp_path, 2), 1, [micro_batch()])
    with pytest.raises(XTunerError, match=r"3 of 150 samples could not be read .*bad_sample_limit=0.002 .*'x.jpg'"):
        hook.after_train_iter(runner(tmp_path, 3), 2, [micro_batch(BROKEN)])


def test_what_teaches_nothing_is_listed_and_ends_no_run(tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
    hook = BadSampleHook(interval=1, limit=0.0)
    silent = BadSample("", -1, "no answer", "record 'z' has no answer.", is_fault=False)
    hook.after_train_iter(runner(tmp_path, 1), 0, [micro_batch(*[silent] * 3)])
    assert not hook.kinds and hook.left_out == {"no answer": 3}
    said = framework_log[-1].getMessage()
    assert "step 1: records that teach nothing, left out: 3, in total 3 (no answer 3); see" in said
    with pytest.raises(XTunerError, match=r"1 of 100 samples could not be read \(missing picture 1\), more than"):
        hook.after_train_iter(runner(tmp_path, 2), 1, [micro_batch(silent, GONE)])
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert [line["is_fault"] for line in lines] == [False] * 4 + [True]


def test_losses_of_sources(tmp_path: Path) -> None:
    hook = StepLogHook(1)
    hook._by_source = torch.tensor([[2.0, 0.0, 9.0], [4.0, 0.0, 3.0]])
    # a source that no step has seen is left out
    assert hook._source_losses(runner(tmp_path, 1)) == {"loss/a": 0.5, "loss/c": 3.0}


def test_settings_are_checked() -> None:
    for bad in ({"loss_mean": "sum"}, {"bad_sample_limit": 2}):
        with pytest.raises(ValueError, match="expected"):
            RuntimeSettings(**bad)  # type: ignore[arg-type]


def test_paths_of_sources_and_patterns_are_looked_for(tmp_path: Path) -> None:
    for name in ("0.tar", "0.json"):
        (tmp_path / name).touch()
    sources = [{"data_path": str(tmp_path / "0.json"), "image_folder": "nowhere"}, "gone.json"]
    problems = missing_files({"data_path": sources, "image_folder": str(tmp_path / "*.tar")})
    assert [problem.split(" does")[0] for problem in problems] == ["image_folder: 'nowhere'", "data_path: 'gone.json'"]

"""Generation with random weights: tokens per second of one chat, answers per second of an evaluation's batch."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.benchmarks.generate_batch import measure_real
from tools.benchmarks.real_step import clear_memory
from tools.gpu.setting import Setting
from tools.gpu.stages import Rows
from tools.gpu.stages.mfu import SFT


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    tokens = 4 if setting.tiny else 128
    return [
        ("chat, 7B, one picture with 20 boxes", partial(measure, setting, 1, tokens)),
        ("evaluation, 7B, batch of 64", partial(measure, setting, 2 if setting.tiny else 64, tokens // 4)),
    ]


def measure(setting: Setting, batch: int, new_tokens: int) -> dict[str, Any]:
    """The time to the first token, then that of each further one."""
    clear_memory()
    found = measure_real(SFT, setting.sizes, setting.device, batch, new_tokens)
    return {
        "batch": batch,
        "first token, s": found["first"],
        "tokens/s": found["tokens_per_second"],
        "answers/s": batch / found["seconds"],
        "GB": found["bytes"] / 1e9,
    }

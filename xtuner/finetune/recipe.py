"""Settings for hundreds of records, each with its reason and what to change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xtuner.memory_estimate import GIB

_SAMPLES = {"pretrain": 1600, "sft": 2400}
"""Samples that a stage sees, whatever the number of records: 200 and 300 steps of 8."""
_EPOCHS = {"pretrain": (2, 20), "sft": (3, 30)}
_BATCH = 8
_SMALL_LLM = 1_000_000_000
_ROOM = 0.9
"""Share of the free memory that an estimate may take: it leaves out passing buffers."""
ADAPTERS = "llm_lora"
STAGES = ("pretrain", "sft")
"""Stage 1 and stage 2, as configs are named."""


@dataclass(frozen=True)
class Setting:
    """One setting of a config.

    Attributes:
        name: as configs have it.
        value: of it.
        reason: why this value.
        change: when to take another, and which.
    """

    name: str
    value: Any
    reason: str
    change: str


@dataclass(frozen=True)
class Plan:
    """How stage 2 fits into memory.

    Attributes:
        lora: adapters instead of the language model's weights.
        micro_batch: samples of one forward pass.
        recompute: layers are computed again in the backward pass.
        needed: estimated bytes per device.
        free: bytes that are free there.
        fits: the estimate fits; False where the smallest of all plans does not.
    """

    lora: bool
    micro_batch: int
    recompute: bool
    needed: float
    free: float
    fits: bool = True


def choose_plan(
    estimate: Callable[[bool, int, bool], float], free: float, processes: int = 1, lora: bool | None = None
) -> Plan:
    """Returns the first plan that fits: all weights before adapters, large steps before small, nothing computed twice.

    Args:
        estimate: bytes of (lora, micro_batch, recompute).
        free: bytes of a device.
        processes: that share the batch.
        lora: adapters only, or never; None = where memory asks for it.
    """
    batch = max(1, _BATCH // processes)
    sizes = [(batch, False), *((batch >> halvings, True) for halvings in range(batch.bit_length()))]
    plans = [(adapters, *size) for adapters in ((False, True) if lora is None else (lora,)) for size in sizes]
    needed = 0.0
    for plan in plans:
        needed = estimate(*plan)
        if needed <= _ROOM * free:
            return Plan(*plan, needed, free)
    return Plan(*plans[-1], needed, free, fits=False)


def choose_settings(stage: str, records: int, llm_size: int, plan: Plan, processes: int = 1) -> list[Setting]:
    """Returns the settings of one stage.

    Args:
        stage: ``pretrain`` or ``sft``.
        records: to train on.
        llm_size: parameters of the language model.
        plan: how it fits into memory.
        processes: that share the batch.
    """
    batch = max(1, _BATCH // processes)
    repeats = batch // plan.micro_batch
    epochs = min(max(round(_SAMPLES[stage] / records), _EPOCHS[stage][0]), _EPOCHS[stage][1])
    steps = max(1, -(-records // (batch * processes))) * epochs
    memory = f"estimated {plan.needed / GIB:.1f} GiB of {plan.free / GIB:.1f} GiB that are free"
    found = [
        Setting(
            "batch_size",
            plan.micro_batch,
            f"{plan.micro_batch * repeats * processes} samples a step"
            + (f" in {repeats} parts" if repeats > 1 else "")
            + f": few records give few steps, so steps are small ({memory})",
            "out of memory: halve it and double accumulative_counts",
        ),
        Setting(
            "accumulative_counts",
            repeats,
            f"{repeats} forward passes make a step",
            "as batch_size: their product is what the rate is chosen for",
        ),
        Setting(
            "max_epochs",
            epochs,
            f"{records:,} records are seen {epochs} times: {steps:,} steps",
            "held-out answers get worse while training ones get better: halve it; both are poor: double it",
        ),
        _rate(stage, llm_size, plan.lora),
        Setting(
            "activation_checkpointing",
            plan.recompute,
            "layers are computed twice to save memory" if plan.recompute else "memory suffices without",
            "out of memory: True; too slow: False",
        ),
    ]
    return [*found, *_run_settings(steps, os.cpu_count() or 1)]


def adapters_setting(plan: Plan, asked: bool) -> Setting:
    """Returns what is said of the adapters; `asked` = the user wants them."""
    reason = f"all weights would need more than the {plan.free / GIB:.1f} GiB that are free: adapters learn instead"
    return Setting(
        ADAPTERS,
        "LoRA" if plan.lora else None,
        "as you asked" if asked else reason if plan.lora else "all weights fit into memory",
        "a higher r where answers stay poor" if plan.lora else "--lora, which takes less memory and disk",
    )


def _rate(stage: str, llm_size: int, lora: bool) -> Setting:
    change = "the loss jumps or turns nan: a third of it; it hardly falls: three times as much"
    if stage == "pretrain":
        return Setting("lr", 1e-3, "MG-LLaVA's for fusion and projectors, which start from nothing", change)
    if lora:
        return Setting("lr", 2e-4, "usual for adapters, ten times that of all weights", change)
    if llm_size < _SMALL_LLM:
        return Setting("lr", 3e-4, f"a language model of {llm_size / 1e6:,.0f} M parameters bears a high rate", change)
    return Setting("lr", 2e-5, "MG-LLaVA's for language models of billions of parameters", change)


def _run_settings(steps: int, cores: int) -> list[Setting]:
    return [
        Setting(
            "save_steps",
            max(20, steps // 4),
            "a run that is stopped goes on from the last checkpoint; the command is simply given again",
            "less often where checkpoints are large and slow to write",
        ),
        Setting(
            "save_total_limit",
            1,
            "only the newest checkpoint stays",
            "2 or more to compare checkpoints",
        ),
        Setting(
            "dataloader_num_workers",
            min(4, max(0, cores - 2)),
            f"processes that read pictures, beside the training on {cores} cores",
            "more where the log shows much data time, 0 where memory is short",
        ),
        Setting("logging_interval", max(1, min(10, steps // 20)), "some twenty lines a stage or more", "as you like"),
    ]


def settings_text(settings: Sequence[Setting]) -> list[str]:
    """Returns lines of a config, each setting under its reason."""
    lines = ["# chosen by `xtuner finetune`; change what you like and give the same command again"]
    for one in settings:
        if one.name == ADAPTERS:
            # stands with the model's settings
            continue
        lines += [f"# {one.reason}", f"# change: {one.change}", f"{one.name} = {one.value!r}"]
    return lines

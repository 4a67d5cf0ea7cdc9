"""Model FLOP/s of training steps at real sizes, with random weights made on the device: each saving in turn."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tools.benchmarks.real_step import RealStep, clear_memory
from tools.gpu.setting import Setting, Unmet
from tools.gpu.stages import Rows

WANTED = 0.5
"""Share of the peak that the best row of stage 1 and of LoRA SFT has to reach on an H100."""

STAGE_1 = "fuse_vicuna7b_clip_L_14_336_pretrain_padding"
SFT = "fuse_vicuna7b_clip_L_14_336_sft_padding"
PHI3 = "fuse_phi3_clip_L_14_336_sft_padding"
LORA = "llm_lora={type:peft.LoraConfig,r:128,lora_alpha:256,lora_dropout:0.05}"

COMPILED = ("compile_model=True",)
FUSED = ("compile_model=True", "fused_loss=True")
WHOLE, HALF, NONE = ((f"activation_checkpointing={share}",) for share in ("True", "0.5", "False"))
PLAIN_LAYOUT = ("model.high_res_encoder.channels_last=False",)

RUNS: dict[str, tuple[str, tuple[str, ...], float | None]] = {
    "stage 1, 7B: half recomputed, compiled, fused loss": (STAGE_1, (*HALF, *FUSED), WANTED),
    "SFT LoRA, 7B: recomputed, compiled, fused loss": (SFT, (LORA, *WHOLE, *FUSED), WANTED),
    "stage 1, 7B: all recomputed": (STAGE_1, WHOLE, None),
    "stage 1, 7B: half recomputed": (STAGE_1, HALF, None),
    "stage 1, 7B: nothing recomputed": (STAGE_1, NONE, None),
    "stage 1, 7B: half recomputed, compiled": (STAGE_1, (*HALF, *COMPILED), None),
    "stage 1, 7B: half recomputed, not channels_last": (STAGE_1, (*HALF, *PLAIN_LAYOUT), None),
    "SFT LoRA, 7B: recomputed": (SFT, (LORA, *WHOLE), None),
    "SFT LoRA, 7B: half recomputed, compiled, fused loss": (SFT, (LORA, *HALF, *FUSED), None),
    "full SFT, 3.8B: recomputed, compiled, fused loss": (PHI3, (*WHOLE, *FUSED), None),
    "full SFT, 3.8B: recomputed": (PHI3, WHOLE, None),
}
"""Row: config, settings, share of the peak to reach. Rows with something to reach come first."""


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    chosen = list(RUNS)[:2] + list(RUNS)[6:7] if setting.tiny else list(RUNS)
    return [(name, partial(measure, setting, *RUNS[name])) for name in chosen]


def measure(setting: Setting, config: str, options: tuple[str, ...], wanted: float | None) -> dict[str, Any]:
    """The largest batch that memory allows; on want of memory in spite of the forecast, a quarter less."""
    # on the CPU without kernels for GPUs and without the compiler, which takes a minute (stage b looks at its graphs)
    chosen = [option for option in options if setting.on_gpu or option not in FUSED] + setting.sizes
    clear_memory()
    step = RealStep(config, chosen, setting.device)
    samples = step.largest_batch() if setting.on_gpu else 2
    while True:
        try:
            found = step.run(samples, repeats=1 if setting.tiny else 5, first=1 if setting.tiny else 3)
            break
        except torch.OutOfMemoryError:
            if samples == 1:
                raise
        clear_memory()
        samples = max(1, samples * 3 // 4)
    figures = {
        "samples": samples,
        "step, s": found["seconds"],
        "samples/s": samples / found["seconds"],
        "GB": found["bytes"] / 1e9,
        "TFLOP/s": found["flops"] / 1e12,
        "MFU": found["mfu"] if setting.on_gpu else None,
        "loss": found["loss"],
    }
    if found["loss"] != found["loss"]:
        raise Unmet("the loss is no number", figures)
    if setting.on_gpu and not setting.tiny and wanted is not None and not found["mfu"] >= wanted:
        raise Unmet(f"the MFU is {found['mfu']:.1%}, expected at least {wanted:.0%}", figures)
    return figures

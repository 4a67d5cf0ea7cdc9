"""SFT on lengths like the published data's: padded rows against packed ones with attention of variable lengths."""

from __future__ import annotations

import argparse
import importlib.util
from functools import partial
from typing import Any

from tools.benchmarks.layouts import LAYOUTS, measure
from tools.benchmarks.real_step import clear_memory
from tools.gpu.setting import LeftOut, Setting, Unmet
from tools.gpu.stages import Rows
from tools.gpu.stages.mfu import LORA, SFT

WANTED = 1.3
"""Packed samples per second against those of shuffled padded rows."""

SAME = 2e-2
"""Relative difference of the losses, which are means over the same samples in other batches and roundings."""


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    found: dict[str, dict[str, float]] = {}
    return [
        ("shuffled, padded", partial(run, setting, found, "shuffled_padded", "sdpa")),
        ("packed, flex_attention", partial(run, setting, found, "grouped_packed", "flex_attention")),
        ("packed, flash_attention_2", partial(run, setting, found, "grouped_packed", "flash_attention_2")),
        ("grouped, padded", partial(run, setting, found, "grouped_padded", "sdpa")),
        ("packed, sdpa with a dense mask", partial(run, setting, found, "grouped_packed", "sdpa")),
    ]


def run(setting: Setting, found: dict[str, dict[str, float]], layout: str, attention: str) -> dict[str, Any]:
    """An epoch of a layout, beside the padded one of this process, which is measured where it was not yet."""
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise LeftOut("flash-attn is not installed")
    if attention != "sdpa":
        setting.need_gpu(f"the backward pass of {attention}")
    if layout != "shuffled_padded" and "shuffled_padded" not in found:
        run(setting, found, "shuffled_padded", "sdpa")
    samples = 4 if setting.tiny else 128
    options = [LORA, f"attn_implementation={attention}", "activation_checkpointing=True", *setting.sizes]
    clear_memory()
    order = argparse.Namespace(
        config=SFT, cfg_options=options, samples=samples, batch=2 if setting.tiny else 8, device=setting.name, width=0
    )
    found[layout] = measured = measure(order, LAYOUTS[layout])
    padded = found["shuffled_padded"]
    speed = padded["seconds"] / measured["seconds"]
    figures = {
        "samples/s": samples / measured["seconds"],
        "of padded": speed,
        "padding": measured["padding"],
        "GB": measured["bytes"] / 1e9,
        "loss": measured["loss"],
    }
    if not abs(measured["loss"] / padded["loss"] - 1) <= SAME:
        raise Unmet(f"the loss is {measured['loss']:.4f}, and {padded['loss']:.4f} on padded rows", figures)
    if layout == "grouped_packed" and attention != "sdpa" and not setting.tiny and speed < WANTED:
        raise Unmet(f"packed is {speed:.2f} times padded, expected at least {WANTED}", figures)
    return figures

"""``xtuner convert pth_to_hf CONFIG CHECKPOINT SAVE_PATH``: one self-contained folder with all parts of a model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from xtuner.tools.arguments import add_cfg_options

HELP = "a checkpoint of a run (file or DeepSpeed folder) to one folder that holds the whole model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert pth_to_hf``."""
    parser.add_argument("config", help="the config that the checkpoint was trained with")
    parser.add_argument("checkpoint", help="a .pth file, a DeepSpeed checkpoint folder, or published weights")
    parser.add_argument("save_path", help="the folder to write; an earlier export there is replaced")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="number format of all weights (default: auto, each part as its own files have it)",
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Converts; returns the exit code."""
    import torch

    from xtuner.config import load_config, parse_overrides
    from xtuner.log import get_logger
    from xtuner.registry import build
    from xtuner.tools.trained_model import build_trained

    # 1. the trained model, on the CPU
    start = time.perf_counter()
    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    if "quantization" in cfg.model.llm:
        # adapters are added to the weights as they were before they were quantised
        cfg.model.llm.quantization = None
    dtype = "saved" if args.dtype == "auto" else args.dtype
    model = build_trained(cfg, args.checkpoint, torch.device("cpu"), dtype)
    if model.adapter_settings:
        bases = {part: cfg.model[part].get("name_or_path", "") for part in model.adapter_settings}
        model.save_adapters(Path(f"{args.save_path}_adapters"), bases)
        model.merge_adapters()
        cfg.model.update(llm_lora=None, visual_encoder_lora=None)
        get_logger().info("%s_adapters: the adapters alone, as peft reads them", args.save_path)

    # 2. with what belongs to it, as one folder
    assistant = build(cfg.evaluation, model=model).assistant
    facts = {"config": Path(cfg.filename).stem, "checkpoint": Path(args.checkpoint).name}
    folder = assistant.save(args.save_path, cfg.model, facts)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    get_logger().info("%s: %.1f MB in %.0f s", folder, size / 1e6, time.perf_counter() - start)
    return 0

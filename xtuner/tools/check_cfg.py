"""``xtuner check-cfg``: a config's mistakes, else its parts and the memory that training takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from xtuner.tools.support.arguments import add_cfg_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table
    from torch import nn

    from xtuner.memory_estimate import MemoryEstimate

HELP = (
    "Report every mistake in a config (exit code 1). Without mistakes, show the model's parts and the memory per "
    "GPU. The command reads no weights."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("config", help="name or path of the config")
    add_cfg_options(parser)
    parser.add_argument(
        "--deepspeed",
        metavar="NAME",
        help="DeepSpeed setting for the estimate: a name, a JSON file or 'none' (default: the config's)",
    )
    parser.add_argument(
        "--gpus", type=_positive, default=8, metavar="N", help="number of GPUs for the estimate (default: 8)"
    )
    parser.add_argument(
        "--micro-batch",
        type=_positive,
        metavar="N",
        help="samples per GPU and forward pass (default: the config's batch size)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the tables to standard output."""
    from rich.console import Console

    from xtuner.config import load_config, parse_overrides
    from xtuner.engine.preflight import missing_files, used_settings
    from xtuner.errors import counted
    from xtuner.tools.support.memory import build_parts, estimate
    from xtuner.tools.support.templates import check_templates

    # 1. all mistakes at once
    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    notes = check_templates(cfg, f"config {cfg.filename}")
    output = Console(markup=False, highlight=False, soft_wrap=True)
    output.print(f"{cfg.filename}: no mistakes")

    # 2. files that training will need; a config is not wrong because they are elsewhere
    for line in missing_files(used_settings(cfg)):
        output.print(f"  not on this machine yet: {line}")
    for line in notes:
        output.print(f"  {line}")
    if "model" not in cfg:
        return 0

    # 3. parts, on the meta device
    parts = build_parts(cfg)
    output.print(parts_table(parts))

    # 4. memory
    deepspeed = cfg.get("deepspeed") if args.deepspeed is None else args.deepspeed
    deepspeed = None if deepspeed in ("", "none") else deepspeed
    batch = args.micro_batch or cfg.get("train_dataloader", {}).get("batch_size", 1)
    samples = counted(batch, "samples")
    title = f"memory per GPU: {args.gpus} x {samples}, {deepspeed or 'without DeepSpeed'}"
    output.print(memory_table(estimate(cfg, parts, deepspeed, args.gpus, batch), title))
    return 0


def parts_table(parts: Mapping[str, nn.Module]) -> Table:
    """Returns one row per part: name, class, number of parameters, frozen or trained; and the sum."""
    from rich.table import Table

    from xtuner.tools.support.memory import count_parameters

    table = Table("part", "class", title="parts", title_justify="left")
    table.add_column("parameters", justify="right")
    table.add_column("trained", justify="right")
    sums = [0, 0]
    for name, part in parts.items():
        frozen, trained = count_parameters(part)
        sums = [sums[0] + frozen, sums[1] + trained]
        state = "frozen" if not trained else "trained" if not frozen else f"{trained:,} trained"
        table.add_row(name, type(part).__name__, f"{frozen + trained:,}", state)
    table.add_section()
    table.add_row("all", "", f"{sum(sums):,}", f"{sums[1]:,} trained")
    return table


def memory_table(memory: MemoryEstimate, title: str) -> Table:
    """Returns the estimate in GiB, one row per kind, and the sum."""
    from rich.table import Table

    from xtuner.memory_estimate import GIB

    table = Table("held", title=f"{title} (estimate)", title_justify="left")
    table.add_column("GiB", justify="right")
    for name in ("weights", "gradients", "optimizer", "activations"):
        table.add_row(name, f"{getattr(memory, name) / GIB:.2f}")
    table.add_section()
    table.add_row("sum", f"{memory.total / GIB:.2f}")
    return table


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected 1 or more")
    return int(text)

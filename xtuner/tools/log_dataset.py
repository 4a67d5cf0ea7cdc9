"""``xtuner log-dataset CONFIG``: samples as the model is trained on them, what carries loss in colour."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from xtuner.config import load_config, parse_overrides
from xtuner.constants import FRAME_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.errors import counted
from xtuner.registry import build
from xtuner.tools.support.arguments import add_cfg_options
from xtuner.tools.support.rows import PICTURE, STYLES, WITH_LOSS, read_row, styled
from xtuner.tools.support.token_grid import OTHER, as_grid, print_tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("config", help="path or name of the config whose train_dataset is shown")
    parser.add_argument("-n", "--num", type=int, default=3, help="number of samples to show (default: 3)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="show one cell per token (text, spaces visible, and id), and the same conversation in the LLM's own chat "
        "template with the differences marked",
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints samples of the config's training data."""
    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    tokenizer = build(cfg.tokenizer)
    dataset: Any = build(cfg.train_dataset)
    dataset.log_report()
    out = Console(soft_wrap=True, highlight=False)
    legend = [Text("With loss", STYLES[WITH_LOSS]), " / without / ", Text("picture", STYLES[PICTURE])]
    if args.tokens:
        legend += [" / ", Text("≠ other than in the LLM's own chat template", OTHER)]
    out.print(f"{counted(len(dataset), 'samples')}. ", *legend)
    numbers = range(args.start, min(args.start + args.num, len(dataset)))
    turns = dataset.find_turns(numbers) if args.tokens else {}
    for index in numbers:
        sample = dataset[index]
        input_ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
        supervised = len(labels) - labels.count(IGNORE_INDEX)
        out.print(Rule(f"sample {index}, id {sample['sample_id']}"))
        row = read_row(input_ids, labels, tokenizer)
        if not args.tokens:
            out.print(styled(row))
        elif sample["bad_samples"]:
            out.print(as_grid(row, out.width))
            out.print("It stands in for a sample that cannot be read.")
        else:
            print_tokens(row, turns.get(index), tokenizer, out)
        frames = input_ids.count(FRAME_TOKEN_INDEX)
        shown = [counted(input_ids.count(IMAGE_TOKEN_INDEX), "pictures")]
        shown += [counted(frames, "frames")] if frames else []
        out.print(f"{len(input_ids)} ids, {supervised} with loss, {', '.join(shown)}")
        out.print(dataset.describe(index), markup=False)
    return 0

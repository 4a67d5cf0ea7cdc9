"""``xtuner log-dataset CONFIG``: samples as the model is trained on them, what carries loss in colour."""

from __future__ import annotations

import argparse
import html
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from xtuner.config import load_config, parse_overrides
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from xtuner.registry import build
from xtuner.tools.support.arguments import add_cfg_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUPERVISED = "bold green"
_PICTURE = "bold magenta"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("config", help="path or name of the config whose train_dataset is shown")
    parser.add_argument("-n", "--num", type=int, default=3, help="number of samples to show (default: 3)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints samples of the config's training data."""
    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    tokenizer = build(cfg.tokenizer)
    dataset = build(cfg.train_dataset)
    out = Console(soft_wrap=True, highlight=False)
    out.print(
        f"{len(dataset):,} samples. ",
        Text("With loss", _SUPERVISED),
        " / without / ",
        Text("picture", _PICTURE),
    )
    for index in range(args.start, min(args.start + args.num, len(dataset))):
        sample = dataset[index]
        input_ids, labels = list(map(int, sample["input_ids"])), list(map(int, sample["labels"]))
        supervised = len(labels) - labels.count(IGNORE_INDEX)
        out.print(Rule(f"sample {index}, id {sample['sample_id']}"))
        out.print(render_supervision(input_ids, labels, tokenizer))
        pictures = input_ids.count(IMAGE_TOKEN_INDEX)
        out.print(f"{len(input_ids)} ids, {supervised} with loss, {pictures} picture{'' if pictures == 1 else 's'}")
        out.print(dataset.describe(index), markup=False)
    return 0


def render_supervision(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Decodes `input_ids`, special tokens included; what carries loss is coloured."""
    text = Text()
    for kind, words in _runs(input_ids, labels, tokenizer):
        text.append(words, {"picture": _PICTURE, "with-loss": _SUPERVISED}.get(kind, ""))
    return text


def supervision_html(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Like `render_supervision`, as HTML with the classes ``with-loss`` and ``picture``."""
    runs = ((kind, html.escape(words)) for kind, words in _runs(input_ids, labels, tokenizer))
    return "".join(f'<span class="{kind}">{words}</span>' if kind else words for kind, words in runs)


def _runs(
    input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, str]]:
    """Yields (picture, with-loss or nothing; text) of ids of one kind that follow each other."""
    kinds = [
        "picture" if token == IMAGE_TOKEN_INDEX else "with-loss" if label != IGNORE_INDEX else ""
        for token, label in zip(input_ids, labels, strict=True)
    ]
    for kind, run_of_ids in groupby(zip(input_ids, kinds, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run_of_ids]
        yield kind, IMAGE_TOKEN * len(ids) if kind == "picture" else str(tokenizer.decode(ids))

"""What a fine-tune takes: lengths of the records in tokens, memory of a step, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from xtuner.config import load_config
from xtuner.data.text.conversations import Conversation
from xtuner.engine.steps.precision import resolve_precision
from xtuner.errors import XTunerError, bytes_text
from xtuner.tools.support.memory import build_parts, count_parameters, estimate

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_FRAMES, _MOST_FRAMES = 8, 64
"""Of a video, unless the config says more."""
_TEMPLATE_TOKENS = 24
"""Roughly what a template writes around a turn."""
_ANSWER_ROOM = 8
_LONGEST_ANSWER = 512
_CHECKPOINT_BYTES = 12
"""Per trained parameter: the weight and AdamW's two moments in float32."""


def longest(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Returns the tokens of the longest record's text, and the tokens to allow for an answer."""
    record = answer = 1
    for one in conversations:
        turns = one.turns
        questions = [" ".join(part for part in turn.parts if isinstance(part, str)) for turn in turns]
        texts = [*questions, *(turn.system for turn in turns), *(turn.output or "" for turn in turns)]
        counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        record = max(record, sum(counts) + _TEMPLATE_TOKENS * len(turns))
        answer = max(answer, *counts[-len(turns) :])
    return record, min(answer + _ANSWER_ROOM, _LONGEST_ANSWER)


def most_pictures(conversations: Sequence[Conversation], sampling: Mapping[str, Any] | None) -> int:
    """Returns the most pictures of a record, at least 1: each frame of a video is one.

    Args:
        conversations: all.
        sampling: ``frame_sampling`` of the config; None = the usual 8 frames.
    """
    rule = sampling or {}
    frames = rule.get("max_frames", _MOST_FRAMES) if rule.get("fps") else rule.get("num_frames") or _FRAMES
    return max((len(one.images) + frames * len(one.videos) for one in conversations), default=1) or 1


def free_memory() -> float:
    """Returns the bytes that are free on the device that trains: the GPU's, else the machine's."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


class Sizes:
    """Memory and disk that training a config of stage 2 takes.

    Args:
        config: its file.
        tokens: of the longest record's text.
        adapters: config node of the adapters, for estimates with them.
        settings: overrides of the config.
        pictures: of a record, frames of videos among them.
    """

    def __init__(
        self,
        config: Path,
        tokens: int,
        adapters: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        pictures: int = 1,
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config = config
        self.adapters = dict(adapters)
        self.settings = {**(settings or {}), "precision": resolve_precision("auto", device).name}
        self.tokens = tokens
        self.pictures = pictures
        self.parts = cache(self._parts)

    def _load(self, lora: bool, **settings: Any) -> Any:
        chosen = {"llm_lora": self.adapters} if lora else {}
        cfg = load_config(self.config, {**self.settings, **settings, **chosen})
        # a longer one would be cut
        cfg.train_dataset.max_length = min(self.tokens, cfg.train_dataset.max_length)
        return cfg

    def _parts(self, lora: bool) -> Mapping[str, nn.Module]:
        return build_parts(self._load(lora))

    def memory(self, lora: bool, micro_batch: int, recompute: bool) -> float:
        """Returns the estimated bytes of a step on one device."""
        cfg = self._load(lora, activation_checkpointing=recompute)
        return estimate(cfg, self.parts(lora), None, 1, micro_batch, self.pictures).total

    def llm_size(self) -> int:
        """Returns the parameters of the language model."""
        return sum(count_parameters(self.parts(False)["llm"]))

    def disk(self, lora: bool) -> float:
        """Returns the bytes that both stages and the exported model write, at most."""
        counts = {name: count_parameters(part) for name, part in self.parts(lora).items()}
        trained = sum(trained for _, trained in counts.values())
        first = sum(trained for name, (_, trained) in counts.items() if name != "llm")
        whole = sum(p.numel() * p.element_size() for part in self.parts(False).values() for p in part.parameters())
        # a new checkpoint is whole before the former one goes
        return 2 * _CHECKPOINT_BYTES * (trained + first) + whole


def check_disk(folder: Path, needed: float) -> None:
    """Refuses a disk without room, before hours go into a run.

    Raises:
        XTunerError: fewer than `needed` bytes are free where `folder` is or will be.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise XTunerError(
            f"the disk of {folder} has {bytes_text(free)} left, and this fine-tune writes about {bytes_text(needed)} "
            "(checkpoints and the exported model): free some, choose --out on another disk, or train adapters with "
            "--lora, whose checkpoints are small."
        )

"""Which regions and frames mattered: how much likelier each made an answer, measured by leaving its tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from mg_llava.inference.prompts import Prompt
from xtuner.constants import FRAME_TOKEN_INDEX, PICTURE_INDICES
from xtuner.data.text.templates import Piece, PieceKind
from xtuner.data.text.tokenizing import encode_pieces
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from mg_llava.inference.assistant import Assistant

_ROWS = 8
"""Variants of the prompt that are read together."""


@dataclass(frozen=True)
class Influence:
    """By how much the parts of what was shown last, a picture or a video, raised an answer's log-probability (natural
    logarithm). Positive: it spoke for the answer; negative: against it.

    Attributes:
        boxes: of the picture, or of each frame: a number per box.
        frames: a number per frame, its image and object tokens together; empty = it was a picture.
    """

    boxes: tuple[tuple[float, ...], ...] = ()
    frames: tuple[float, ...] = ()


def explain_boxes(assistant: Assistant, prompt: Prompt, answer: str) -> list[float]:
    """Returns the influence of each box of the last picture (of a video, its last frame); see `explain_answer`.

    Raises:
        XTunerError: the model has no object tokens, or the answer is empty.
    """
    if assistant.model.object_encoder is None:
        raise XTunerError(
            "this model has no object tokens (it was built without object_encoder): nothing to leave out."
        )
    asked = _Asked(assistant, prompt, answer)
    last = asked.spans[-1:]
    return list(asked.influence(last).boxes[0]) if last else []


def explain_answer(assistant: Assistant, prompt: Prompt, answer: str) -> Influence:
    """Returns the influence of each box of the last picture, or of each frame of the last video and of its boxes.

    The pictures are encoded once; for each part the language model then reads prompt and answer without its tokens.

    Args:
        assistant: whose model is asked.
        prompt: the question with its pictures and boxes.
        answer: as the model gave it, or any other.

    Raises:
        XTunerError: a picture's boxes are asked about and the model has no object tokens, or the answer is empty.
    """
    frames = _frames_of_last(prompt.input_ids)
    if not frames:
        boxes = explain_boxes(assistant, prompt, answer)
        return Influence((tuple(boxes),))
    asked = _Asked(assistant, prompt, answer)
    return asked.influence(asked.spans[-frames:], with_frames=True)


def _frames_of_last(input_ids: Sequence[int]) -> int:
    """Number of frames where what is shown last is a video: nothing stands between them."""
    back = input_ids[::-1]
    start = next((place for place, token in enumerate(back) if token in PICTURE_INDICES), len(back))
    return sum(1 for _ in takewhile(lambda token: token == FRAME_TOKEN_INDEX, back[start:]))


class _Asked:
    """A prompt and an answer as the language model reads them, pictures encoded.

    Attributes:
        spans: of each picture, the first of its tokens, the first of its object tokens, and the end.
    """

    @torch.inference_mode()
    def __init__(self, assistant: Assistant, prompt: Prompt, answer: str) -> None:
        pieces = [Piece(PieceKind.TEXT, answer, words=("", answer))] if answer else []
        ids = encode_pieces(pieces, assistant.tokenizer, assistant.template, assistant.special_tokens_in_text)
        if not ids:
            raise XTunerError("the answer is empty: there is nothing to explain.")
        self.model = assistant.model
        data = {
            "input_ids": torch.tensor([[*prompt.input_ids, *ids]]),
            "pixel_values": prompt.pixel_values,
            "boxes": prompt.boxes,
        }
        batch = self.model.data_preprocessor(data, training=False)
        for unused in ("labels", "position_ids", "target_positions", "targets", "attention_mask"):
            batch.pop(unused)
        self.embeds = self.model.embed(**batch)
        self.targets = torch.tensor(ids, device=self.embeds.device)
        self.whole = self._log_probabilities(self.embeds)
        self.spans = self._find(prompt)

    def _find(self, prompt: Prompt) -> list[tuple[int, int, int]]:
        vision, spans, start, boxes = self.model.vision, [], 0, iter(prompt.boxes)
        for token in prompt.input_ids:
            middle = start + vision.image_tokens.count([token])
            end = middle
            if token in PICTURE_INDICES:
                objects = len(next(boxes))
                end += objects if vision.with_objects else 0
                spans.append((start, middle, end))
            start = end
        return spans

    @torch.inference_mode()
    def influence(self, spans: Sequence[tuple[int, int, int]], with_frames: bool = False) -> Influence:
        """Of the boxes, and with `with_frames` of the frames, that stand in `spans`."""
        single = [(place, place + 1) for _, middle, end in spans for place in range(middle, end)]
        changes = iter(self._changes(single))
        boxes = tuple(tuple(next(changes) for _ in range(middle, end)) for _, middle, end in spans)
        whole = [(start, end) for start, _, end in spans] if with_frames else []
        return Influence(boxes, tuple(change for one in whole for change in self._changes([one])))

    def _changes(self, left_out: Sequence[tuple[int, int]]) -> list[float]:
        """By how much the answer is likelier with each of these ranges of tokens, all of one length."""
        if not left_out:
            return []
        starts, ends = torch.tensor(left_out, device=self.embeds.device).T.unsqueeze(2)
        width = left_out[0][1] - left_out[0][0]
        kept = torch.arange(self.embeds.shape[1] - width, device=self.embeds.device).repeat(len(left_out), 1)
        kept = kept + (ends - starts) * (kept >= starts)
        found = [self.whole - self._log_probabilities(self.embeds[0][rows]) for rows in kept.split(_ROWS)]
        return [float(change) for change in torch.cat(found).tolist()]

    def _log_probabilities(self, embeds: torch.Tensor) -> torch.Tensor:
        """(B, T, D) that end with the answer's A tokens → (B,) its log-probability."""
        count = len(self.targets)
        logits = self.model.llm(inputs_embeds=embeds, use_cache=False, logits_to_keep=count + 1).logits
        logs = logits[:, -count - 1 : -1].float().log_softmax(-1)
        return logs.gather(2, self.targets.expand(len(logs), -1).unsqueeze(2)).sum((1, 2))

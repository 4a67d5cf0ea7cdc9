"""From a conversation with pictures to an answer: the one way that evaluation and chat ask the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from mg_llava.boxes import BoxSelection, PictureBoxes
from mg_llava.preprocess import ImageProcessor
from xtuner.constants import IMAGE_TOKEN_INDEX
from xtuner.data.templates import PromptTemplate, Turn, get_template
from xtuner.data.tokenizing import encode_prompt
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mg_llava.chat import ChatSession
    from mg_llava.model import MGLLaVA


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, ready for a batch.

    Attributes:
        input_ids: T token ids, `IMAGE_TOKEN_INDEX` at the place of each picture, ending where the answer starts.
        pixel_values: (n, 3, S, S) uint8, the n pictures in order.
        boxes: n tensors (N, 4) float32, xyxy in pixels of the S frame.
    """

    input_ids: list[int]
    pixel_values: torch.Tensor
    boxes: list[torch.Tensor]


class Assistant:
    """A model with what belongs to it, answering conversations.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        image_processor: as in training.
        template: name or template that the model was trained with.
        boxes: which of a picture's boxes become object tokens.
    """

    def __init__(
        self,
        model: MGLLaVA,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: ImageProcessor,
        template: str | PromptTemplate,
        boxes: BoxSelection | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = get_template(template)
        self.boxes = boxes or BoxSelection()

    def prepare(
        self, turns: Sequence[Turn], pictures: Sequence[Image.Image] = (), found: Sequence[PictureBoxes | None] = ()
    ) -> Prompt:
        """Tokenises the turns and preprocesses the pictures.

        Args:
            turns: the last one unanswered; ``<image>`` at the place of each picture.
            pictures: in the order of their places.
            found: each picture's boxes in its own frame, None for none; empty = no boxes at all.

        Raises:
            XTunerError: other numbers of ``<image>``, pictures and boxes.
        """
        input_ids = encode_prompt(turns, self.tokenizer, self.template)
        places = input_ids.count(IMAGE_TOKEN_INDEX)
        found = found or [None] * len(pictures)
        if not places == len(pictures) == len(found):
            raise XTunerError(
                f"the conversation has {places} times <image>, {len(pictures)} pictures and {len(found)} lists of "
                "boxes: give one <image> and one list (or None) for each picture."
            )
        prepared = [self._prepare_picture(picture, boxes) for picture, boxes in zip(pictures, found, strict=True)]
        size = self.image_processor.image_size
        pixels = [pixels for pixels, _ in prepared]
        return Prompt(
            input_ids=input_ids,
            pixel_values=torch.stack(pixels) if pixels else torch.zeros((0, 3, size, size), dtype=torch.uint8),
            boxes=[boxes for _, boxes in prepared],
        )

    def _prepare_picture(self, picture: Image.Image, found: PictureBoxes | None) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = None if found is None else self.boxes(*found, training=False).boxes
        pixels, boxes = self.image_processor(picture, chosen)
        return pixels, torch.as_tensor(boxes, dtype=torch.float32)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, streamer: Any | None = None, synced: bool = False
    ) -> list[str]:
        """Answers a batch of prompts greedily.

        Args:
            prompts: at least one; they may differ in length and in number of pictures.
            max_new_tokens: answers are cut there.
            streamer: a transformers streamer that gets the tokens as they come; for one prompt only.
            synced: go on until the longest answer of all processes ends (ZeRO-3, where they gather weights together).

        Returns:
            One answer per prompt, without what ends it.
        """
        batch = collate_prompts(prompts, pad_id=self.tokenizer.pad_token_id)
        tokens = self.model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.stop_ids(),
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=streamer,
            synced_gpus=synced,
        )
        return [self.decode(ids) for ids in tokens.tolist()]

    def stop_ids(self) -> list[int]:
        """Returns the ids that end an answer: eos, and stop words that are one token."""
        ids = [self.tokenizer.eos_token_id]
        for word in self.template.stop_words:
            pieces = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(pieces) == 1:
                ids.append(pieces[0])
        return sorted(set(ids))

    def decode(self, ids: list[int]) -> str:
        """Returns the text of an answer's ids, up to the first that ends it or to the first stop word."""
        stops = set(self.stop_ids())
        end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        for word in self.template.stop_words:
            text = text.split(word)[0]
        return text.strip()

    def save(self, folder: str | Path, model_node: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """Writes a self-contained folder; see `mg_llava.hf.save_pretrained`."""
        # imported late: hf reads assistants back, so it imports this module
        from mg_llava.hf import save_pretrained

        return save_pretrained(self, model_node, folder, facts)

    def start_chat(self) -> ChatSession:
        """Returns a conversation with this model."""
        from mg_llava.chat import ChatSession

        return ChatSession(self)


def collate_prompts(prompts: Sequence[Prompt], pad_id: int) -> dict[str, Any]:
    """Joins prompts to a batch, padded on the left so that all answers start at the same place.

    Returns:
        input_ids (B, T) int64, attention_mask (B, T) bool, pixel_values (I, 3, S, S) uint8 of all pictures in order of
        appearance, boxes: I tensors (N, 4).
    """
    longest = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids)
        input_ids[row, start:] = torch.tensor(prompt.input_ids)
        attention_mask[row, start:] = True
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": torch.cat([prompt.pixel_values for prompt in prompts]),
        "boxes": [boxes for prompt in prompts for boxes in prompt.boxes],
    }

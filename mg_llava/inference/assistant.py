"""From a conversation with pictures to an answer: the one way that evaluation and chat ask the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mg_llava.boxes.selection import BoxSelection, PictureBoxes
from mg_llava.inference.endings import Endings
from mg_llava.inference.generation import Draws
from mg_llava.inference.prompts import Prompt, PromptMaker
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.data.text.fitting import build_template
from xtuner.data.text.specials import Policy
from xtuner.data.text.templates import PromptTemplate

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from mg_llava.model.mg_llava import MGLLaVA


class Assistant:
    """A model with what belongs to it, answering conversations.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's.
        image_processor: as in training.
        template: name or template that the model was trained with.
        boxes: which of a picture's boxes become object tokens.
        special_tokens_in_text: what becomes of special tokens that a user writes, see
            `xtuner.data.text.specials.Policy`.
    """

    def __init__(
        self,
        model: MGLLaVA,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: ImageProcessor,
        template: str | PromptTemplate,
        boxes: BoxSelection | None = None,
        special_tokens_in_text: Policy = "split",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = build_template(template, tokenizer)
        self.boxes = boxes or BoxSelection()
        self.special_tokens_in_text = special_tokens_in_text
        self.endings.tell_differences()

    @property
    def endings(self) -> Endings:
        """What ends this assistant's answers."""
        return Endings(self.tokenizer, self.template, self.model.end_ids)

    @property
    def maker(self) -> PromptMaker:
        """What makes this assistant's prompts."""
        return PromptMaker(self.tokenizer, self.image_processor, self.template, self.boxes, self.special_tokens_in_text)

    @property
    def prepare(self) -> Callable[..., Prompt]:
        """`PromptMaker.prepare` of this assistant's `maker`."""
        return self.maker.prepare

    def choose_boxes(self, found: PictureBoxes, size: tuple[int, int]) -> tuple[PictureBoxes, int]:
        """Returns the boxes that become object tokens, and how many of the chosen lie outside and are left out.

        Args:
            found: of a picture.
            size: its (width, height) in pixels.
        """
        return self.boxes.choose(found, size)

    def room(self, prompt: Prompt) -> int:
        """Returns how many new tokens fit into the language model's context after `prompt`.

        Raises:
            XTunerError: none at all.
        """
        context = getattr(self.model.llm.config, "max_position_embeddings", None)
        if context is None:
            return sys.maxsize
        return prompt.size(self.model.vision.with_objects).room_in(context, self.model.vision.image_tokens)

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        streamer: Any | None = None,
        synced: bool = False,
        draws: Draws | None = None,
        names: Sequence[str] = (),
    ) -> list[str]:
        """Answers a batch of prompts.

        Args:
            prompts: at least one; they may differ in length and in number of pictures.
            max_new_tokens: answers are cut there.
            streamer: a transformers streamer that gets the tokens as they come; for one prompt only.
            synced: go on until the longest answer of all processes ends (ZeRO-3, where they gather weights together).
            draws: how tokens are drawn; None = the likeliest each time.
            names: of the prompts; with `draws` they decide, with its seed, on the random numbers.

        Returns:
            One answer per prompt, without what ends it.
        """
        batch = collate_prompts(prompts, pad_id=self.tokenizer.pad_token_id)
        with self.seeded(draws, names):
            config = self.generation_config(max_new_tokens, draws)
            tokens = self.model.generate(**batch, generation_config=config, streamer=streamer, synced_gpus=synced)
        return [self.decode(ids) for ids in tokens.tolist()]

    @contextmanager
    def seeded(self, draws: Draws | None, names: Sequence[str]) -> Iterator[None]:
        """Lets the random numbers within depend on the seed of `draws` and on `names` alone; None = as they come."""
        devices = [self.model.llm.device] if self.model.llm.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=draws is not None):
            if draws is not None:
                torch.manual_seed(draws.seed_of(names))
            yield

    def greedy(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns arguments of ``generate`` for the likeliest answer, ending where the template says."""
        return {"generation_config": self.generation_config(max_new_tokens)}

    def generation_config(self, max_new_tokens: int, draws: Draws | None = None) -> GenerationConfig:
        """See `Endings.generation_config`."""
        return self.endings.generation_config(max_new_tokens, draws)

    def generation_facts(self, max_new_tokens: int, draws: Draws | None = None) -> dict[str, Any]:
        """Returns how answers are made, and what the language model's folder asked for instead, as JSON values."""
        used = self.generation_config(max_new_tokens, draws).to_diff_dict()
        used.pop("transformers_version", None)
        return {"used": used, "asked_by_language_model": self.model.asked_generation}

    def stop_ids(self) -> list[int]:
        """See `Endings.stop_ids`."""
        return self.endings.stop_ids()

    def finish_reason(self, ids: list[int]) -> str:
        """See `Endings.finish_reason`."""
        return self.endings.finish_reason(ids)

    def decode(self, ids: list[int]) -> str:
        """See `Endings.decode`."""
        return self.endings.decode(ids)


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

"""Where an answer ends: by the template, the tokenizer and what the language model's own files say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mg_llava.inference.generation import Draws, greedy_config
from xtuner.data.text.templates import PromptTemplate
from xtuner.log import get_logger

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class Endings:
    """Ends answers and reads them, whatever engine generates their ids.

    Args:
        tokenizer: the model's.
        template: that the model was trained with.
        end_ids: ids that end an answer by the language model's own files.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, end_ids: Iterable[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.end_ids = tuple(end_ids)

    def stop_ids(self) -> list[int]:
        """Returns the ids that end an answer: eos, stop words that are one token, and the language model's own."""
        return sorted({*self._template_ends(), *self.end_ids})

    def generation_config(self, max_new_tokens: int, draws: Draws | None = None) -> GenerationConfig:
        """Returns how answers are made: greedily, or by `draws`; nothing else has a say in it."""
        tokenizer = self.tokenizer
        config = greedy_config(max_new_tokens, self.stop_ids(), tokenizer.pad_token_id, tokenizer.bos_token_id)
        return config if draws is None else draws.config(config)

    def finish_reason(self, ids: list[int]) -> str:
        """Returns why an answer ended: ``stop`` (by itself, or at a stop word), ``length`` (it was cut)."""
        if not set(self.stop_ids()).isdisjoint(ids):
            return "stop"
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return "stop" if any(word in text for word in self.template.stop_words) else "length"

    def decode(self, ids: list[int]) -> str:
        """Returns the text of an answer's ids, up to the first that ends it or to the first stop word."""
        stops = set(self.stop_ids())
        end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        for word in self.template.stop_words:
            text = text.split(word)[0]
        return text.strip()

    def tell_differences(self) -> None:
        """Names the ends by which the language model's folder and the template differ."""
        theirs, ours = set(self.end_ids), self._template_ends()
        if not theirs or theirs == ours:
            return
        lists = [
            ", ".join(f"{self.tokenizer.convert_ids_to_tokens(end)} ({end})" for end in sorted(ends)) or "nothing"
            for ends in (theirs - ours, ours - theirs)
        ]
        get_logger().info(
            "An answer ends at each token that the language model's generation_config.json or the template names. "
            "Only generation_config.json names %s, only template %s with its tokenizer names %s.",
            *(lists[0], self.template.name, lists[1]),
        )

    def _template_ends(self) -> set[int]:
        ids = {self.tokenizer.eos_token_id}
        for word in self.template.stop_words:
            pieces = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(pieces) == 1:
                ids.add(pieces[0])
        return ids

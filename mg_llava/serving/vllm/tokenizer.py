"""The tokenizer that vLLM asks: ids of a conversation as training has them, which cuts it at the template's words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import BatchEncoding

from mg_llava.hf.processing import MGLLaVAProcessor


class FolderTokenizer:
    """Makes the tokenizer of an exported folder."""

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Returns vLLM's own tokenizer of the folder, whose call on one text gives `MGLLaVAProcessor.text_ids`, without
        a bos that was not asked for.

        Args:
            path_or_repo_id: of an exported folder.
            args, kwargs: of vLLM's tokenizer.

        Raises:
            XTunerError: the folder has no processor.
        """
        from vllm.tokenizers.hf import CachedHfTokenizer

        plain = CachedHfTokenizer.from_pretrained(path_or_repo_id, *args, **kwargs)
        where = {} if kwargs.get("revision") is None else {"revision": kwargs["revision"]}
        return cut_by(plain, MGLLaVAProcessor.from_pretrained(str(path_or_repo_id), **where))


def cut_by(tokenizer: Any, processor: MGLLaVAProcessor) -> Any:
    """Returns a copy of `tokenizer` whose call on one text gives `processor`'s ids; where ``add_special_tokens`` is
    false, without a bos that the text does not have.

    Everything else of it stays: decoding, and several texts, which no server gives it.
    """

    class CuttingTokenizer(tokenizer.__class__):  # type: ignore[misc]
        def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
            if not isinstance(text, str) or args or options.get("return_offsets_mapping"):
                return super().__call__(text, *args, **options)
            # an attribute, so that a copy for another thread has a processor of its own
            ids = self.cutting_processor.text_ids(text)
            if not options.get("add_special_tokens", True) and not text.startswith(self.bos_token or ""):
                # a word that must not come, say
                ids = ids[1:]
            longest = options.get("max_length") if options.get("truncation") else None
            if longest is not None and len(ids) > longest:
                ids = ids[len(ids) - longest :] if self.truncation_side == "left" else ids[:longest]
            return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})

        def encode(self, text: Any, *args: Any, **options: Any) -> Any:
            return self(text, *args, **options)["input_ids"]

        @property
        def max_token_id(self) -> int:
            # vLLM refuses prompts with ids beyond, and the language model has no logit for `<image>`; where it has
            # one, vLLM goes by the larger of this number and the model's own
            return min(super().max_token_id, self.cutting_processor.image_token_id - 1)

        def __reduce__(self) -> Any:
            return cut_by, (tokenizer, self.cutting_processor)

    cutting = copy.copy(tokenizer)
    CuttingTokenizer.__name__ = f"Cutting{cutting.__class__.__name__}"
    cutting.__class__ = CuttingTokenizer
    cutting.cutting_processor = processor
    return cutting

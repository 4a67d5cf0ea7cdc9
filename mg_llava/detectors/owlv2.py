"""OWLv2 (arXiv 2306.09683) over a vocabulary, or over each picture's own tags as the published boxes were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes, no_boxes
from mg_llava.detectors.base import load, load_model, read_vocabulary, sizes_of, to_picture_boxes, without_extremes
from xtuner.errors import XTunerError
from xtuner.registry import build

_TEXTS = 256
"""Names that the text tower reads at once."""


class Owlv2Detector:
    """OWLv2 of transformers; the text tower runs once per name, not once per picture.

    Args:
        name_or_path: folder or hub name, e.g. google/owlv2-large-patch14-ensemble.
        vocabulary: file of names, see `read_vocabulary`; None = the shipped everyday objects. Not used with a tagger.
        tagger: node of or built tagger, which says per picture what to look for; None = the vocabulary.
        prompt: text of a name, with ``{}``.
        threshold: least score, 0 to 1.
        max_boxes: most boxes of a picture, the best; None = all.
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        device: where it computes; None = the CPU.

    Raises:
        XTunerError: the checkpoint or the vocabulary cannot be read.
    """

    def __init__(
        self,
        name_or_path: str,
        vocabulary: str | None = None,
        tagger: Mapping[str, Any] | Any = None,
        prompt: str = "a photo of {}",
        threshold: float = 0.2,
        max_boxes: int | None = None,
        dtype: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        from transformers import AutoProcessor, Owlv2ForObjectDetection

        if "{}" not in prompt:
            raise XTunerError(f"prompt is {prompt!r}: expected a text with {{}} where the name stands.")
        self.names = read_vocabulary(vocabulary) if tagger is None else []
        self.model = load_model(Owlv2ForObjectDetection, name_or_path, dtype, device)
        self.processor = load(AutoProcessor, name_or_path)
        self.tagger = build(tagger) if tagger is None else build(tagger, device=device)
        self.prompt = prompt
        self.threshold = threshold
        self.max_boxes = max_boxes
        self._embeds: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        """See `Detector`; pictures whose tagger says nothing have no boxes."""
        if not pictures:
            return []
        names = [self.names] * len(pictures) if self.tagger is None else self.tagger(pictures, keys)
        if not any(names):
            return [no_boxes() for _ in pictures]
        queries, mask = self._queries(names)
        shown = without_extremes(pictures, max(dict(self.processor.image_processor.size).values()))
        pixels = self.processor.image_processor(images=shown, return_tensors="pt")["pixel_values"]
        feature_map, _ = self.model.image_embedder(pixel_values=pixels.to(self.model.device, self.model.dtype))
        features = feature_map.flatten(1, 2)
        logits, _ = self.model.class_predictor(features, queries, mask)
        outputs = SimpleNamespace(
            logits=logits.float(), pred_boxes=self.model.box_predictor(features, feature_map).float()
        )
        results = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=sizes_of(pictures)
        )
        return [
            to_picture_boxes(
                result["boxes"],
                [own[label] for label in result["labels"].tolist()] if own else [],
                result["scores"] if own else result["scores"][:0],
                picture.size,
                self.max_boxes,
            )
            if own
            else no_boxes()
            for result, own, picture in zip(results, names, pictures, strict=True)
        ]

    def _queries(self, names: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Text embeddings (B, Q, D) of each picture's names, padded, and which are some, (B, Q)."""
        self._embed(list(dict.fromkeys(name for own in names for name in own)))
        longest = max(map(len, names))
        width = next(iter(self._embeds.values())).shape[-1]
        queries = torch.zeros(len(names), longest, width, device=self.model.device, dtype=self.model.dtype)
        mask = torch.zeros(len(names), longest, dtype=torch.bool, device=self.model.device)
        for row, own in enumerate(names):
            if own:
                queries[row, : len(own)] = torch.stack([self._embeds[name] for name in own])
                mask[row, : len(own)] = True
        return queries, mask

    def _embed(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._embeds]
        for start in range(0, len(new), _TEXTS):
            some = new[start : start + _TEXTS]
            texts = [self.prompt.replace("{}", name) for name in some]
            # the length that the model was trained with; longer texts are cut
            tokens = self.processor.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self._text_length(), return_tensors="pt"
            ).to(self.model.device)
            pooled = self.model.owlv2.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
            embeds = self.model.owlv2.text_projection(pooled)
            self._embeds.update(zip(some, embeds / embeds.norm(dim=-1, keepdim=True), strict=True))

    def _text_length(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

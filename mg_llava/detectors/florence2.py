"""Florence-2 (arXiv 2311.06242): writes objects and boxes as text; it gives no scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.detectors.base import load, load_model, to_picture_boxes
from xtuner.log import get_logger

_SCORE = 1.0


class Florence2Detector:
    """Florence-2 of transformers. All boxes get the score 1, so a limit on boxes keeps them in the order of the text.

    Args:
        name_or_path: folder or hub name, e.g. florence-community/Florence-2-large.
        task: ``<OD>`` (its own classes) or ``<DENSE_REGION_CAPTION>`` (short captions).
        max_new_tokens: of the text that it writes.
        num_beams: of its search.
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        device: where it computes; None = the CPU.

    Raises:
        XTunerError: the checkpoint cannot be read.
    """

    def __init__(
        self,
        name_or_path: str,
        task: str = "<OD>",
        max_new_tokens: int = 1024,
        num_beams: int = 3,
        dtype: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        self.model = load_model(Florence2ForConditionalGeneration, name_or_path, dtype, device)
        self.processor = load(AutoProcessor, name_or_path)
        self.task = task
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        get_logger().warning("Florence-2 gives no scores: every box gets %.0f.", _SCORE)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        """See `Detector`."""
        if not pictures:
            return []
        inputs = self.processor(images=list(pictures), text=[self.task] * len(pictures), return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        ids = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, do_sample=False
        )
        texts = self.processor.batch_decode(ids, skip_special_tokens=False)
        found = []
        for text, picture in zip(texts, pictures, strict=True):
            parsed = self.processor.post_process_generation(text, task=self.task, image_size=picture.size)[self.task]
            scores = [_SCORE] * len(parsed["labels"])
            found.append(to_picture_boxes(parsed["bboxes"], parsed["labels"], scores, picture.size))
        return found

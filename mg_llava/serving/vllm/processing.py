"""Requests to vLLM's inputs, by the processor of the exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageSize, ModalityDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from mg_llava.boxes.selection import MOST_BOXES
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.picture_sources import read_source
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.pictures.frames import sides
from mg_llava.serving.requests.pictures import check_boxes
from mg_llava.serving.vllm import media  # noqa: F401  registers the connector in each process
from mg_llava.serving.vllm.boxed import BoxedPicture, join_options, kept_name, read_pictures, spread_boxes
from mg_llava.serving.vllm.prepared import PreparedPicture

_IMAGE = "image"
Picture: TypeAlias = BoxedPicture | PreparedPicture


class BoxedPictures(ModalityDataItems[Sequence[Picture], Any]):
    """The pictures of a request."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        super().__init__(pictures, _IMAGE)

    def get_count(self) -> int:
        """Number of pictures."""
        return len(self.data)

    def get(self, index: int) -> Picture | None:
        """The picture at a place; None where vLLM has to have kept it."""
        picture = self.data[index]
        return None if isinstance(picture, BoxedPicture) and picture.source is None else picture

    def get_item_for_hash(self, index: int) -> object:
        """What the cache knows the picture by: boxes count."""
        return self.data[index].cache_key

    def get_processor_data(self) -> Mapping[str, object]:
        """What `Processor` reads."""
        return {"pictures": list(self.data)}

    def get_passthrough_data(self) -> Mapping[str, object]:
        """Nothing passes by the processor."""
        return {}

    def get_image_size(self, index: int) -> ImageSize:
        """(width, height) in pixels."""
        picture = self.data[index]
        if isinstance(picture, PreparedPicture):
            return ImageSize(*reversed(picture.pixels.shape[1:]))
        return ImageSize(*read_source(picture.content).size)


class BoxedPictureParser(MultiModalDataParser):
    """Takes pictures in all of `BoxedPicture`'s forms."""

    def _parse_image_data(self, data: Any) -> BoxedPictures | None:
        return None if data is None else BoxedPictures(read_pictures(data))


class ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about the folder."""

    def get_hf_config(self) -> MGLLaVAConfig:
        """The folder's config."""
        return self.ctx.get_hf_config(MGLLaVAConfig)

    def get_hf_processor(self, **_: object) -> MGLLaVAProcessor:
        """The folder's processor; options of requests make no other one."""
        return self.ctx.get_hf_processor(MGLLaVAProcessor)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of pictures, within ``--limit-mm-per-prompt``."""
        return {_IMAGE: None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """No option belongs to one of transformers' groups."""
        return {}

    def get_data_parser(self) -> MultiModalDataParser:
        """Reads pictures with boxes."""
        return BoxedPictureParser(expected_hidden_size=self._get_expected_hidden_size())

    def most_boxes(self, seq_len: int) -> int:
        """Most object tokens of a picture in a context of so many tokens."""
        processor = self.get_hf_processor()
        if not processor.with_objects:
            return 0
        selection = processor.boxes
        bounded = selection.limit_mode == "per_image" and selection.limit_num is not None
        most = selection.limit_num if bounded else MOST_BOXES
        return max(min(most or MOST_BOXES, seq_len - processor.num_image_tokens), 0)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of a picture with as many boxes as it can have."""
        return {_IMAGE: self.get_hf_processor().num_image_tokens + self.most_boxes(seq_len)}


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """The largest inputs, by which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A place for each picture."""
        return self.info.get_hf_processor().image_token * mm_counts.get(_IMAGE, 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Pictures with as many boxes as they can have."""
        height, width = sides(self.info.get_hf_processor().image_processor.image_size)
        boxes = spread_boxes(self.info.most_boxes(seq_len), min(height, width))
        picture = {"image": Image.new("RGB", (width, height)), "boxes": boxes}
        return {_IMAGE: [picture] * mm_counts.get(_IMAGE, 0)}


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Gives each picture its boxes, then pixels and placeholders by `MGLLaVAProcessor`."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Processes a request; its boxes become part of its pictures first, so that caches see them.

        Raises:
            XTunerError: boxes that cannot be read, or for another number of pictures.
        """
        pictures = inputs.mm_data_items.get(_IMAGE)
        options = dict(inputs.hf_processor_mm_kwargs)
        if pictures is not None:
            boxed = join_options(pictures.data, options)
            names = (inputs.mm_uuid_items or {}).get(_IMAGE) or [None] * len(boxed)
            told_apart = [kept_name(picture, name) for picture, name in zip(boxed, names, strict=True)]
            inputs = replace(
                inputs,
                mm_data_items=type(inputs.mm_data_items)({**inputs.mm_data_items, _IMAGE: BoxedPictures(boxed)}),
                mm_uuid_items={**(inputs.mm_uuid_items or {}), _IMAGE: told_apart},
                hf_processor_mm_kwargs={},
            )
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        # not by vLLM's call, which casts boxes to the model's number format: bfloat16 has no pixel 301
        given: Any = hf_data["pictures"]
        made = [self._prepare(picture) for picture in given]
        return BatchFeature(
            {
                "pixel_values": torch.stack([pixels.contiguous() for pixels, _ in made]),
                "boxes": torch.cat([boxes for _, boxes in made]),
                "box_counts": torch.tensor([len(boxes) for _, boxes in made]),
            }
        )

    def _prepare(self, picture: Picture) -> tuple[torch.Tensor, torch.Tensor]:
        processor = self.info.get_hf_processor()
        if isinstance(picture, PreparedPicture):
            return picture.pixels, picture.boxes if processor.with_objects else picture.boxes[:0]
        opened = read_source(picture.content, processor.image_processor.apply_exif_orientation)
        if picture.found is not None:
            check_boxes(picture.found, opened.size)
        return processor.prepare_picture(opened, picture.found)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        counts = hf_inputs.get("box_counts", torch.zeros(0, dtype=torch.long))
        return {
            "pixel_values": MultiModalFieldConfig.batched(_IMAGE),
            "boxes": MultiModalFieldConfig.flat_from_sizes(_IMAGE, counts),
            "box_counts": MultiModalFieldConfig.batched(_IMAGE, keep_on_cpu=True),
        }

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        processor = self.info.get_hf_processor()

        def expand(index: int) -> list[int]:
            return processor.picture_ids(int(out_mm_kwargs[_IMAGE][index]["box_counts"].data))

        return [PromptReplacement(modality=_IMAGE, target=[processor.image_token_id], replacement=expand)]

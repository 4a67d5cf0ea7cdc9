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
from mg_llava.serving.vllm.prepared import PreparedPicture, in_vocabulary
from mg_llava.serving.vllm.videos import BoxedVideo, kept_video_name, read_videos
from xtuner.data.text.rendered import VIDEO_PLACE

_IMAGE, _VIDEO = "image", "video"
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


class BoxedVideos(ModalityDataItems[Sequence[BoxedVideo], Any]):
    """The videos of a request."""

    def __init__(self, videos: Sequence[BoxedVideo]) -> None:
        super().__init__(videos, _VIDEO)

    def get_count(self) -> int:
        """Number of videos."""
        return len(self.data)

    def get(self, index: int) -> BoxedVideo | None:
        """The video at a place; None where vLLM has to have kept it."""
        return None if self.data[index].source is None else self.data[index]

    def get_item_for_hash(self, index: int) -> object:
        """What the cache knows the video by: frames and boxes count."""
        return self.data[index].cache_key

    def get_processor_data(self) -> Mapping[str, object]:
        """What `Processor` reads."""
        return {"videos": list(self.data)}

    def get_passthrough_data(self) -> Mapping[str, object]:
        """Nothing passes by the processor."""
        return {}


class BoxedPictureParser(MultiModalDataParser):
    """Takes pictures in all of `BoxedPicture`'s forms, and videos in all of `BoxedVideo`'s."""

    def _parse_image_data(self, data: Any) -> BoxedPictures | None:
        return None if data is None else BoxedPictures(read_pictures(data))

    def _parse_video_data(self, data: Any) -> BoxedVideos | None:
        return None if data is None else BoxedVideos(read_videos(data))


class ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about the folder."""

    def get_hf_config(self) -> MGLLaVAConfig:
        """The folder's config."""
        return self.ctx.get_hf_config(MGLLaVAConfig)

    def get_hf_processor(self, **_: object) -> MGLLaVAProcessor:
        """The folder's processor; options of requests make no other one."""
        return self.ctx.get_hf_processor(MGLLaVAProcessor)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of pictures and videos, within ``--limit-mm-per-prompt``."""
        return {_IMAGE: None, _VIDEO: None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """No option belongs to one of transformers' groups."""
        return {}

    def get_data_parser(self) -> MultiModalDataParser:
        """Reads pictures and videos with boxes."""
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
        """Tokens of a picture, and of a video, with as many boxes as they can have."""
        each, most = self.get_hf_processor().image_tokens, self.most_boxes(seq_len)
        return {_IMAGE: each.picture + most, _VIDEO: min(self.most_frames() * (each.frame + most), seq_len)}

    def most_frames(self) -> int:
        """Most frames that the folder's rule takes of a video."""
        rule = self.get_hf_processor().frame_sampling
        return rule.count or rule.max_frames


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """The largest inputs, by which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A place for each picture and video."""
        return self.info.get_hf_processor().image_token * mm_counts.get(_IMAGE, 0) + VIDEO_PLACE * mm_counts.get(
            _VIDEO, 0
        )

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Pictures and videos with as many boxes as they can have."""
        processor, most = self.info.get_hf_processor(), self.info.most_boxes(seq_len)
        height, width = sides(processor.image_processor.image_size)
        blank, each = Image.new("RGB", (width, height)), processor.image_tokens.frame
        picture = {"image": blank, "boxes": spread_boxes(most, min(height, width))}
        frames = max(1, min(self.info.most_frames(), seq_len // each))
        per_frame = spread_boxes(min(most, max(seq_len // frames - each, 0)), min(height, width))
        video = {"video": [blank] * frames, "boxes": [per_frame] * frames}
        return {_IMAGE: [picture] * mm_counts.get(_IMAGE, 0), _VIDEO: [video] * mm_counts.get(_VIDEO, 0)}


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Gives each picture its boxes and each video its frames, then pixels and placeholders by `MGLLaVAProcessor`."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Processes a request; its boxes become part of its pictures first, so that caches see them.

        Raises:
            XTunerError: boxes that cannot be read, or for another number of pictures.
        """
        items, names = dict(inputs.mm_data_items), dict(inputs.mm_uuid_items or {})
        if _IMAGE in items or _VIDEO in items:
            pictures = items[_IMAGE].data if _IMAGE in items else []
            boxed = join_options(pictures, dict(inputs.hf_processor_mm_kwargs))
            if boxed:
                items[_IMAGE] = BoxedPictures(boxed)
                given = names.get(_IMAGE) or [None] * len(boxed)
                names[_IMAGE] = [kept_name(picture, name) for picture, name in zip(boxed, given, strict=True)]
            if _VIDEO in items:
                videos = items[_VIDEO].data
                given = names.get(_VIDEO) or [None] * len(videos)
                names[_VIDEO] = [kept_video_name(video, name) for video, name in zip(videos, given, strict=True)]
            inputs = replace(
                inputs,
                mm_data_items=type(inputs.mm_data_items)(items),
                mm_uuid_items=names,
                hf_processor_mm_kwargs={},
            )
        made = super().apply(inputs, timing_ctx)
        # from here on positions say where pictures are; of ids beyond the logits vLLM would look up log-probabilities
        made["prompt_token_ids"] = in_vocabulary(
            made["prompt_token_ids"],
            self.info.get_hf_config().text_config.vocab_size,
            self.info.get_hf_processor().tokenizer,
        )
        return made

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        # not by vLLM's call, which casts boxes to the model's number format: bfloat16 has no pixel 301
        pictures: Any = hf_data.get("pictures") or []
        videos: Any = hf_data.get("videos") or []
        return BatchFeature(
            {**(self._of_pictures(pictures) if pictures else {}), **(self._of_videos(videos) if videos else {})}
        )

    def _of_pictures(self, given: Sequence[Picture]) -> dict[str, torch.Tensor]:
        made = [self._prepare(picture) for picture in given]
        return {
            "pixel_values": torch.stack([pixels.contiguous() for pixels, _ in made]),
            "boxes": torch.cat([boxes for _, boxes in made]),
            "box_counts": torch.tensor([len(boxes) for _, boxes in made]),
            "is_frame": torch.tensor([isinstance(one, PreparedPicture) and one.is_frame for one in given]),
        }

    def _of_videos(self, given: Sequence[BoxedVideo]) -> dict[str, torch.Tensor]:
        processor = self.info.get_hf_processor()
        shown = [video.frames(processor.frame_sampling) for video in given]
        made = [
            processor.prepare_picture(picture, found)
            for one in shown
            for picture, found in zip(one.pictures, one.found or [None] * len(one.pictures), strict=True)
        ]
        return {
            "video_pixel_values": torch.stack([pixels.contiguous() for pixels, _ in made]),
            "video_boxes": torch.cat([boxes for _, boxes in made]),
            "video_box_counts": torch.tensor([len(boxes) for _, boxes in made]),
            "video_frame_counts": torch.tensor([len(one.pictures) for one in shown]),
        }

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
        none = torch.zeros(0, dtype=torch.long)
        counts, frames = hf_inputs.get("box_counts", none), hf_inputs.get("video_frame_counts", none)
        of_frames = hf_inputs.get("video_box_counts", none).split(frames.tolist())
        per_video = torch.tensor([int(boxes.sum()) for boxes in of_frames], dtype=torch.long)
        return {
            "pixel_values": MultiModalFieldConfig.batched(_IMAGE),
            "boxes": MultiModalFieldConfig.flat_from_sizes(_IMAGE, counts),
            "box_counts": MultiModalFieldConfig.batched(_IMAGE, keep_on_cpu=True),
            "is_frame": MultiModalFieldConfig.batched(_IMAGE, keep_on_cpu=True),
            "video_pixel_values": MultiModalFieldConfig.flat_from_sizes(_VIDEO, frames),
            "video_boxes": MultiModalFieldConfig.flat_from_sizes(_VIDEO, per_video),
            "video_box_counts": MultiModalFieldConfig.flat_from_sizes(_VIDEO, frames, keep_on_cpu=True),
            "video_frame_counts": MultiModalFieldConfig.batched(_VIDEO, keep_on_cpu=True),
        }

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        processor = self.info.get_hf_processor()

        def expand(index: int) -> list[int]:
            item = out_mm_kwargs[_IMAGE][index]
            return processor.picture_ids(int(item["box_counts"].data), bool(item["is_frame"].data))

        def expand_video(index: int) -> list[int]:
            counts = out_mm_kwargs[_VIDEO][index]["video_box_counts"].data.tolist()
            return [one for count in counts for one in processor.picture_ids(count, is_frame=True)]

        return [
            PromptReplacement(modality=_IMAGE, target=[processor.image_token_id], replacement=expand),
            PromptReplacement(modality=_VIDEO, target=[processor.video_place_id], replacement=expand_video),
        ]

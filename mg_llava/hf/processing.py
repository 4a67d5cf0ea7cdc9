"""The processor as transformers knows it: messages, or texts and pictures with boxes, to the model's inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from mg_llava.boxes.selection import BoxSelection, PictureBoxes
from mg_llava.hf.chat_template import to_jinja
from mg_llava.hf.picture_sources import read_source
from mg_llava.inference.messages import Conversation, read_messages
from mg_llava.inference.prompts import Prompt, PromptMaker, as_picture_boxes, boxes_per_picture
from mg_llava.inference.video_sources import mark_frames, place_in_texts, read_video_source, with_given_boxes
from mg_llava.pictures.pooling import FramePooling, ImageTokens
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.pictures.statistics import read_preprocessing
from mg_llava.videos.sampling import FrameSampling
from mg_llava.videos.shown import VideoFrames
from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, PICTURE_INDICES, VIDEO_TOKEN_INDEX
from xtuner.data.records.messages import picture_address
from xtuner.data.text.rendered import VIDEO_PLACE, cut_rendered
from xtuner.data.text.specials import Policy, check_policy, special_tokens
from xtuner.data.text.templates import PromptTemplate
from xtuner.data.text.tokenizing import encode_pieces
from xtuner.errors import XTunerError

PROCESSOR_FILE = "processor_config.json"
_IMAGE_FIELDS = ("image", "url", "path", "base64")


class MGLLaVABatch(BatchFeature):
    """Inputs whose boxes keep their float32 when the batch is cast: bfloat16 has no pixel 301."""

    def to(self, *args: Any, **kwargs: Any) -> MGLLaVABatch:
        """As in transformers."""
        boxes = self.data.get("boxes")
        super().to(*args, **kwargs)
        if boxes is not None:
            self.data["boxes"] = boxes.to(self.data["input_ids"].device)
        return self


class MGLLaVAProcessor(ProcessorMixin):
    """Makes what `MGLLaVAForConditionalGeneration` takes, by the code that training uses.

    Args:
        image_processor: pictures and boxes to the model's frame.
        tokenizer: with the token ``<image>``.
        prompt_template: words around the turns.
        boxes: which of a picture's boxes become object tokens.
        num_image_tokens: V, placeholders of a picture.
        with_objects: whether boxes become object tokens.
        special_tokens_in_text: what becomes of special tokens that a user writes, see
            `xtuner.data.text.specials.Policy`.
        pixels: arguments of `PixelNormalizer`, for those who normalise themselves: the model does it for its own.
        frame_sampling: which frames of a video are taken.
        num_frame_tokens: placeholders of a frame; None = V.
    """

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Any,
        prompt_template: PromptTemplate,
        boxes: BoxSelection,
        num_image_tokens: int,
        with_objects: bool,
        special_tokens_in_text: Policy = "split",
        pixels: Mapping[str, Any] | None = None,
        frame_sampling: FrameSampling | None = None,
        num_frame_tokens: int | None = None,
    ) -> None:
        self.frame_sampling = frame_sampling or FrameSampling()
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.prompt_template = prompt_template
        self.boxes = boxes
        self.image_tokens = ImageTokens(num_image_tokens, num_frame_tokens or num_image_tokens)
        self.with_objects = with_objects
        self.pixels = dict(pixels or {})
        self.special_tokens_in_text = check_policy(special_tokens_in_text)
        special = special_tokens(tokenizer, prompt_template).words
        self.chat_template = to_jinja(prompt_template, tokenizer.bos_token, tokenizer.eos_token, special)
        self.image_token = IMAGE_TOKEN
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.video_place_id = max(tokenizer.get_vocab().values()) + 1
        self._maker = PromptMaker(tokenizer, image_processor, prompt_template, boxes, special_tokens_in_text)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> MGLLaVAProcessor:
        """Reads the processor of an exported folder or hub name.

        Raises:
            XTunerError: the folder has no processor_config.json of this class.
        """
        hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
        values, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub)
        if "prompt_template" not in values:
            raise XTunerError(
                f"'{pretrained_model_name_or_path}' has no {PROCESSOR_FILE} of {cls.__name__}: convert the "
                f"checkpoint again."
            )
        # folders of before do not say how frames are pooled: they are not
        picture = {**values["picture"], "frame_pooling": FramePooling(**values["picture"].get("frame_pooling", {}))}
        return cls(
            image_processor=ImageProcessor(str(pretrained_model_name_or_path), **picture),
            tokenizer=AutoTokenizer.from_pretrained(pretrained_model_name_or_path, padding_side="left", **hub),
            prompt_template=PromptTemplate(**values["prompt_template"]),
            boxes=BoxSelection(**values["boxes"]),
            num_image_tokens=values["num_image_tokens"],
            with_objects=values["with_objects"],
            # folders of before do not say
            special_tokens_in_text=values.get("special_tokens_in_text", "split"),
            pixels=values.get("pixels"),
            frame_sampling=FrameSampling(**values.get("frame_sampling", {})),
            num_frame_tokens=values.get("num_frame_tokens"),
        )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes tokenizer, chat template, picture settings and `processor_config.json`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.chat_template = self.chat_template
        self.tokenizer.save_pretrained(folder)
        pixels = read_preprocessing(self.image_processor.name_or_path)
        pixels = {**pixels, "processor_class": type(self).__name__}
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1) + "\n", encoding="utf-8")
        (folder / PROCESSOR_FILE).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.get("repo_id", folder.name))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `processor_config.json`."""
        picture = self.image_processor
        return {
            "processor_class": type(self).__name__,
            "picture": {
                "image_size": picture.image_size,
                "pad_to_square": picture.pad_to_square,
                "apply_exif_orientation": picture.apply_exif_orientation,
                "low_res_size": picture.low_res_size,
                "frame_pooling": asdict(picture.frame_pooling),
            },
            "prompt_template": asdict(self.prompt_template),
            "boxes": asdict(self.boxes),
            "num_image_tokens": self.num_image_tokens,
            "num_frame_tokens": self.image_tokens.frame,
            "with_objects": self.with_objects,
            "special_tokens_in_text": self.special_tokens_in_text,
            "pixels": self.pixels,
            "frame_sampling": asdict(self.frame_sampling),
        }

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns."""
        names = ["input_ids", "attention_mask", "pixel_values", "boxes", "box_counts"]
        return [*names, "is_frame"] if self.pools_frames else names

    @property
    def num_image_tokens(self) -> int:
        """V, placeholders of a picture."""
        return self.image_tokens.picture

    @property
    def pools_frames(self) -> bool:
        """Whether a frame takes fewer placeholders than a picture, so that the model is told which they are."""
        return self.image_tokens.frame != self.image_tokens.picture

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        boxes: Any = None,
        videos: Any = None,
        video_boxes: Sequence[Any] | None = None,
        **_: Any,
    ) -> MGLLaVABatch:
        """Texts with ``<image>`` at the place of each picture to a batch, padded on the left.

        What `apply_chat_template` rendered gives the ids that it gives with ``tokenize=True``: it is cut at the
        template's words. Special tokens in a text are special: a string does not show who wrote them.

        Args:
            images: pictures (or paths, or addresses) in the order of their places; lists of them per text are joined.
            text: one or several; bos is put before each that does not begin with it.
            boxes: one entry per picture, see `as_picture_boxes`; None = no object tokens.
            videos: in the order of their ``<video>``, see `read_video_source`; one alone or a list of them. Without,
                ``<video>`` is text.
            video_boxes: one entry per video, see `with_given_boxes`.

        Raises:
            XTunerError: other numbers of places, pictures, videos and boxes.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise XTunerError("the processor got no text: give one, with <image> at the place of each picture.")
        turn = self.image_processor.apply_exif_orientation
        pictures = [read_source(picture, turn) for picture in _flat(images)]
        found = boxes_per_picture(boxes, len(pictures))
        frames: list[bool] = []
        if videos is not None:
            shown = self._videos(videos, video_boxes)
            texts, both, frames = place_in_texts(texts, list(zip(pictures, found, strict=True)), shown)
            pictures, found = [picture for picture, _ in both], [one for _, one in both]
        elif any(VIDEO_PLACE in words for words in texts):
            raise XTunerError("the text has a place of a video: give the video as videos=.")
        prompts = []
        for words in texts:
            count = words.count(IMAGE_TOKEN)
            ids = mark_frames(self._ids(words), frames[:count])
            prompts.append(self._maker.join(ids, pictures[:count], found[:count]))
            pictures, found, frames = pictures[count:], found[count:], frames[count:]
        if pictures:
            raise XTunerError(
                f"pictures without a place in the text: {len(pictures)}. Put {IMAGE_TOKEN} where each belongs."
            )
        return self.collate(prompts)

    @property
    def maker(self) -> PromptMaker:
        """What makes prompts of turns and open pictures, as an assistant's does."""
        return self._maker

    def _videos(self, videos: Any, boxes: Sequence[Any] | None) -> list[VideoFrames]:
        given = videos if isinstance(videos, (list, tuple)) and not _is_frames(videos) else [videos]
        found = [None] * len(given) if boxes is None else list(boxes)
        if len(found) != len(given):
            raise XTunerError(f"video_boxes has {len(found)} entries for {len(given)} videos: give one for each video.")
        read = [read_video_source(one, self.frame_sampling) for one in given]
        return [with_given_boxes(video, one) for video, one in zip(read, found, strict=True)]

    def text_ids(self, words: str) -> list[int]:
        """Returns the ids of a rendered conversation as training has them, one placeholder at each ``<image>``, and
        `video_place_id`, which is no token's, at the place of each video.

        Args:
            words: what `apply_chat_template` rendered, or any other text; bos is put first where it is not there.
        """
        places = {IMAGE_TOKEN_INDEX: self.image_token_id, VIDEO_TOKEN_INDEX: self.video_place_id}
        return [places.get(token, token) for token in self._ids(words)]

    def _ids(self, words: str) -> list[int]:
        pieces = cut_rendered(words, self.prompt_template, self.tokenizer.bos_token, self.tokenizer.eos_token)
        return encode_pieces(pieces, self.tokenizer, self.prompt_template)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        boxes: Any = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages to text or, with `tokenize`, to the very ids that training saw.

        Args:
            conversation: messages, or several lists of them; images as parts ``{"type": "image", "image": picture or
                path}`` which may have ``boxes`` of their own, videos as ``{"type": "video", "video": path}`` likewise.
            chat_template: another Jinja template; text only.
            tokenize: return a batch (with `return_dict`) or its ids.
            add_generation_prompt: accepted; prompts always end where the answer starts.
            continue_final_message: the last message is the beginning of the answer.
            return_dict: with `tokenize`, all inputs instead of the ids only.
            boxes: one entry per picture of all messages, see `as_picture_boxes`.
            processor_kwargs: may hold ``boxes`` too, as pipelines pass it.
            kwargs: of the tokenizer's method, without `tokenize`.

        Raises:
            XTunerError: messages that cannot be read.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        if not tokenize:
            return self.tokenizer.apply_chat_template(
                conversation,
                chat_template=chat_template or self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{key: value for key, value in kwargs.items() if key not in ("return_tensors", "padding")},
            )
        given = (processor_kwargs or {}).get("boxes") if boxes is None else boxes
        read = [
            read_messages(messages, self._open_part, continue_final_message, self._open_video)
            for messages in (conversation if several else [conversation])
        ]
        batch = self.collate(self._prompts(read, given))
        return batch if return_dict else batch["input_ids"]

    def _open_part(self, part: Mapping[str, Any]) -> tuple[Image.Image, PictureBoxes | None]:
        source = next((part[field] for field in _IMAGE_FIELDS if field in part), None)
        if source is None:
            address = part.get("image_url")
            source = address.get("url") if isinstance(address, Mapping) else address
        if source is None:
            expected = ", ".join(_IMAGE_FIELDS)
            raise XTunerError(f"an image part has the fields {sorted(part)}: expected one of {expected}.")
        return read_source(source, self.image_processor.apply_exif_orientation), as_picture_boxes(part.get("boxes"))

    def _open_video(self, part: Mapping[str, Any]) -> VideoFrames:
        (video,) = self._videos([picture_address(part)], [part.get("boxes")])
        return video

    def _prompts(self, read: Sequence[Conversation], given: Any) -> list[Prompt]:
        total = sum(len(conversation.pictures) for conversation in read)
        extra = [None] * total if given is None else boxes_per_picture(given, total)
        prompts = []
        for conversation in read:
            if conversation.turns[-1].output is not None:
                raise XTunerError("the messages end with an answer: add a question, or set continue_final_message.")
            count = len(conversation.pictures)
            found = [own if own is not None else other for own, other in zip(conversation.found, extra, strict=False)]
            prompts.append(
                self._maker.prepare(conversation.turns, conversation.pictures, found, conversation.answer_start)
            )
            extra = extra[count:]
        return prompts

    def prepare_picture(self, picture: Any, boxes: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """One picture to what the model takes, as it is in a batch of `__call__`.

        Args:
            picture: one that is open, a path, an address, base64 text or bytes.
            boxes: its boxes, see `as_picture_boxes`.

        Returns:
            uint8 (3, S, S), and (N, 4) float32: a box per object token, xyxy in pixels of the S frame.

        Raises:
            XTunerError: no picture, no boxes, or too many of them.
        """
        opened = read_source(picture, self.image_processor.apply_exif_orientation)
        pixels, chosen = self._maker.prepare_picture(opened, as_picture_boxes(boxes))
        return pixels, chosen if self.with_objects else chosen[:0]

    def picture_ids(self, num_boxes: int, is_frame: bool = False) -> list[int]:
        """Returns the placeholders of a picture, or of a video's frame, with so many object tokens."""
        return [self.image_token_id] * (self.image_tokens.num_images(not is_frame, is_frame) + num_boxes)

    def collate(self, prompts: Sequence[Prompt]) -> MGLLaVABatch:
        """Joins prompts to a batch padded on the left, with a placeholder for each image and object token."""
        rows = [self._expand(prompt) for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id or 0, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, longest - len(row) :] = torch.tensor(row)
            mask[number, longest - len(row) :] = 1
        data: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
        pictures = [picture for prompt in prompts for picture in self._counted(prompt)]
        if pictures:
            data["pixel_values"] = torch.cat([prompt.pixel_values for prompt in prompts])
            data["boxes"] = torch.cat(pictures)
            data["box_counts"] = torch.tensor([len(boxes) for boxes in pictures])
        if pictures and self.pools_frames:
            places = [one for prompt in prompts for one in prompt.input_ids if one in PICTURE_INDICES]
            data["is_frame"] = torch.tensor([one == FRAME_TOKEN_INDEX for one in places])
        return MGLLaVABatch(data)

    def _counted(self, prompt: Prompt) -> list[torch.Tensor]:
        return prompt.boxes if self.with_objects else [boxes[:0] for boxes in prompt.boxes]

    def _expand(self, prompt: Prompt) -> list[int]:
        pictures = iter(self._counted(prompt))
        row: list[int] = []
        for token in prompt.input_ids:
            if token in PICTURE_INDICES:
                row += self.picture_ids(len(next(pictures)), token == FRAME_TOKEN_INDEX)
            else:
                row.append(token)
        return row


def _is_frames(videos: Sequence[Any]) -> bool:
    """True for one video that is given as its frames."""
    return bool(videos) and all(isinstance(one, Image.Image) for one in videos)


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for entry in images for picture in _flat(entry)]
    return [images]

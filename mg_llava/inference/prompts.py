"""From turns with pictures and boxes to what the model is asked: the one way of evaluation, chat, server and
processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mg_llava.boxes.selection import BoxSelection, PictureBoxes, no_boxes
from mg_llava.inference.videos import place_frames
from mg_llava.pictures.frames import sides
from mg_llava.pictures.pooling import ImageTokens
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos.shown import VideoFrames
from xtuner.constants import PICTURE_INDICES
from xtuner.data.text.specials import Policy, check_policy
from xtuner.data.text.templates import PromptTemplate, Turn
from xtuner.data.text.tokenizing import encode_prompt
from xtuner.errors import XTunerError, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, ready for a batch.

    Attributes:
        input_ids: T token ids, `IMAGE_TOKEN_INDEX` at the place of each picture, `FRAME_TOKEN_INDEX` at that of each
            frame of a video, ending where the answer starts.
        pixel_values: (n, 3, S, S) uint8, the n pictures in order.
        boxes: n tensors (N, 4) float32, xyxy in pixels of the S frame.
    """

    input_ids: list[int]
    pixel_values: torch.Tensor
    boxes: list[torch.Tensor]

    def num_tokens(self, each: ImageTokens, with_objects: bool = True) -> int:
        """Returns how many tokens the language model reads: text, those of pictures and frames, one per box."""
        return self.size(with_objects).num_tokens(each)

    def size(self, with_objects: bool = True) -> PromptSize:
        """Returns of what it is made."""
        pictures, frames = (self.input_ids.count(place) for place in PICTURE_INDICES)
        objects = sum(map(len, self.boxes)) if with_objects else 0
        return PromptSize(len(self.input_ids) - pictures - frames, pictures, frames, objects)


@dataclass(frozen=True)
class PromptSize:
    """Of what a prompt is made.

    Attributes:
        texts: tokens of text.
        pictures: number of pictures, frames of videos apart.
        frames: number of frames.
        objects: object tokens of all of them.
    """

    texts: int
    pictures: int
    frames: int
    objects: int

    def num_tokens(self, each: ImageTokens) -> int:
        """Returns how many tokens the language model reads."""
        return self.texts + each.num_images(self.pictures, self.frames) + self.objects

    def room_in(self, context: int, each: ImageTokens) -> int:
        """Returns how many new tokens fit into a language model's context after it.

        Args:
            context: most tokens of prompt and answer.
            each: image tokens of a picture and of a frame.

        Raises:
            XTunerError: none at all.
        """
        used = self.num_tokens(each)
        if used >= context:
            fewer = "show fewer frames (--frames)" if self.frames else "show fewer pictures"
            raise XTunerError(
                f"the prompt has {used} tokens ({each.words(self.pictures, self.frames)}, "
                f"{counted(self.objects, 'boxes')}, {self.texts} of text), but the model's context is {context}: "
                f"{used - context + 1} too many: shorten the question, {fewer} or start again (/reset)."
            )
        return context - used


class PromptMaker:
    """Tokenises turns and preprocesses pictures as training does.

    Args:
        tokenizer: the model's.
        image_processor: as in training.
        template: words around the turns.
        boxes: which of a picture's boxes become object tokens.
        special_tokens_in_text: see `xtuner.data.text.specials.Policy`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: ImageProcessor,
        template: PromptTemplate,
        boxes: BoxSelection,
        special_tokens_in_text: Policy = "split",
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = template
        self.boxes = boxes
        self.special_tokens_in_text = check_policy(special_tokens_in_text)

    def prepare(
        self,
        turns: Sequence[Turn],
        pictures: Sequence[Image.Image] = (),
        found: Sequence[PictureBoxes | None] = (),
        answer_start: str = "",
        videos: Sequence[VideoFrames] = (),
    ) -> Prompt:
        """Tokenises the turns and preprocesses the pictures.

        Args:
            turns: the last one unanswered; ``<image>`` at the place of each picture.
            pictures: in the order of their places.
            found: each picture's boxes in its own frame, None for none; empty = no boxes at all.
            answer_start: words that the answer begins with.
            videos: in the order of their places (`Place.VIDEO` in the turns), each with its frames and their boxes.

        Raises:
            XTunerError: other numbers of ``<image>``, pictures and boxes, or of places and videos, or a special token
                in the text where these are refused.
        """
        turns, pictures, found = place_frames(turns, pictures, found, videos)
        input_ids = encode_prompt(turns, self.tokenizer, self.template, self.special_tokens_in_text, answer_start)
        return self.join(input_ids, pictures, found)

    def join(
        self, input_ids: list[int], pictures: Sequence[Image.Image] = (), found: Sequence[PictureBoxes | None] = ()
    ) -> Prompt:
        """Puts ids and preprocessed pictures together; arguments and errors as of `prepare`."""
        places = sum(map(input_ids.count, PICTURE_INDICES))
        found = found or [None] * len(pictures)
        if not places == len(pictures) == len(found):
            raise XTunerError(
                f"the conversation has {counted(places, '<image> placeholders')}, {counted(len(pictures), 'pictures')} "
                f"and {counted(len(found), 'lists of boxes')}: give one <image> and one list (or None) per picture."
            )
        prepared = [self.prepare_picture(picture, boxes) for picture, boxes in zip(pictures, found, strict=True)]
        size = sides(self.image_processor.image_size)
        pixels = [pixels for pixels, _ in prepared]
        return Prompt(
            input_ids=input_ids,
            pixel_values=torch.stack(pixels) if pixels else torch.zeros((0, 3, *size), dtype=torch.uint8),
            boxes=[boxes for _, boxes in prepared],
        )

    def prepare_picture(self, picture: Image.Image, found: PictureBoxes | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Preprocesses one picture.

        Args:
            picture: of any mode and shape.
            found: its boxes in its own frame; None = none.

        Returns:
            The square as uint8 (3, S, S), and as float32 (N, 4) those of its boxes that become object tokens, xyxy in
            pixels of the S frame.

        Raises:
            XTunerError: there are more than `mg_llava.boxes.selection.MOST_BOXES` boxes.
        """
        chosen = None if found is None else self.boxes(*found, training=False).boxes
        pixels, boxes = self.image_processor(picture, chosen)
        return pixels, torch.as_tensor(boxes, dtype=torch.float32)


def as_picture_boxes(value: Any) -> PictureBoxes | None:
    """Returns the boxes of one picture in whatever form a user has them.

    Args:
        value: None; `PictureBoxes`; a mapping with ``boxes`` and, where known, ``labels`` and ``scores``; or (N, 4)
            numbers
            xyxy in pixels of the picture. Boxes without labels count as N different objects, so none is taken for a
            double of another.

    Raises:
        XTunerError: no boxes of that form.
    """
    if value is None or isinstance(value, PictureBoxes):
        return value
    content = value if isinstance(value, Mapping) else {"boxes": value}
    try:
        boxes = np.asarray(content["boxes"], np.float32)
        boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        count = len(boxes)
        labels = tuple(str(label) for label in content.get("labels") or range(count))
        scores = np.asarray(content.get("scores") or [1.0] * count, np.float32)
        if boxes.shape != (count, 4) or len(labels) != count or scores.shape != (count,):
            raise ValueError(f"{boxes.shape} boxes, {len(labels)} labels, {scores.shape} scores")
    # a whole number of many digits fits no float
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise XTunerError(
            f"the boxes cannot be read ({error}): expected a list of [x0, y0, x1, y1] in pixels of the picture, or an "
            "object with boxes, labels and scores of the same length."
        ) from error
    return PictureBoxes(boxes, labels, scores) if count else no_boxes()


def boxes_per_picture(given: Any, count: int) -> list[PictureBoxes | None]:
    """Returns the boxes of each of `count` pictures.

    Args:
        given: None; a list of one entry per picture, see `as_picture_boxes`; for one picture also that entry itself.
        count: pictures.

    Raises:
        XTunerError: another number of entries, or one that holds no boxes.
    """
    if given is None:
        return [None] * count
    if count == 1 and (
        isinstance(given, (Mapping, PictureBoxes, torch.Tensor)) or len(given) != 1 or _is_box(given[0])
    ):
        given = [given]
    if len(given) != count:
        raise XTunerError(
            f"{len(given)} lists of boxes for {count} pictures: give one list (or None) for each picture."
        )
    return [as_picture_boxes(entry) for entry in given]


def _is_box(entry: Any) -> bool:
    try:
        return len(entry) == len("xyxy") and all(isinstance(float(number), float) for number in entry)
    except (TypeError, ValueError):
        return False


def check_finite(found: PictureBoxes) -> None:
    """Refuses boxes of others whose numbers are none.

    Raises:
        XTunerError: a coordinate or score is infinite or not a number.
    """
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise XTunerError("a coordinate or score of the boxes is not finite in 32 bits: give ordinary numbers.")

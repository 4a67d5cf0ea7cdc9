"""What transformers' users give as a video and as the boxes of its frames, and the places of both in a text."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from PIL import Image

from mg_llava.boxes.records import BoxRecord, parse_records
from mg_llava.boxes.selection import BoxSelection, PictureBoxes
from mg_llava.boxes.store import nearest_frame, other_size_message
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.pictures.colors import to_rgb
from mg_llava.pictures.remote import fetch
from mg_llava.videos.places import FramePlace
from mg_llava.videos.sampling import FrameSampling
from mg_llava.videos.shown import VideoFrames, read_frames
from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, VIDEO_TOKEN
from xtuner.data.text.rendered import VIDEO_PLACE
from xtuner.errors import XTunerError, counted

_MOST_BYTES = 256 << 20
_PLACES = re.compile(f"({re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)})")

Boxed: TypeAlias = "tuple[Image.Image, PictureBoxes | None]"


def read_video_source(source: Any, sampling: FrameSampling | None = None) -> VideoFrames:
    """Returns the frames of a video, by the one door that all videos come through.

    Args:
        source: `VideoFrames`; a list of Pillow pictures, which are the frames; a path (``clip.mp4#t=3,12`` names a
            part), a ``file://`` or ``http(s)://`` address, a ``data:`` URL, or the bytes of a file.
        sampling: which frames are taken; of frames given as pictures all are.

    Raises:
        XTunerError: it is none of these, or cannot be read.
    """
    if isinstance(source, VideoFrames):
        return source
    if isinstance(source, (list, tuple)) and source and all(isinstance(one, Image.Image) for one in source):
        places = tuple(FramePlace("frames", number, float(number)) for number in range(len(source)))
        return VideoFrames(tuple(map(to_rgb, source)), places, float(len(source)))
    if isinstance(source, bytes):
        return read_frames(io.BytesIO(source), sampling)
    if isinstance(source, os.PathLike):
        return read_frames(source, sampling)
    if not isinstance(source, str):
        raise XTunerError(
            f"a video is a {type(source).__name__}: expected a path, an address, bytes, or a list of Pillow pictures."
        )
    if source.startswith(("http://", "https://")):
        return read_frames(io.BytesIO(fetch(source, _MOST_BYTES)), sampling)
    if source.startswith("data:"):
        return read_frames(io.BytesIO(_decoded(source.partition(",")[2])), sampling)
    return read_frames(source.removeprefix("file://"), sampling)


def with_given_boxes(video: VideoFrames, given: Any, tolerance: float = BoxSelection().frame_tolerance) -> VideoFrames:
    """Returns a video with the boxes that a user gives of its frames.

    Args:
        video: its frames.
        given: None; one entry per frame, see `as_picture_boxes`; or a record of a box file, ``{"frames": [{"time" or
            "index", "boxes", "labels", "scores"}, ...]}``, whose nearest frames are taken.
        tolerance: most seconds between a frame and the record's.

    Raises:
        XTunerError: another number of entries, no boxes of that form, or boxes of a video of another size.
    """
    if given is None:
        return video
    if not isinstance(given, Mapping):
        return video.with_boxes([as_picture_boxes(entry) for entry in given])
    records = parse_records("video_boxes", 1, {"video": "video", **given})
    return video.with_boxes([_near(records, video, number, tolerance) for number in range(len(video.places))])


def place_in_texts(
    texts: Sequence[str], pictures: Sequence[Boxed], videos: Sequence[VideoFrames]
) -> tuple[list[str], list[Boxed], list[bool]]:
    """Returns texts with ``<image>`` for each frame in the place of ``<video>``, all pictures in order, and which of
    them are frames.

    Args:
        texts: as a user writes them, or as they were rendered, with `VIDEO_PLACE` for ``<video>``.
        pictures: with their boxes, in the order of their ``<image>``; further ones stay at the end.
        videos: in the order of their ``<video>``.

    Raises:
        XTunerError: another number of ``<video>``.
    """
    texts = [text.replace(VIDEO_PLACE, VIDEO_TOKEN) for text in texts]
    places = sum(text.count(VIDEO_TOKEN) for text in texts)
    if places != len(videos):
        raise XTunerError(
            f"the texts have {places} {VIDEO_TOKEN} but there are {counted(len(videos), 'videos')}: write one for each."
        )
    rest, clips = iter(pictures), iter(videos)
    found: list[Boxed] = []
    frames: list[bool] = []
    written = []
    for text in texts:
        words = _PLACES.split(text)
        for place, word in enumerate(words):
            if word == IMAGE_TOKEN:
                found += [one for one in [next(rest, None)] if one is not None]
                frames.append(False)
            elif word == VIDEO_TOKEN:
                video = next(clips)
                found += zip(video.pictures, video.found or [None] * len(video.pictures), strict=True)
                words[place] = IMAGE_TOKEN * len(video.pictures)
                frames += [True] * len(video.pictures)
        written.append("".join(words))
    return written, [*found, *rest], frames


def mark_frames(input_ids: Sequence[int], frames: Sequence[bool]) -> list[int]:
    """Returns ids with `FRAME_TOKEN_INDEX` at the places of pictures that are frames.

    Args:
        input_ids: with `IMAGE_TOKEN_INDEX` at the place of each picture.
        frames: which of the pictures are frames; those that it does not name are none.
    """
    rest = iter(frames)
    return [FRAME_TOKEN_INDEX if one == IMAGE_TOKEN_INDEX and next(rest, False) else one for one in input_ids]


def _near(records: Sequence[BoxRecord], video: VideoFrames, number: int, tolerance: float) -> PictureBoxes | None:
    place, size = video.places[number], video.pictures[number].size
    record = nearest_frame(records, place.number, place.time, tolerance)
    if record is None:
        return None
    if record.size is not None and record.size != size:
        raise XTunerError(other_size_message(f"frame {place.number}", size, record.size, record.where))
    return record.found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise XTunerError(f"the video's base64 text does not decode: {error}.") from error

"""Videos as requests give them to vLLM: which frames, and the boxes of each. Imports nothing of vLLM.

A video comes as a file's bytes, as its frames, or in a ``video_url`` whose fragment may say more, as of a media
fragment: ``#t=3,12`` (seconds), ``#frames=0,17,34`` (numbers of the frames to show), ``&boxes=`` (JSON, per frame).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.history import boxes_as_json
from mg_llava.inference.video_sources import read_video_source, with_given_boxes
from mg_llava.serving.requests.pictures import check_boxes
from mg_llava.serving.vllm.boxed import read_boxes
from mg_llava.videos import FrameSampling, VideoFrames, open_video
from mg_llava.videos.sampling import MOST_SAMPLED
from xtuner.errors import XTunerError

_KEYS = ("video", "boxes", "frames")
_ARRAY = 4
_FIELDS = ("t", "frames", "boxes")


@dataclass(frozen=True)
class BoxedVideo:
    """A video of a request.

    Attributes:
        source: bytes of a file, or `VideoFrames`; None = a video that vLLM has kept under a name.
        found: boxes as `with_given_boxes` takes them; None = none were given.
        numbers: of the frames that are shown, rising; None = the folder's rule says which.
        seconds: (start, end) between which that rule looks; None = from the beginning, or to the end.
    """

    source: Any
    found: Any = None
    numbers: tuple[int, ...] | None = None
    seconds: tuple[float | None, float | None] = (None, None)

    @classmethod
    def read(cls, value: Any) -> BoxedVideo:
        """Reads a video in any of the forms of a request: bytes, what holds these as ``original_bytes``, a list of
        Pillow pictures or an array (F, H, W, 3) of bytes, which are the frames (with vLLM's metadata beside it, which
        is not needed), `VideoFrames`, or an object with ``video`` and, where known, ``boxes`` and ``frames``.

        Raises:
            XTunerError: no video, no boxes, or boxes that are not finite. A path or an address is no video here:
                whoever sends a request must not choose what this machine reads.
        """
        if isinstance(value, BoxedVideo):
            return value
        if isinstance(value, Mapping):
            unknown = [str(key) for key in value if key not in _KEYS]
            if unknown or "video" not in value:
                raise XTunerError(
                    f"a video has the fields {sorted(map(str, value))}: expected 'video' and, where known, 'boxes' "
                    "(per frame) and 'frames' (numbers)."
                )
            read = cls.read(value["video"])
            numbers = None if value.get("frames") is None else _numbers(value["frames"])
            return replace(read, found=_boxes(value.get("boxes")), numbers=numbers)
        return cls(_source(value))

    def frames(self, sampling: FrameSampling) -> VideoFrames:
        """Returns the frames that are shown, with their boxes.

        Args:
            sampling: the folder's rule.

        Raises:
            SampleError: it is no video, or has no such frames.
            XTunerError: boxes for another number of frames, or outside of them.
        """
        if isinstance(self.source, VideoFrames):
            shown = self.source
        elif self.numbers is None:
            shown = read_video_source(self.source, sampling.within(*self.seconds))
        else:
            shown = _at(self.source, self.numbers)
        boxed = with_given_boxes(shown, self.found)
        for picture, found in zip(boxed.pictures, boxed.found, strict=False):
            if found is not None:
                check_boxes(found, picture.size)
        return boxed

    @property
    def cache_key(self) -> dict[str, Any]:
        """What tells this video from others, frames and boxes included, in types that vLLM's cache hashes."""
        source = self.source
        shown = isinstance(source, VideoFrames)
        return {"video": list(source.pictures) if shown else source, "said": self.said}

    @property
    def said(self) -> str:
        """Which frames and boxes, as a text."""
        own = self.source.found if isinstance(self.source, VideoFrames) else ()
        boxes = [None if found is None else boxes_as_json(found) for found in own]
        return json.dumps([self.numbers, self.seconds, _plain(self.found), boxes], sort_keys=True)


def read_videos(given: Any) -> list[BoxedVideo]:
    """Reads the videos of a request: one, or a list of them. A list of Pillow pictures is one video.

    Raises:
        XTunerError: see `BoxedVideo.read`.
    """
    several = isinstance(given, (list, tuple)) and not _is_frames(given)
    # vLLM gives one video as (frames, metadata)
    several = several and not (isinstance(given, tuple) and isinstance(given[-1], Mapping) and _is_array(given[0]))
    return [BoxedVideo.read(entry) for entry in (given if several else [given])]


def kept_video_name(video: BoxedVideo, given: str | None) -> str | None:
    """Returns the name under which vLLM keeps a video: that of its sender, told apart by frames and boxes."""
    return None if given is None else f"{given}-said-{hashlib.sha256(video.said.encode()).hexdigest()}"


def with_said(url: str, shown: VideoFrames) -> str:
    """Returns a video's ``data:`` URL that names the frames that were chosen, and their boxes.

    Args:
        url: of the video's file.
        shown: its frames.
    """
    fragment = f"#frames={','.join(str(place.number) for place in shown.places)}"
    if any(found is not None for found in shown.found):
        boxes = [None if found is None else boxes_as_json(found) for found in shown.found]
        fragment += "&boxes=" + quote(json.dumps(boxes, separators=(",", ":")), safe="[],:{}")
    return url.partition("#")[0] + fragment


def split_said(url: str) -> tuple[str, BoxedVideo]:
    """Takes the fragment off a video's URL; returns the rest, and what the fragment says of a video without a source.

    Raises:
        XTunerError: a fragment that cannot be read.
    """
    address, _, fragment = url.partition("#")
    said = BoxedVideo(None)
    for field in filter(None, fragment.split("&")):
        name, _, text = field.partition("=")
        if name == "t":
            start, _, end = text.partition(",")
            said = replace(said, seconds=(_seconds(start), _seconds(end)))
        elif name == "frames":
            said = replace(said, numbers=_numbers(text.split(",")))
        elif name == "boxes":
            said = replace(said, found=_boxes(_json(text)))
        else:
            raise XTunerError(f"the video's URL says {name[:40]!r} behind '#': expected {', '.join(_FIELDS)}.")
    return address, said


def _source(value: Any) -> Any:
    if isinstance(value, tuple) and value and _is_array(value[0]):
        value = value[0]
    content = getattr(value, "original_bytes", value)
    if content is None or isinstance(content, (bytes, VideoFrames)):
        return content
    if _is_frames(content):
        return read_video_source(list(content))
    if _is_array(content):
        return read_video_source([Image.fromarray(frame) for frame in content])
    raise XTunerError(
        f"a video is a {type(value).__name__}: expected the bytes of a file, a list of Pillow pictures, an array of "
        "bytes (frames, height, width, 3), or an object with 'video' and 'boxes'."
    )


def _is_frames(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Image.Image) for one in value)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == _ARRAY and len(value) > 0


def _at(content: bytes, numbers: Sequence[int]) -> VideoFrames:
    with open_video(io.BytesIO(content)) as video:
        if numbers[-1] >= len(video.times):
            raise XTunerError(
                f"the video has {len(video.times)} frames, but number {numbers[-1]} is asked for: expected numbers "
                f"from 0 to {len(video.times) - 1}."
            )
        places = tuple(video.place(number) for number in numbers)
        return VideoFrames(tuple(video.frames(places)), places, video.duration)


def _numbers(given: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in given)
    except (TypeError, ValueError):
        numbers = ()
    if not 1 <= len(numbers) <= MOST_SAMPLED or numbers[0] < 0 or list(numbers) != sorted(numbers):
        raise XTunerError(
            f"the frames of a video are {str(given)[:60]!r}: expected 1 to {MOST_SAMPLED:,} numbers from 0, rising."
        )
    return numbers


def _boxes(given: Any) -> Any:
    """Boxes per frame, read; a record with ``frames`` stays as it is until its frames are known."""
    if given is None or isinstance(given, Mapping):
        return given
    if not isinstance(given, (list, tuple)):
        raise XTunerError(f"the boxes of a video are a {type(given).__name__}: expected one list (or None) per frame.")
    return tuple(map(read_boxes, given))


def _plain(found: Any) -> Any:
    if isinstance(found, tuple):
        return [
            None if one is None else boxes_as_json(one) for one in found if isinstance(one, (PictureBoxes, type(None)))
        ]
    return json.loads(json.dumps(found, default=lambda value: np.asarray(value).tolist()))


def _json(text: str) -> Any:
    try:
        return json.loads(unquote(text))
    except ValueError as error:
        raise XTunerError(
            f"the URL's boxes are no JSON ({error}): expected &boxes=[[[x0,y0,x1,y1],…],null,…]."
        ) from error


def _seconds(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise XTunerError(f"the video's URL says t={text[:40]!r}: expected seconds, #t=START,END.") from None

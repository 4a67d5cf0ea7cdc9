"""What the page shows: pictures as data URLs, and the frames of a video, read by the endpoint's limits."""

from __future__ import annotations

import base64
import io
import time

from PIL import Image

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import BoxSelection, PictureBoxes, no_boxes
from mg_llava.inference.chat import Detector
from mg_llava.serving.generation.tickets import Place
from mg_llava.serving.requests.pictures import read_video
from mg_llava.serving.requests.settings import Limits
from mg_llava.videos.shown import VideoFrames
from xtuner.errors import counted

Figure = dict[str, str]
"""A frame of a video: ``src``, a data URL, ``alt``, a text for those who do not see it, and ``caption``."""
_SHOWN_SIDE = 1600
"""Pixels; a larger picture is shown reduced, whatever the model is given."""
_FRAME_SIDE = 640


def boxed_frames(path: str, limits: Limits, detector: Detector | None, choose: BoxSelection) -> tuple[VideoFrames, int]:
    """Returns the frames of a video that the model is given, with their boxes, and how many boxes lie outside.

    Args:
        path: of the video's file.
        limits: of the server.
        detector: finds boxes in each frame; None = they have none.
        choose: which of them become object tokens.

    Raises:
        XTunerError: not a video, too large, or reading it takes longer than a request's pictures may.
    """
    place = Place(float("inf"), time.monotonic() + limits.max_read)
    with open(path, "rb") as file:
        shown = read_video(file, limits, place.check)
    if detector is None:
        return shown, 0
    found: list[PictureBoxes] = []
    outside = 0
    for picture in shown.pictures:
        place.check()
        chosen, left_out = choose.choose(detector([picture])[0], picture.size)
        found.append(chosen)
        outside += left_out
    return shown.with_boxes(found), outside


def figures_of(shown: VideoFrames, outside: int, typed: str) -> tuple[str, list[Figure]]:
    """Returns a line about a video, and its frames with their boxes drawn.

    Args:
        shown: the frames.
        outside: boxes that are left out since they lie outside of their frames.
        typed: boxes of the visitor's own, which no video has.
    """
    found = [boxes or no_boxes() for boxes in shown.found or [None] * len(shown.pictures)]
    width, height = shown.pictures[0].size
    boxes = counted(sum(len(one.boxes) for one in found), "boxes")
    notes = [f"{counted(len(found), 'frames')} of {width} x {height} px out of {shown.duration:.1f} s", boxes]
    if outside:
        notes.append(f"left out: {counted(outside, 'boxes')} outside")
    if typed.strip():
        notes.append("your own boxes are for pictures and not used")
    figures = []
    for picture, place, one in zip(shown.pictures, shown.places, found, strict=True):
        alt = f"frame {place.number} of the video, at {place.time:.2f} s, with {counted(len(one.boxes), 'boxes')}"
        url = data_url(draw_boxes(picture, one), _FRAME_SIDE)
        figures.append({"src": url, "alt": alt, "caption": f"{place.time:.2f} s"})
    return ", ".join(notes), figures


def data_url(picture: Image.Image, side: int = _SHOWN_SIDE) -> str:
    """Returns a picture, reduced to `side` pixels where it is larger, as a ``data:image/jpeg`` URL."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

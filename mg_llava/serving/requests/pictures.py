"""Pictures and videos of requests: data URLs, and remote pictures where that is allowed."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from typing import IO, Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes, clip_boxes
from mg_llava.inference.prompts import check_finite
from mg_llava.pictures.open import open_picture
from mg_llava.pictures.remote import fetch
from mg_llava.serving.requests.settings import Limits
from mg_llava.videos import FrameSampling, open_video
from mg_llava.videos.shown import VideoFrames
from xtuner.errors import XTunerError


def read_picture_url(url: Any, limits: Limits, apply_exif_orientation: bool = False) -> Image.Image:
    """Returns the picture of a ``data:image/...;base64,`` URL, or of a remote one.

    Args:
        url: of the picture.
        limits: of the server.
        apply_exif_orientation: see `open_picture`.

    Raises:
        XTunerError: no such URL, remote where that is off, not a picture, or too large.
    """
    return open_content(read_content(url, limits), limits, apply_exif_orientation)


def open_content(content: bytes, limits: Limits, apply_exif_orientation: bool = False) -> Image.Image:
    """Returns the picture of a file's bytes; see `open_picture`.

    Raises:
        XTunerError: not a picture, or too large.
    """
    return open_picture(io.BytesIO(content), apply_exif_orientation, limits.max_pixels)


def read_content(url: Any, limits: Limits) -> bytes:
    """Returns the bytes of the file that a URL holds or names.

    Raises:
        XTunerError: no such URL, remote where that is off, or empty.
    """
    if not isinstance(url, str):
        raise XTunerError("an image part has no URL: expected image_url with {'url': 'data:image/png;base64,...'}.")
    if url.startswith("data:"):
        content = _decode(url, "picture", "image")
    elif url.startswith(("http://", "https://")):
        if not limits.allow_remote:
            raise XTunerError(
                "this server does not fetch remote pictures: send the picture as a data URL "
                "(data:image/png;base64,...), or start the server with --allow-remote."
            )
        content = fetch(url, limits.max_upload, limits.remote_hosts)
    else:
        raise XTunerError(f"the picture's URL begins with {url[:20]!r}: expected data:image/...;base64,...")
    if not content:
        raise XTunerError("the picture is empty, 0 bytes.")
    return content


def read_video_content(url: Any) -> bytes:
    """Returns the bytes of the file that a ``data:video/...;base64,`` URL holds.

    Raises:
        XTunerError: no such URL, or empty.
    """
    if not isinstance(url, str) or not url.startswith("data:"):
        found = repr(url[:20]) if isinstance(url, str) else "none"
        raise XTunerError(f"the video's URL begins with {found}: expected video_url with data:video/mp4;base64,...")
    content = _decode(url, "video", "video")
    if not content:
        raise XTunerError("the video is empty, 0 bytes.")
    return content


def read_video(file: IO[bytes], limits: Limits, check: Callable[[], None]) -> VideoFrames:
    """Returns the frames of a video's file that are shown.

    Args:
        file: of the video, open.
        limits: of the server.
        check: called before each frame is decoded; raises where nobody waits any more.

    Raises:
        XTunerError: not a video, or too large.
    """
    with open_video(file, limits.max_pixels) as video:
        sampled = FrameSampling(num_frames=limits.max_frames).choose(video.times, video.duration)
        places = tuple(video.place(number) for number in sampled.numbers)
        pictures = []
        check()
        for picture in video.frames(places):
            check()
            pictures.append(picture)
        return VideoFrames(tuple(pictures), places, video.duration, sampled.repeats)


def _decode(url: str, kind: str, media: str) -> bytes:
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise XTunerError(f"the {kind}'s data URL is not base64: expected data:{media}/...;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise XTunerError(f"the {kind}'s data URL does not decode: {error}.") from error


def check_boxes(found: PictureBoxes, size: tuple[int, int]) -> None:
    """Checks the boxes that a request gives for its picture.

    Args:
        found: in the picture's frame.
        size: (width, height) of the picture in pixels.

    Raises:
        XTunerError: a number that is not finite, or a box outside the picture.
    """
    check_finite(found)
    _, inside = clip_boxes(found.boxes, *size)
    if not inside.all():
        raise XTunerError(
            f"{int((~inside).sum())} of the {len(inside)} boxes lie outside their picture of "
            f"{size[0]} x {size[1]} pixels: expected [x0, y0, x1, y1] in pixels of the picture."
        )

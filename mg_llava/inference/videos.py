"""Videos among a conversation's pictures: each frame becomes a picture in its place."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.videos.shown import VideoFrames
from xtuner.data.text.templates import Place, Turn
from xtuner.data.text.turns import with_frames
from xtuner.errors import XTunerError, counted


def place_frames(
    turns: Sequence[Turn],
    pictures: Sequence[Image.Image],
    found: Sequence[PictureBoxes | None],
    videos: Sequence[VideoFrames],
) -> tuple[list[Turn], list[Image.Image], list[PictureBoxes | None]]:
    """Returns turns, pictures and boxes with the frames of videos among them.

    Args:
        turns: with `Place.VIDEO` at the place of each video.
        pictures: in the order of their places.
        found: boxes of each, None for none; empty = none at all.
        videos: in the order of their places.

    Raises:
        XTunerError: other numbers of places, pictures and videos.
    """
    if not videos and not any(turn.num_videos for turn in turns):
        return list(turns), list(pictures), list(found)
    places = sum(turn.num_pictures for turn in turns)
    given = list(found) or [None] * len(pictures)
    if not places == len(pictures) == len(given):
        raise XTunerError(
            f"the conversation has {counted(places, 'places')} of pictures, {counted(len(pictures), 'pictures')} and "
            f"{counted(len(given), 'lists of boxes')}: give one of each."
        )
    shown = with_frames(turns, [len(video.pictures) for video in videos])
    rest, clips = iter(zip(pictures, given, strict=True)), iter(videos)
    both: list[tuple[Image.Image, PictureBoxes | None]] = []
    for part in (part for turn in turns for part in turn.parts):
        if part in (Place.PICTURE, Place.FRAME):
            both.append(next(rest))
        elif part is Place.VIDEO:
            video = next(clips)
            both += zip(video.pictures, video.found or [None] * len(video.pictures), strict=True)
    return list(shown), [picture for picture, _ in both], [boxes for _, boxes in both]

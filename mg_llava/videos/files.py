"""Pictures and frames of videos by their places: what a data source's pictures are, once it may hold videos."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from mg_llava.videos.folders import StoredFrames
from mg_llava.videos.open import open_video
from mg_llava.videos.places import SCHEME, FramePlace, read_frame_place
from xtuner.data.pictures.files import ArchivePictures, FolderPictures, PictureFiles
from xtuner.errors import SampleError, XTunerError

OpenPicture = Callable[["str | io.BytesIO"], Image.Image]


class KeptFrames(Protocol):
    """Pictures of frames by their places."""

    def open(self, place: str) -> io.BytesIO:
        """Returns the bytes of a frame's picture."""
        ...

    def holds(self, place: str) -> bool:
        """Says whether a frame is there."""
        ...

    def missing(self, places: pa.StringArray) -> list[str]:
        """Returns those of `places` that are not there."""
        ...


class FrameFiles:
    """Pictures as they are stored, and frames that are decoded when they are wanted.

    Args:
        stored: pictures and videos by their paths.
        cached: frames that were decoded before; what is not among them is decoded. None = none were.
    """

    def __init__(self, stored: PictureFiles, cached: KeptFrames | None = None) -> None:
        self.stored = stored
        self.cached = cached

    @property
    def strict_paths(self) -> bool:
        """Whether what lies outside the folder is refused."""
        return bool(getattr(self.stored, "strict_paths", False))

    def images(self, paths: Sequence[str], open_picture: OpenPicture) -> Iterator[Image.Image]:
        """Yields pictures and frames as 8-bit RGB, in the order of `paths`; frames of a video in a row by one reading.

        Args:
            paths: of pictures, and places of frames.
            open_picture: reads the file of a picture.

        Raises:
            SampleError: one of them cannot be read.
        """
        for run in _runs(paths):
            places = [place for place in map(read_frame_place, run) if place is not None]
            if places:
                yield from self._frames(places, open_picture)
            else:
                yield from (open_picture(self.stored.open(path)) for path in run)

    def video(self, path: str) -> str | io.BytesIO | StoredFrames:
        """Returns the path of a video's file or folder, or its bytes; of a folder of frames in an archive its pictures.

        Raises:
            SampleError: it lies outside the folder, where that is refused, or is in none of the archives.
        """
        return self._frames_in_archive(path) or self.stored.open(path)

    def has_video(self, path: str) -> bool:
        """Says whether a video's file is there, or its folder of frames."""
        if isinstance(self.stored, FolderPictures):
            return os.path.exists(os.path.join(self.stored.folder, path))
        return self.stored.holds(path) or self._frames_in_archive(path) is not None

    def stamp(self, path: str) -> str:
        """Returns size and time of a video's file, by which changes show; "" where it is absent or in an archive."""
        if not isinstance(self.stored, FolderPictures):
            return ""
        try:
            state = os.stat(self.stored.open(path))
        except (OSError, ValueError, XTunerError):
            return ""
        return f"{state.st_size} {state.st_mtime_ns}"

    def open(self, path: str) -> str | io.BytesIO:
        """Returns the path of a picture's file, or the bytes of a picture or a frame (as PNG where it is decoded)."""
        place = read_frame_place(path)
        if place is None:
            return self.stored.open(path)
        if self.cached is not None and self.cached.holds(path):
            return self.cached.open(path)
        content = io.BytesIO()
        next(self._decoded([place])).save(content, "PNG")
        content.seek(0)
        return content

    def holds(self, path: str) -> bool:
        """Says whether a picture, or a frame or its video, is there."""
        place = read_frame_place(path)
        if place is None:
            return self.stored.holds(path)
        return (self.cached is not None and self.cached.holds(path)) or self.stored.holds(place.video)

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that are not there; of a video's frames the first."""
        is_frame = pc.starts_with(paths, SCHEME)
        if not pc.any(is_frame).as_py():
            return self.stored.missing(paths)
        frames = paths.filter(is_frame)
        first: dict[str, str] = {}
        for text in frames.to_pylist() if self.cached is None else self.cached.missing(frames):
            place = read_frame_place(text)
            first.setdefault(text if place is None else place.video, text)
        videos = self.stored.missing(pa.array(first, pa.string()))
        return self.stored.missing(paths.filter(pc.invert(is_frame))) + [first[video] for video in videos]

    def not_kept(self, paths: Sequence[str]) -> int:
        """Returns how many of the frames among `paths` are decoded though frames are kept."""
        if self.cached is None:
            return 0
        frames = [path for path in paths if (place := read_frame_place(path)) is not None and not place.is_unread]
        return sum(not self.cached.holds(path) for path in frames)

    def outside(self, path: str) -> str | None:
        """Says how a path leads out of where the pictures lie; None where it does not."""
        place = read_frame_place(path)
        return self.stored.outside(path if place is None else place.video)

    def _frames_in_archive(self, path: str) -> StoredFrames | None:
        if not isinstance(self.stored, ArchivePictures) or self.stored.holds(path):
            return None
        return StoredFrames.of(path, self.stored.below(path), self.stored.open)

    def _frames(self, places: Sequence[FramePlace], open_picture: OpenPicture) -> Iterator[Image.Image]:
        names = list(map(str, places))
        if self.cached is not None and all(map(self.cached.holds, names)):
            yield from (open_picture(self.cached.open(name)) for name in names)
        else:
            yield from self._decoded(places)

    def _decoded(self, places: Sequence[FramePlace]) -> Iterator[Image.Image]:
        path = places[0].video
        with open_video(self.video(path), listed=places[0].is_unread, name=path) as video:
            if places[0].is_unread:
                raise SampleError(
                    "video does not decode",
                    f"video '{path}' could not be read when the data were prepared, and can be now: prepare it again.",
                )
            yield from video.frames(places)


def what_is(path: str) -> tuple[str, str]:
    """Returns "picture" and its path, or "video" and that of a frame's video."""
    place = read_frame_place(path)
    return ("picture", path) if place is None else ("video", place.video)


def named_picture(path: str) -> str:
    """Returns how messages call a picture, or a frame's video, by its path in a sample."""
    kind, name = what_is(path)
    return f"{kind} '{name}'"


def _runs(paths: Sequence[str]) -> Iterator[list[str]]:
    """Cuts `paths` where one does not go on with the frames of the video before it."""
    if not paths:
        return
    run = [paths[0]]
    for before, path in pairwise(paths):
        first, second = read_frame_place(before), read_frame_place(path)
        if first is None or second is None:
            goes_on = first is second
        else:
            goes_on = first.video == second.video and first.time <= second.time
        if goes_on:
            run.append(path)
        else:
            yield run
            run = [path]
    yield run

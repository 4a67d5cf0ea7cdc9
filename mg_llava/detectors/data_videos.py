"""The videos of a data set that get boxes: by the names by which training will look their frames' boxes up."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

from mg_llava.videos.files import FrameFiles
from mg_llava.videos.folders import StoredFrames, frame_names
from mg_llava.videos.open import Video, open_video
from mg_llava.videos.places import FramePlace, read_video_name
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.pictures.files import PictureFiles
from xtuner.data.sources.places import picture_name, without_name
from xtuner.errors import SampleError

SUFFIXES = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"}


class DataVideos:
    """Videos by the name that a box file knows them by, and their sampled frames. Pickled into the processes that read.

    Args:
        uses: of each video, by its path, the names that records give it: with ranges (``clip.mp4#t=3,12``).
        paths: of each name that a box file knows one path, see `by_name`.
        stored: where the videos lie.
        sampling: which frames; of a video that is used with several ranges those of all.

    Attributes:
        names: of the videos, in the data's order, those that are folders of frames left out.
        folder_frames: sampled pictures of such folders, as training names them.
    """

    def __init__(
        self,
        uses: Mapping[str, Iterable[str]],
        paths: Mapping[str, str],
        stored: PictureFiles,
        sampling: FrameSampling,
    ) -> None:
        self.sampling = sampling
        self._files = FrameFiles(stored)
        self._paths = dict(paths)
        self._uses: dict[str, list[str]] = {name: [] for name in paths}
        for path, names in uses.items():
            name = picture_name(path)
            self._uses[name if name in self._uses else without_name(path)] += names
        self.folder_frames: list[str] = []
        for name in list(self._uses):
            if (folder := self._folder(self._paths[name])) is not None:
                self.folder_frames += self._pictures_of(name, folder)
                del self._uses[name]
        self.names = list(self._uses)

    def batches(self, name: str, size: int) -> Iterator[tuple[list[FramePlace], list[Image.Image]]]:
        """Yields the sampled frames of a video in order of time, at most `size` at a time.

        Raises:
            SampleError: it cannot be read, or has no frames in any of its ranges.
        """
        path = self._paths[name]
        with open_video(self._files.video(path), name=path) as video:
            places = [video.place(number)._replace(video=path) for number in self._numbers(name, video)]
            pictures = video.frames(places)
            for start in range(0, len(places), size):
                part = places[start : start + size]
                yield part, [next(pictures) for _ in part]

    def _numbers(self, name: str, video: Video) -> list[int]:
        """The sampled frames of all ranges."""
        numbers: set[int] = set()
        empty: SampleError | None = None
        for use in self._uses[name]:
            _, start, end = read_video_name(use)
            try:
                numbers.update(self.sampling.within(start, end).choose(video.times, video.duration).numbers)
            except SampleError as error:
                empty = error
        if empty is not None and not numbers:
            raise empty
        return sorted(numbers)

    def _folder(self, path: str) -> str | StoredFrames | None:
        if Path(path).suffix.lower() in SUFFIXES:
            # not opened: in an archive that would read all of it
            return None
        try:
            found = self._files.video(path)
        except SampleError:
            return None
        is_folder = isinstance(found, StoredFrames) or (isinstance(found, str) and os.path.isdir(found))
        return found if is_folder and not isinstance(found, io.BytesIO) else None

    def _pictures_of(self, name: str, folder: str | StoredFrames) -> list[str]:
        try:
            if isinstance(folder, StoredFrames):
                paths = list(folder.paths)
            else:
                paths = [os.path.join(self._paths[name], file) for file in frame_names(folder)]
            with open_video(folder) as video:
                return [paths[number] for number in self._numbers(name, video)]
        except SampleError:
            # training and check-dataset tell why
            return []

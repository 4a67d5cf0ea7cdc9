"""Records with videos: frames are chosen when data are prepared, and stand among the pictures from then on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from mg_llava.data.sources import DataSource
from mg_llava.videos.files import FrameFiles
from mg_llava.videos.folders import frame_names
from mg_llava.videos.open import open_video
from mg_llava.videos.places import FramePlace, read_video_name
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.text.conversations import Conversation, RecordError
from xtuner.data.text.encoder import Dropped
from xtuner.errors import SampleError, XTunerError

UNREADABLE = "a video that cannot be read"
SHORTER = "a video of fewer frames than asked for (each shown once)"
OUT_OF_RANGE = "no frames in the range"
_THREADS = min(8, os.cpu_count() or 1)
_MOST_KNOWN = 100_000
"""Videos whose frames are kept in memory: many records may ask about one video."""


@dataclass(frozen=True)
class _Chosen:
    """What becomes of a video: its frames as a sample's pictures are given, what is odd, and why it is left out."""

    frames: tuple[str, ...] = ()
    note: str | None = None
    fault: str | None = None
    dropped: str | None = None


class FrameExpander:
    """Puts the places of frames where a conversation has videos. Pickled into the worker processes.

    Only the containers are read. A video that cannot be read is no fault of its record: it keeps one place, which is
    a bad sample in training, as an unreadable picture is.

    Args:
        source: of the records: says where the videos lie.
        sampling: which frames are taken; a video's own range (``#t=3,12``) comes before the rule's.
        strict_paths: refuse videos outside the folder.
    """

    def __init__(self, source: DataSource, sampling: FrameSampling, strict_paths: bool = False) -> None:
        self.source = source
        self.sampling = sampling
        self.strict_paths = strict_paths
        self._known: dict[str, _Chosen] = {}

    @cached_property
    def files(self) -> FrameFiles:
        """Where the videos lie; opened when the first one is asked for."""
        return self.source.pictures(self.strict_paths)

    def __call__(self, conversations: Sequence[Conversation]) -> list[Conversation | RecordError | Dropped]:
        """Returns each conversation with frames for videos; see `xtuner.data.text.encoder.VideoExpander`."""
        names = dict.fromkeys(name for talk in conversations for name in talk.videos)
        if not names:
            return list(conversations)
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        new = [name for name in names if name not in self._known]
        with ThreadPoolExecutor(_THREADS) as pool:
            self._known.update(zip(new, pool.map(self._choose, new), strict=True))
        return [self._expanded(talk) if talk.videos else talk for talk in conversations]

    def _expanded(self, talk: Conversation) -> Conversation | RecordError | Dropped:
        chosen = [self._known[name] for name in talk.videos]
        for one in chosen:
            if one.fault is not None:
                return RecordError("bad video path", talk.where, one.fault)
        for one in chosen:
            if one.dropped is not None:
                return Dropped(one.dropped)
        notes = dict.fromkeys(one.note for one in chosen if one.note is not None)
        return talk.with_frames([one.frames for one in chosen], list(notes))

    def _choose(self, name: str) -> _Chosen:
        try:
            path, start, end = read_video_name(name)
            rule = self.sampling.within(start, end)
        except XTunerError as error:
            return _Chosen(fault=str(error))
        try:
            found = self.files.video(path)
            with open_video(found, name=path) as video:
                sampled = rule.choose(video.times, video.duration)
                places = [video.place(number)._replace(video=path) for number in sampled.numbers]
            note = SHORTER if sampled.repeats and rule.count is not None else None
            if isinstance(found, str) and os.path.isdir(found):
                files = frame_names(found)
                return _Chosen(tuple(os.path.join(path, files[number]) for number in sampled.numbers), note)
            return _Chosen(tuple(map(str, places)), note)
        except SampleError as error:
            if error.kind == OUT_OF_RANGE:
                return _Chosen(dropped=OUT_OF_RANGE)
            return _Chosen((str(FramePlace.unread(path)),), UNREADABLE)

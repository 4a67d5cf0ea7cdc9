"""Records with videos: frames are chosen when data are prepared, and stand among the pictures from then on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from mg_llava.data.sources import DataSource, numbered
from mg_llava.videos.cache.formats import FrameFormat
from mg_llava.videos.cache.writing import keep_frames
from mg_llava.videos.files import FrameFiles
from mg_llava.videos.folders import StoredFrames, frame_names
from mg_llava.videos.open import open_video
from mg_llava.videos.places import FramePlace, read_video_name
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.text.conversations import Conversation, RecordError, iter_conversations
from xtuner.data.text.encoder import Dropped
from xtuner.errors import SampleError, XTunerError, counted
from xtuner.log import get_logger

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
        return replace(self.source, frame_cache=None).pictures(self.strict_paths)

    def read_from(self, files: FrameFiles) -> None:
        """Looks for videos in `files` from now on: what a stream has in memory."""
        self.files = files

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
            if isinstance(found, StoredFrames):
                return _Chosen(tuple(found.paths[number] for number in sampled.numbers), note)
            if isinstance(found, str) and os.path.isdir(found):
                files = frame_names(found)
                return _Chosen(tuple(os.path.join(path, files[number]) for number in sampled.numbers), note)
            return _Chosen(tuple(map(str, places)), note)
        except SampleError as error:
            if error.kind == OUT_OF_RANGE:
                return _Chosen(dropped=OUT_OF_RANGE)
            return _Chosen((str(FramePlace.unread(path)),), UNREADABLE)


def keep_source_frames(
    sources: Sequence[DataSource],
    sampling: FrameSampling,
    out_folder: str,
    form: FrameFormat,
    strict_paths: bool = False,
    num_proc: int | None = None,
) -> dict[str, int]:
    """Keeps the sampled frames of the videos that the records of `sources` name: the setting ``frame_cache``.

    Args:
        sources: see `read_sources`; of several each has a numbered folder.
        sampling, form, num_proc: see `mg_llava.videos.cache.keep_frames`.
        out_folder: see there.
        strict_paths: refuse videos outside their folder.

    Returns:
        Its counts, of all sources.

    Raises:
        XTunerError: no records are named, none of them names a video, or as `keep_frames`.
    """
    named = [_videos_of(source) for source in sources]
    if not any(named):
        raise XTunerError("the records name no videos: expected 'video' beside their conversations (docs/video.md).")
    counts: Counter[str] = Counter()
    for source, videos, folder in zip(sources, named, numbered(out_folder, len(sources)), strict=True):
        files = replace(source, frame_cache=None).pictures(strict_paths)
        counts.update(keep_frames(videos, files, sampling, folder, form, num_proc))
    return dict(counts)


def _videos_of(source: DataSource) -> list[str]:
    """The videos of a source's good records, each name once; faulty records are for `xtuner check-dataset`."""
    if source.data_path is None:
        raise XTunerError("no records whose videos are meant: set data_path.")
    faults: list[str] = []
    talks = iter_conversations(source.records().records(), faults, videos=True)
    names = list(dict.fromkeys(name for talk in talks for name in talk.videos))
    if faults:
        get_logger().warning(
            "'%s': %s cannot be read, the first: %s", source.data_path, counted(len(faults), "records"), faults[0]
        )
    return names

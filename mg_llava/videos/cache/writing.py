"""Sampling the frames of many videos once, on all cores: written file by file, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mg_llava.videos.cache.formats import FrameFormat
from mg_llava.videos.cache.reading import INDEX, KEYS, PLACE, SCHEMA, VERSION
from mg_llava.videos.files import FrameFiles
from mg_llava.videos.folders import StoredFrames
from mg_llava.videos.open import open_video
from mg_llava.videos.places import read_video_name
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.store.arrow_rows import ArrowRows
from xtuner.data.store.cache import lock, unfinished_name
from xtuner.data.store.key_table import KeyTable, hash_key
from xtuner.data.store.parallel import map_batches
from xtuner.errors import SampleError, XTunerError, bytes_text, counted
from xtuner.json_values import read_json
from xtuner.log import console, get_logger

_MOST_SHARDS = 256
"""Files of a cache: each stays open in every worker that reads frames."""
_SETTINGS = "settings.json"
_NAMED = 10
UNREADABLE = "unreadable videos"
OUT_OF_RANGE = "ranges without frames"
FOLDERS = "folders of frames, which are pictures already"


@dataclass(frozen=True)
class VideoItem:
    """A video and the ranges of it that records ask for.

    Attributes:
        path: as the records give it.
        names: that, with a range or without.
        stamp: size and time of its file; "" where it is in an archive.
    """

    path: str
    names: tuple[str, ...]
    stamp: str


@dataclass
class _Kept:
    """A finished file of frames, as its entry says."""

    file: str
    bytes: int
    rows_of_batches: list[int]
    counts: dict[str, int]
    faults: list[str] = field(default_factory=list)


def keep_frames(
    videos: Sequence[str],
    files: FrameFiles,
    sampling: FrameSampling,
    folder: str | os.PathLike[str],
    form: FrameFormat | None = None,
    num_proc: int | None = None,
) -> dict[str, int]:
    """Samples the frames of `videos` and keeps them in `folder`, which `FrameCache` opens.

    What a run that was killed had finished is used again, and so is what an earlier run made of videos that have not
    changed. Videos that cannot be read are counted, and the first are named.

    Args:
        videos: as records name them, with ranges (``clip.mp4#t=3,12``); each may stand there several times.
        files: where they lie.
        sampling: which frames.
        folder: new, or of an earlier run with the same settings.
        form: JPEG of quality 95 unless given.
        num_proc: processes; None = one a core.

    Returns:
        Counts of videos, frames, bytes, and of what was left out.

    Raises:
        XTunerError: the folder holds something else or frames by other settings, the disk is full, or a process was
            killed; what is finished is kept.
    """
    form = form or FrameFormat()
    out = Path(os.path.abspath(folder))
    with lock(out):
        try:
            _check_settings(out, sampling, form)
            items = _items(videos, files)
            entries = _write(items, FrameWriter(files, sampling, form, out), num_proc)
            return _finish(out, entries, items, sampling)
        except OSError as error:
            raise XTunerError(
                f"the frames cannot be written to '{out}' ({error}): free some space and start again; what is "
                "finished is kept."
            ) from error


class FrameWriter:
    """Writes the frames of some videos into one file. Pickled into the worker processes.

    Args:
        files: where the videos lie.
        sampling: which frames.
        form: of the pictures.
        out: folder of the files.
    """

    def __init__(self, files: FrameFiles, sampling: FrameSampling, form: FrameFormat, out: Path) -> None:
        self.files = files
        self.sampling = sampling
        self.form = form
        self.out = out

    def path(self, items: Sequence[VideoItem]) -> Path:
        """Returns where the frames of `items` go; videos that changed go elsewhere."""
        what = [VERSION, asdict(self.sampling), asdict(self.form), [asdict(item) for item in items]]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        return self.out / f"frames-{digest[:20]}.arrow"

    def __call__(self, items: Sequence[VideoItem]) -> _Kept:
        """Writes the file of `items` and its entry, each under another name first; an earlier one is taken as it is."""
        path = self.path(items)
        entry = path.with_suffix(".json")
        if (kept := _finished(path, entry)) is not None:
            return kept
        unfinished = unfinished_name(path)
        rows: list[int] = []
        counts: Counter[str] = Counter()
        faults: list[str] = []
        try:
            with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
                for item in items:
                    frames = self._frames(item, counts, faults)
                    if frames:
                        columns = [
                            pa.array(list(column), kind.type)
                            for column, kind in zip(zip(*frames, strict=True), SCHEMA, strict=True)
                        ]
                        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
                        rows.append(len(frames))
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        kept = _Kept(path.name, path.stat().st_size, rows, dict(counts), faults)
        # the entry says that the file is whole, so it comes last
        _write_json(entry, asdict(kept))
        return kept

    def _frames(self, item: VideoItem, counts: Counter[str], faults: list[str]) -> list[tuple[str, bytes]]:
        """The places and pictures of a video's frames; none where it cannot be read."""
        try:
            found = self.files.video(item.path)
            if isinstance(found, StoredFrames) or (isinstance(found, str) and os.path.isdir(found)):
                counts[FOLDERS] += 1
                return []
            with open_video(found, name=item.path) as video:
                numbers: set[int] = set()
                for name in item.names:
                    _, start, end = read_video_name(name)
                    try:
                        numbers.update(self.sampling.within(start, end).choose(video.times, video.duration).numbers)
                    except SampleError:
                        counts[OUT_OF_RANGE] += 1
                places = [video.place(number)._replace(video=item.path) for number in sorted(numbers)]
                pictures = video.frames(places)
                kept = [(str(place), self.form.encode(next(pictures))) for place in places]
        except XTunerError as error:
            counts[UNREADABLE] += 1
            faults.append(str(error))
            return []
        counts.update(videos=1, frames=len(kept))
        return kept


def _items(videos: Sequence[str], files: FrameFiles) -> list[VideoItem]:
    """Each video once, in the order of its first use; a range that is none is left to whoever trains on it."""
    names: dict[str, dict[str, None]] = {}
    for name in videos:
        try:
            path = read_video_name(name).path
        except XTunerError:
            continue
        names.setdefault(path, {})[name] = None
    return [VideoItem(path, tuple(asked), files.stamp(path)) for path, asked in names.items()]


def _write(items: Sequence[VideoItem], writer: FrameWriter, num_proc: int | None) -> list[_Kept]:
    size = max(1, -(-len(items) // _MOST_SHARDS))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    done = sum(_finished(path := writer.path(part), path.with_suffix(".json")) is not None for part in parts)
    if done:
        get_logger().info("An earlier run finished %s of %s", f"{done:,}", counted(len(parts), "files"))
    left = len(parts) - done
    processes = max(1, min(num_proc or len(os.sched_getaffinity(0)), left))
    columns = (TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    entries = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("videos", total=len(items))
        for part, kept in zip(parts, map_batches(writer, parts, processes), strict=True):
            entries.append(kept)
            progress.update(task, advance=len(part))
    return entries


def _finish(out: Path, entries: Sequence[_Kept], items: Sequence[VideoItem], sampling: FrameSampling) -> dict[str, int]:
    """Makes the index of all files, tells the counts and returns them."""
    full = [kept for kept in entries if kept.rows_of_batches]
    rows = ArrowRows([out / kept.file for kept in full], [kept.rows_of_batches for kept in full])
    hashes = np.fromiter((hash_key(place) for (place,) in rows.values(PLACE)), np.uint64, len(rows))
    unfinished = unfinished_name(out / KEYS)
    KeyTable.save(unfinished, hashes, np.arange(len(rows)))
    os.replace(unfinished, out / KEYS)
    counts: Counter[str] = Counter(videos=0, frames=0)
    for kept in entries:
        counts.update(kept.counts)
    counts["bytes"] = sum(kept.bytes for kept in full)
    shards = [{"file": kept.file, "bytes": kept.bytes, "rows_of_batches": kept.rows_of_batches} for kept in full]
    index = {"version": VERSION, "sampling": asdict(sampling), "report": dict(counts), "shards": shards}
    _write_json(out / INDEX, index)
    _tell(out, counts, [fault for kept in entries for fault in kept.faults])
    used = {kept.file for kept in entries}
    if old := [path for path in out.glob("frames-*.arrow") if path.name not in used]:
        get_logger().info(
            "'%s' holds %s of videos that changed or are not asked for any more (%s); they are not read.",
            out,
            counted(len(old), "files"),
            bytes_text(sum(path.stat().st_size for path in old)),
        )
    return dict(counts)


def _tell(out: Path, counts: Mapping[str, int], faults: Sequence[str]) -> None:
    for fault in faults[:_NAMED]:
        get_logger().warning("%s", fault)
    if len(faults) > _NAMED:
        get_logger().warning("and %s more that cannot be read", f"{len(faults) - _NAMED:,}")
    rest = [counted(counts[kind], kind) for kind in (UNREADABLE, OUT_OF_RANGE, FOLDERS) if counts.get(kind)]
    told = [counted(counts["frames"], "frames") + " of " + counted(counts["videos"], "videos"), *rest]
    get_logger().info("%s: %s; %s", out, ", ".join(told), bytes_text(counts["bytes"]))


def _check_settings(out: Path, sampling: FrameSampling, form: FrameFormat) -> None:
    """Makes the folder, or refuses one of something else."""
    wanted = {"version": VERSION, "sampling": asdict(sampling), "format": asdict(form)}
    if (out / _SETTINGS).is_file():
        found = read_json(out / _SETTINGS, dict, "Remove the folder or choose another --out.")
        if found != wanted:
            raise XTunerError(
                f"'{out}' holds frames by other settings ({_words(found)}, now {_words(wanted)}): choose another "
                "--out, or remove it."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise XTunerError(f"'{out}' exists and holds no frames of videos: choose a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    for leftover in (*out.glob(".frames*"), *out.glob(f".{_SETTINGS}*")):
        leftover.unlink()
    _write_json(out / _SETTINGS, wanted)


def _words(settings: Mapping[str, Any]) -> str:
    parts = {**settings.get("sampling", {}), **settings.get("format", {})}
    return ", ".join(f"{name}={value}" for name, value in parts.items() if value is not None)


def _finished(path: Path, entry: Path) -> _Kept | None:
    """What an earlier run wrote; None where it did not come to its end, or the file is another one."""
    try:
        kept = _Kept(**json.loads(entry.read_text(encoding="utf-8")))
        return kept if path.stat().st_size == kept.bytes else None
    except (OSError, ValueError, TypeError):
        return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = unfinished_name(path)
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)

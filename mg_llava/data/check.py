"""Every fault of the training data in one pass, before anything is trained."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from rich.progress import track

from mg_llava.boxes.records import BoxRecord
from mg_llava.boxes.selection import BoxSelection
from mg_llava.boxes.sense import ADVICE, INVERTED, LARGER, NO_AREA, OUTSIDE, odd_boxes
from mg_llava.boxes.store import BoxStore, no_match_message, other_size_message
from mg_llava.data.box_columns import find_boxes, own_records
from mg_llava.data.length_check import no_answer, sample_notes
from mg_llava.data.prepared_sources import PreparedSources, SampleMaker, make_samples
from mg_llava.data.sources import DataSource, sources_of
from mg_llava.data.statistics import DataStatistics
from mg_llava.data.video_frames import FrameExpander
from mg_llava.pictures.open import open_picture
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos.files import FrameFiles, named_picture, what_is
from mg_llava.videos.places import read_frame_place
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.pictures.windows import is_windows_path, windows_advice
from xtuner.data.records.findings import Findings
from xtuner.data.records.records import RecordSource
from xtuner.data.store.progress import FileProgress
from xtuner.data.text.conversations import Conversation, RecordError, iter_conversations
from xtuner.data.text.templates import PromptTemplate
from xtuner.errors import ProblemsError, SampleError, XTunerError
from xtuner.log import console
from xtuner.registry import build

_THREADS = min(8, os.cpu_count() or 1)
_SHOWN = 10
_WINDOWS = "paths of Windows: "
_UNSURE = ("data file: ", "malformed JSON: ", _WINDOWS)
"""How problems begin after which records of a data file are left unread, or their pictures not known."""
_ONE_BOX = {
    INVERTED: "inverted box",
    NO_AREA: "box without area",
    OUTSIDE: "box outside the picture",
    LARGER: "box of a larger picture",
}
_RECORDS_PER_REPORT = 1000
_EXPANDED_AT_A_TIME = 100


@dataclass(frozen=True)
class _Use:
    """A picture as a sample uses it."""

    path: str
    sample_id: str
    num_images: int
    own: BoxRecord | None = None


def check_training_data(node: Mapping[str, Any], fast: bool = False) -> Findings:
    """Finds all problems of a ``train_dataset`` node's settings, records, pictures and boxes.

    Every record is parsed and tokenised; every picture is decoded and preprocessed once, as training does it. What
    training leaves out or cuts though it is no fault is noted: records without an answer, and what `max_length` or the
    language model's context has no room for.

    Args:
        node: the ``train_dataset`` of a config.
        fast: only decode the pictures.
    """
    findings = Findings()
    problems = findings.problems
    tokenizer = _try("tokenizer", lambda: build(node["tokenizer"]), problems)
    processor = _try("image processor", lambda: build(node["image_processor"]), problems)
    _try("box selection", lambda: build(node.get("boxes")), problems)
    sources = _try("settings", lambda: sources_of(node), problems)
    # nothing can be tokenised where a part is missing; the records are looked at all the same
    complete = not problems
    maker = _try("language model", lambda: make_samples(node, tokenizer, processor), problems) if complete else None
    folder = node.get("offline_processed_text_folder")
    prepared = None
    if folder is not None and maker is not None and sources:
        prepared = _try("prepared data", lambda: PreparedSources(sources, maker, folder), problems)
    cells = None if maker is None else maker.processor.num_image_tokens
    statistics = DataStatistics(cells, None if maker is None else maker.max_length)
    for number, source in enumerate(sources or ()):
        template = None if maker is None else _try("prompt template", partial(maker.template, source), problems)
        if source.data_path is not None:
            uses = _uses_of(source, findings, maker, template, statistics)
        elif prepared is not None:
            uses = [_Use(path, name, len(images)) for name, images in prepared.pictures(number) for path in images]
            findings.notes += [f"prepared data: {count:,} {kind}" for kind, count in prepared.left_out(number)]
        else:
            if folder is None:
                problems.append("settings: no training data: set data_path or offline_processed_text_folder.")
            continue
        files = _try("pictures", source.pictures, problems) if uses else None
        if files is not None and maker is not None and (kept := source.kept_frames()) is not None:
            _try("kept frames", partial(kept.check_sampling, maker.sampling), problems)
        if files is not None and (note := source.cost_note()):
            findings.notes.append(f"slow pictures: {note}")
        sizes = _check_pictures(uses, files, processor, fast, problems)
        statistics.add_missing({use.path for use in uses} - sizes.keys())
        said = problems if node.get("strict_paths") else findings.notes
        said += _outside(uses, files)
        _check_boxes(uses, sizes, source.box_json_path, findings, statistics)
    told = list(dict.fromkeys(problems)), list(dict.fromkeys(findings.notes))
    return Findings(*told, statistics.rows() if sources else [])


def with_other_problems(error: ProblemsError, sources: Sequence[DataSource]) -> ProblemsError:
    """Returns `error` with everything else for which a training on `sources` would not start.

    The first fault found ends the preparing: without this the next one would only show at the next start. Pictures
    are looked for, not decoded. The first ten of a kind are named.
    """
    findings = Findings()
    problems = findings.problems
    for source in sources:
        if source.data_path is None:
            continue
        uses = _uses_of(source, findings)
        files = _try("pictures", source.pictures, problems) if uses else None
        users = {path: use.sample_id for path, use in _first_uses(uses).items()}
        missing = list(users)
        if files is not None:
            missing = files.missing(pa.array(users, pa.string()))
            windows = set(_windows_paths(missing, files, len(users), problems))
            for path in missing:
                if path not in windows:
                    kind, name = what_is(path)
                    problems.append(f"missing {kind}: '{name}' (sample '{users[path]}') does not exist")
        deque(_records_of(uses, source.box_json_path, findings, len(missing) < len(users)), maxlen=0)
    problems = list(dict.fromkeys(problems))
    if not problems:
        return ProblemsError(error.what, error.problems)
    seen: Counter[str] = Counter()
    shown = []
    for problem in problems:
        kind = problem.partition(": ")[0]
        seen[kind] += 1
        if seen[kind] <= _SHOWN:
            shown.append(problem)
    more = "" if len(shown) == len(problems) else f" ({len(problems):,} in all; `xtuner check-dataset` shows them)"
    return ProblemsError(f"the training data{more}", shown)


def _try(kind: str, action: Callable[[], Any], problems: list[str]) -> Any:
    """Returns what `action` returns; None with a problem noted where it fails."""
    try:
        return action()
    except XTunerError as error:
        problems.append(f"{kind}: {error}")
        return None


def _uses_of(
    source: DataSource,
    findings: Findings,
    maker: SampleMaker | None = None,
    template: PromptTemplate | None = None,
    statistics: DataStatistics | None = None,
) -> list[_Use]:
    """Pictures of the good records of a source; the faulty ones become problems, named with the source.

    With `maker` and `template` what is too long is noted; `statistics` sees every record.
    """
    faults: list[str] = []
    refused: list[str] = []
    notes: list[str] = []
    uses: list[_Use] = []
    path = str(source.data_path)

    expander = FrameExpander(source, FrameSampling()) if maker is None else maker.expander(source)

    def answered(records: RecordSource) -> Iterator[Conversation]:
        read = iter_conversations(records.records(progress.on_bytes), faults, videos=True)
        for number, conversation in enumerate(_with_frames(read, expander, faults, notes), start=1):
            if number % _RECORDS_PER_REPORT == 0:
                progress.advance(_RECORDS_PER_REPORT)
            if statistics is not None:
                statistics.add_record(conversation)
            if conversation.turns:
                images = conversation.images
                own = _own_boxes(conversation, source, refused)
                used = zip(images, own, strict=True)
                uses.extend(_Use(image, conversation.id, len(images), record) for image, record in used)
                yield conversation
            else:
                notes.append(no_answer(conversation))

    try:
        records = source.records()
        with FileProgress(path, "Checking", records.size()) as progress:
            if maker is None or template is None:
                deque(answered(records), maxlen=0)
            else:
                watch = None if statistics is None else statistics.add_tokens
                notes += sample_notes(answered(records), maker, template, refused, watch)
    except XTunerError as error:
        findings.problems.append(f"data file: {error}")
    if statistics is not None:
        statistics.add_faults(len(faults))
    name = os.path.basename(path)
    findings.problems += [f"{fault} [{name}]" for fault in (*faults, *refused)]
    findings.notes += [f"{note} [{name}]" for note in notes]
    return uses


def _with_frames(
    conversations: Iterator[Conversation], expander: FrameExpander, faults: list[str], notes: list[str]
) -> Iterator[Conversation]:
    """Conversations with frames for videos, those that are left out named."""
    while batch := list(islice(conversations, _EXPANDED_AT_A_TIME)):
        for talk, expanded in zip(batch, expander(batch), strict=True):
            if isinstance(expanded, Conversation):
                yield expanded
            elif isinstance(expanded, RecordError):
                faults.append(str(expanded))
            else:
                notes.append(f"{expanded.reason}: {talk.where}: its video is shorter; it is left out.")


def _own_boxes(conversation: Conversation, source: DataSource, problems: list[str]) -> Sequence[BoxRecord | None]:
    """The boxes that a record gives of each of its pictures; None where it gives none."""
    if conversation.boxes and source.box_json_path != "":
        try:
            return own_records(conversation)
        except XTunerError as error:
            problems.append(f"malformed boxes: {error}")
    return [None] * len(conversation.images)


def _check_pictures(
    uses: Sequence[_Use], files: FrameFiles | None, processor: ImageProcessor | None, fast: bool, problems: list[str]
) -> dict[str, tuple[int, int]]:
    """Reads each picture once as training does; returns (width, height) of the good ones by path."""
    first_use = _first_uses(uses)
    sizes: dict[str, tuple[int, int]] = {}
    if files is None:
        return sizes
    for path in _windows_paths(files.missing(pa.array(first_use, pa.string())), files, len(first_use), problems):
        del first_use[path]
    readings = _readings(list(first_use))
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda paths: _read(files, paths, processor, fast), readings)
        watched = track(results, "Reading pictures", total=len(readings), console=console, transient=True)
        for paths, result in zip(readings, watched, strict=True):
            if isinstance(result, str):
                problems.append(f"{result} (sample '{first_use[paths[0]].sample_id}')")
            else:
                sizes.update(zip(paths, result, strict=True))
    return sizes


def _readings(paths: Sequence[str]) -> list[list[str]]:
    """What is read at a time: one picture, or all frames of a video that any sample has, in order of time."""
    frames: dict[str, set[str]] = {}
    for path in paths:
        if (place := read_frame_place(path)) is not None:
            frames.setdefault(place.video, set()).add(path)
    pictures = [[path] for path in paths if read_frame_place(path) is None]
    return pictures + [sorted(found, key=_time_of) for found in frames.values()]


def _time_of(path: str) -> float:
    place = read_frame_place(path)
    return 0.0 if place is None else place.time


def _first_uses(uses: Sequence[_Use]) -> dict[str, _Use]:
    """Each picture with the first sample that uses it, in the file's order."""
    found: dict[str, _Use] = {}
    for use in uses:
        found.setdefault(use.path, use)
    return found


def _windows_paths(missing: Sequence[str], files: FrameFiles, total: int, problems: list[str]) -> list[str]:
    """Returns those of the missing pictures whose paths are Windows's; one problem tells of all of them."""
    advice = windows_advice(missing, total, files.holds)
    if advice is None:
        return []
    problems.append(f"{_WINDOWS}{advice}")
    return [path for path in missing if is_windows_path(path)]


def _outside(uses: Sequence[_Use], files: FrameFiles | None) -> Iterator[str]:
    """Names the pictures that lie outside the image folder."""
    if files is None:
        # named where the pictures are read
        return
    for path, use in _first_uses(uses).items():
        if how := files.outside(path):
            yield f"picture outside image_folder: '{path}' (sample '{use.sample_id}') {how}."


def _read(
    files: FrameFiles, paths: Sequence[str], processor: ImageProcessor | None, fast: bool
) -> list[tuple[int, int]] | str:
    """(width, height) of a picture or of the frames of a video; or what is wrong."""
    sizes = []
    try:
        for picture in files.images(paths, open_picture if processor is None else processor.open):
            if not (fast or processor is None):
                processor.pixels(picture)
            sizes.append(picture.size)
        return sizes
    except SampleError as error:
        return f"{error.kind}: {error}"
    except MemoryError:
        return f"out of memory: there is not enough memory to read {named_picture(paths[0])}."


def _check_boxes(
    uses: Sequence[_Use],
    sizes: Mapping[str, tuple[int, int]],
    box_path: str | None,
    findings: Findings,
    statistics: DataStatistics,
) -> None:
    seen = set()
    problems = findings.problems
    for use, record in _records_of(uses, box_path, findings, bool(sizes)):
        if (record.where, use.path) in seen:
            continue
        seen.add((record.where, use.path))
        size = sizes.get(use.path)
        statistics.add_boxes(record.found.boxes, record.found.labels, size)
        problems += _box_faults(record.where, record.found.boxes, size)
        if size is not None and record.size is not None and record.size != size:
            problems.append(f"boxes of another size: {other_size_message(use.path, size, record.size, record.where)}")


def _records_of(
    uses: Sequence[_Use], box_path: str | None, findings: Findings, some_there: bool
) -> Iterator[tuple[_Use, BoxRecord]]:
    """Yields the box records of the pictures; malformed and ambiguous ones, and a foreign file, become problems.

    Where none of the pictures is there, their paths may be wrong, and nothing is said of a file that has none of them.
    """
    yield from ((use, use.own) for use in uses if use.own is not None)
    if not box_path:
        return
    problems = findings.problems
    store = _try("box file", lambda: BoxStore(box_path, check=False), problems)
    if store is None:
        return
    problems += [f"malformed box record: {problem}" for problem in store.problems]
    # after these the file may look like another one's only because it, or the data file, was not read to its end
    broken = not some_there or bool(store.problems) or any(problem.startswith(_UNSURE) for problem in problems)
    asked = [use for use in uses if use.own is None]
    pictures = {use.path for use in asked}
    found: set[str] = set()
    for use in asked:
        try:
            record = find_boxes(store, use.path, use.sample_id, use.num_images, BoxSelection().frame_tolerance)
        except XTunerError as error:
            problems.append(f"ambiguous boxes: sample '{use.sample_id}': {error}")
            found.add(use.path)
            continue
        if record is not None:
            found.add(use.path)
            yield use, record
    if pictures and not found:
        if not broken:
            problems.append(f"boxes without pictures: {no_match_message(box_path, len(pictures))}")
    elif without := len(pictures - found):
        findings.notes.append(
            f"box file: '{box_path}' has no record of {without:,} of {len(pictures):,} pictures: "
            "no object tokens for them."
        )


def _box_faults(where: str, boxes: np.ndarray, size: tuple[int, int] | None) -> Iterator[str]:
    """Names the boxes that cannot be pixels of their picture."""
    of_size = "" if size is None else f" in a picture of {size[0]}x{size[1]} pixels"
    for kind, odd in odd_boxes(boxes, size).items():
        name = _ONE_BOX.get(kind, kind)
        if odd.all() and len(odd) > 1:
            yield f"{name}: {where}, all {len(odd)} boxes, the first is {boxes[0].tolist()}{of_size}: {ADVICE[kind]}."
            continue
        for index in np.flatnonzero(odd):
            yield f"{name}: {where}, box number {index + 1} is {boxes[index].tolist()}{of_size}: {ADVICE[kind]}."

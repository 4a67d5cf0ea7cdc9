"""The prepared samples of all sources of a data set, as one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mg_llava.boxes.records import BoxRecord
from mg_llava.boxes.selection import BoxSelection
from mg_llava.boxes.sense import refuse_odd
from mg_llava.boxes.store import BoxStore, no_match_message
from mg_llava.data.box_columns import ALL_BOXES, NOT_KNOWN, BoxColumns, own_records
from mg_llava.data.sources import DataSource, numbered
from mg_llava.data.video_frames import FrameExpander
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos.files import FrameFiles, named_picture
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.pictures.windows import is_windows_path, windows_advice
from xtuner.data.records.records import RecordSource
from xtuner.data.sources.pictures import SourcePictures
from xtuner.data.store.cache import CacheError, cache_folder, lock, remember
from xtuner.data.store.fingerprint import fingerprint, text_settings
from xtuner.data.store.prepare import load_prepared, prepare
from xtuner.data.store.prepared import PreparedData, PreparedRow
from xtuner.data.text.conversations import iter_conversations
from xtuner.data.text.encoder import RecordEncoder
from xtuner.data.text.fitting import build_template
from xtuner.data.text.specials import Policy, check_policy
from xtuner.data.text.templates import PromptTemplate
from xtuner.errors import ProblemsError, XTunerError, counted
from xtuner.log import get_logger
from xtuner.model.llm import read_llm_config
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LOSS = ("records", "kept", "pictures", ALL_BOXES)
"""Counts of a report that say of nothing that it was dropped or cut."""

_SHOWN = 10
_SPOT_CHECKS = 200


@dataclass(frozen=True)
class SampleMaker:
    """What turns the records of every source into samples.

    Attributes:
        tokenizer: of the language model.
        max_length: most text tokens of a sample.
        selection: which boxes become tokens.
        processor: of pictures.
        context_length: most tokens of all kinds; None = no bound.
        system_prompt: of conversations without one, see `build_template`.
        allow_odd_boxes: take box files in which most boxes cannot be pixels.
        strict_paths: refuse pictures outside their image folder.
        special_tokens_in_text: see `xtuner.data.text.specials.Policy`.
        sampling: which frames of a video are taken.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    selection: BoxSelection
    processor: ImageProcessor
    context_length: int | None
    special_tokens_in_text: Policy = "split"
    system_prompt: str | None = None
    allow_odd_boxes: bool = False
    strict_paths: bool = False
    sampling: FrameSampling = FrameSampling()

    def encoder(self, source: DataSource) -> RecordEncoder:
        """Returns what encodes the records of `source`."""
        columns = BoxColumns(source.box_json_path, self.selection, self.processor, self.max_length, self.context_length)
        template = self.template(source)
        policy, videos = self.special_tokens_in_text, self.expander(source)
        return RecordEncoder(self.tokenizer, template, self.max_length, columns, policy, videos)

    def expander(self, source: DataSource) -> FrameExpander:
        """Returns what puts frames in the places of the videos of `source`."""
        return FrameExpander(source, self.sampling, self.strict_paths)

    def template(self, source: DataSource) -> PromptTemplate:
        """Returns the template of `source`."""
        return build_template(source.prompt_template or "", self.tokenizer, self.system_prompt)


def make_samples(node: Mapping[str, Any], tokenizer: Any = None, processor: Any = None) -> SampleMaker:
    """Builds what a ``train_dataset`` node names.

    Args:
        node: with ``tokenizer``, ``max_length``, ``image_processor`` and, where it has them, ``boxes``,
            ``llm_name_or_path``, ``special_tokens_in_text``, ``system_prompt``,
            ``allow_odd_boxes``, ``strict_paths`` and ``frame_sampling``.
        tokenizer: already built.
        processor: already built.
    """
    llm, boxes, sampling = node.get("llm_name_or_path"), node.get("boxes"), node.get("frame_sampling")
    return SampleMaker(
        build(node["tokenizer"]) if tokenizer is None else tokenizer,
        node["max_length"],
        BoxSelection() if boxes is None else build(boxes),
        build(node["image_processor"]) if processor is None else processor,
        None if llm is None else getattr(read_llm_config(llm), "max_position_embeddings", None),
        check_policy(node.get("special_tokens_in_text", "split")),
        node.get("system_prompt"),
        bool(node.get("allow_odd_boxes", False)),
        bool(node.get("strict_paths", False)),
        FrameSampling() if sampling is None else build(sampling),
    )


class PreparedSources:
    """The samples of several sources, one after the other.

    Args:
        sources: see `read_sources`.
        maker: how their records become samples.
        offline_folder: use exactly this prepared folder (numbered ones below it for several sources); None = the
            automatic cache, prepared now where it is not there.

    Attributes:
        sources: as given.
        tokens: (number of samples,) all tokens of each.
        num_ids: (number of samples,) text ids of each, a picture counting as one.
        num_images: (number of samples,) its pictures.
        source_of: (number of samples,) number of its source.
        report: what was dropped or cut, by kind, all sources together.

    Raises:
        XTunerError: a file is missing, malformed or prepared with other settings, or a box file knows none of its
            source's pictures.
        ProblemsError: faulty records, or missing pictures.
    """

    def __init__(self, sources: Sequence[DataSource], maker: SampleMaker, offline_folder: str | None = None) -> None:
        self.sources = list(sources)
        folders = [None] * len(sources) if offline_folder is None else numbered(offline_folder, len(sources))
        self._parts = [_open(source, maker, folder) for source, folder in zip(self.sources, folders, strict=True)]
        self.files = [source.pictures(maker.strict_paths) for source in self.sources]
        index = np.concatenate([part.index for part in self._parts])
        self.tokens, self.num_images = index["tokens"].astype(np.int64), index["images"]
        self.num_ids = index["length"]
        self.source_of = np.repeat(np.arange(len(sources), dtype=np.int16), [len(part) for part in self._parts])
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.report: Counter[str] = Counter()
        for part in self._parts:
            self.report.update(part.report)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, number: int) -> tuple[PreparedRow, FrameFiles]:
        """Returns sample `number` and where its pictures lie."""
        source = int(np.searchsorted(self._ends, number, "right"))
        first = int(self._ends[source - 1]) if source else 0
        return self._parts[source].row(number - first), self.files[source]

    def part(self, source: int) -> PreparedData:
        """Returns the prepared data of source number `source`."""
        return self._parts[source]

    def pictures(self, source: int) -> Iterator[tuple[Any, ...]]:
        """Returns (id, pictures) of every sample of source number `source`."""
        return self._parts[source].values("id", "images")

    def left_out(self, source: int) -> list[tuple[str, int]]:
        """Returns what was dropped or cut of source number `source` when it was prepared, and how much."""
        report = self._parts[source].report
        return [(kind, count) for kind, count in report.items() if count and kind not in _NO_LOSS]

    def check_pictures(self) -> None:
        """Refuses pictures that are not there: better now than hours later.

        All are looked for once per prepared folder and image folder; later starts look for a few hundred. Where that
        cannot be remembered, the home being read-only, all are looked for at every start.

        Raises:
            ProblemsError: with the first missing ones.
        """
        for source, part, files in zip(self.sources, self._parts, self.files, strict=True):
            folder = source.image_folder or ""
            strict = "\nstrict" if files.strict_paths else ""
            own = (
                f"\n{Path(source.data_path).resolve()}"
                if isinstance(files.stored, SourcePictures) and source.data_path
                else ""
            )
            if source.frame_cache is not None:
                _tell_not_kept(part, files, source.frame_cache)
            frames = "" if source.frame_cache is None else f"\n{Path(source.frame_cache).resolve()}"
            name = f"{fingerprint(part.settings)}\n{Path(folder).resolve()}{own}{strict}{frames}"
            checked = cache_folder() / "checked_pictures" / hashlib.sha256(name.encode()).hexdigest()[:32]
            if checked.exists() and not _spot_check(part, files):
                continue
            try:
                with lock(checked):
                    if not checked.exists() or _spot_check(part, files):
                        _check_all(part, files, folder)
                        remember(checked)
            except CacheError as error:
                get_logger().warning("The check for missing pictures runs now and at the next start: %s", error)
                _check_all(part, files, folder)


def prepare_sources(
    sources: Sequence[DataSource], maker: SampleMaker, out_folder: str, num_proc: int | None
) -> dict[str, int]:
    """Prepares all `sources` and returns the counts.

    One source goes to `out_folder` itself, several to numbered folders below it.

    Raises:
        XTunerError: no data file is given; or as `xtuner.data.store.prepare.prepare`.
    """
    counts: Counter[str] = Counter()
    for source, folder in zip(sources, numbered(out_folder, len(sources)), strict=True):
        if source.data_path is None:
            raise XTunerError("no training data to prepare: set data_path (see docs/data.md).")
        encoder, records = maker.encoder(source), source.records()
        counts.update(prepare(records, folder, _settings(records, encoder, maker), encoder, num_proc))
    return dict(counts)


def _open(source: DataSource, maker: SampleMaker, folder: str | None) -> PreparedData:
    if (kept := source.kept_frames()) is not None:
        kept.check_sampling(maker.sampling)
    encoder = maker.encoder(source)
    records = None if source.data_path is None else source.records()
    part = load_prepared(records, _settings(records, encoder, maker), encoder, folder)
    pictures = part.report.get("pictures", 0)
    if source.box_json_path and 0 < pictures == part.report.get(NOT_KNOWN) and _holds_some(source, part):
        raise XTunerError(no_match_message(source.box_json_path, pictures))
    if not maker.allow_odd_boxes:
        path = source.box_json_path or source.data_path or str(folder)
        refuse_odd(part.report, part.report.get(ALL_BOXES, 0), path, _records(source))
    return part


def _holds_some(source: DataSource, part: PreparedData) -> bool:
    """Says whether any picture is there, and none is named as on Windows: else their paths may be wrong.

    That is `check_pictures` to tell, not the box file.
    """
    paths = part.picture_paths()
    missing = source.pictures().missing(paths)
    return len(missing) < len(paths) and not any(map(is_windows_path, missing))


def _records(source: DataSource) -> Iterator[BoxRecord]:
    """Opens the file only if a record is asked for."""
    if source.box_json_path:
        yield from BoxStore(source.box_json_path, check=False).records()
    if source.data_path is not None:
        for talk in iter_conversations(source.records().records(), [], videos=True):
            yield from own_records(talk) if talk.boxes else ()


def _settings(records: RecordSource | None, encoder: RecordEncoder, maker: SampleMaker) -> dict[str, Any]:
    data = None if records is None else records.identity()
    text = text_settings(data, encoder.tokenizer, encoder.template, encoder.max_length, encoder.special_tokens_in_text)
    added: Mapping[str, Any] = {} if encoder.columns is None else encoder.columns.settings()
    samples = dict(added)
    if maker.sampling != FrameSampling():
        # else as in folders from before there were videos
        samples["frame_sampling"] = asdict(maker.sampling)
    return {**text, "samples": samples}


def _spot_check(part: PreparedData, files: FrameFiles) -> list[str]:
    """Looks for the pictures of samples spread evenly over the data; returns those that are missing."""
    return [path for path in _some_paths(part) if not files.holds(path)]


def _some_paths(part: PreparedData) -> list[str]:
    step = max(1, len(part) // _SPOT_CHECKS)
    return [path for number in range(0, len(part), step) for path in part.row(number)["images"]]


def _tell_not_kept(part: PreparedData, files: FrameFiles, folder: str) -> None:
    paths = _some_paths(part)
    if lost := files.not_kept(paths):
        get_logger().warning(
            "%s of %s that were looked for are not among the frames in '%s' and are decoded: run `xtuner preprocess "
            "video` again where videos came in or changed their place.",
            f"{lost:,}",
            counted(len(paths), "pictures and frames"),
            folder,
        )


def _check_all(part: PreparedData, files: FrameFiles, image_folder: str) -> None:
    paths = part.picture_paths()
    if files.strict_paths:
        _refuse_outside(part, files, image_folder, paths.to_pylist())
    missing = files.missing(paths)
    if not missing:
        # a million names, and as many found: what held them goes back to the system
        del paths
        pa.default_memory_pool().release_unused()
        return
    users = _users(part, missing[:_SHOWN])
    advice = windows_advice(missing, len(paths), files.holds)
    if advice is not None:
        raise ProblemsError(f"'{image_folder}' (setting image_folder)", [advice])
    shown = [f"{named_picture(path)} of sample '{sample_id}' does not exist" for path, sample_id in users.items()]
    hidden = len(missing) - len(shown)
    if hidden:
        shown.append(f"and {hidden:,} more; `xtuner check-dataset` finds every fault of the data")
    raise ProblemsError(
        f"'{image_folder}' (setting image_folder), {len(missing):,} of {len(paths):,} pictures missing", shown
    )


def _refuse_outside(part: PreparedData, files: FrameFiles, image_folder: str, paths: Sequence[str]) -> None:
    outside = {path: how for path in paths if (how := files.outside(path))}
    if outside:
        users = _users(part, list(outside)[:_SHOWN])
        raise ProblemsError(
            f"'{image_folder}' (setting image_folder), {counted(len(outside), 'pictures')} outside of it "
            "(strict_paths=True)",
            [f"{named_picture(path)} of sample '{sample_id}' {outside[path]}" for path, sample_id in users.items()],
        )


def _users(part: PreparedData, paths: Sequence[str]) -> dict[str, str]:
    """Returns the first sample that uses each of `paths`."""
    users: dict[str, str] = {}
    for sample_id, images in part.values("id", "images"):
        for path in set(images).intersection(paths):
            users.setdefault(path, sample_id)
        if len(users) == len(paths):
            break
    return {path: users[path] for path in paths}

"""The data sources of a training: which there are, how often each is seen, and where its pictures and boxes lie."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from mg_llava.videos.cache.reading import FrameCache
from mg_llava.videos.files import FrameFiles
from xtuner.data.records.records import RecordSource
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.sources.columns import check_names
from xtuner.data.sources.locate import is_columnar, source_name
from xtuner.data.sources.places import SCHEME
from xtuner.data.sources.table import TableSource
from xtuner.data.text.templates import PromptTemplate
from xtuner.errors import XTunerError, nearest
from xtuner.registry import build, is_node

Template: TypeAlias = "str | PromptTemplate | Mapping[str, Any]"


@dataclass(frozen=True)
class DataSource:
    """One data source of a mixture. What is None is taken from the data set's own setting.

    Args:
        data_path: records, see `xtuner.data.sources.locate.locate`; None where a prepared folder is given instead.
        image_folder: see `open_pictures`.
        box_json_path: see `BoxStore`; it adds to the boxes that records give of their own pictures. "" = no object
            tokens.
        prompt_template: name, template or config node.
        repeats: how often an epoch sees each sample. A fraction is drawn anew each epoch: 0.5 = half of the samples,
            2.5 = all twice and half of them a third time.
        name: in the log; None = the file's.
        columns: the column of each field (``conversations``, ``image``, ...) that has another name there.
        frame_cache: folder of frames that `xtuner preprocess video` kept of its videos; others are decoded.
    """

    data_path: str | None = None
    image_folder: str | None = None
    box_json_path: str | None = None
    prompt_template: Template | None = None
    repeats: float = 1.0
    name: str | None = None
    columns: Mapping[str, str] | None = None
    frame_cache: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.repeats, (int, float)) and math.isfinite(self.repeats) and self.repeats > 0):
            raise XTunerError(f"data source '{self.data_path}': repeats={self.repeats!r}, expected a number above 0.")
        check_names(self.columns)

    def records(self) -> RecordSource:
        """Opens its records.

        Raises:
            XTunerError: nothing is there.
        """
        return open_source(str(self.data_path), self.columns)

    def cost_note(self) -> str | None:
        """Says that its pictures are slow to read, and what helps; None where they are not."""
        path = (self.image_folder or "").removeprefix(SCHEME)
        if path == self.image_folder:
            path = self.data_path or ""
        records = open_source(path, self.columns) if is_columnar(path) else None
        return records.cost_note() if isinstance(records, TableSource) else None

    def pictures(self, strict_paths: bool = False) -> FrameFiles:
        """Opens its pictures and videos.

        Raises:
            XTunerError: nothing is there, or its kept frames are not whole.
        """
        stored = open_pictures(self.image_folder or "", self.data_path, strict_paths)
        return FrameFiles(stored, self.kept_frames())

    def kept_frames(self) -> FrameCache | None:
        """Opens the kept frames of its videos; None where none are meant.

        Raises:
            XTunerError: they are not there, or not whole.
        """
        return None if self.frame_cache is None else FrameCache(self.frame_cache)


def read_sources(
    data_path: str | Sequence[str | Mapping[str, Any] | DataSource] | None,
    image_folder: str,
    box_json_path: str | None,
    prompt_template: Template,
    columns: Mapping[str, str] | None = None,
    frame_cache: str | None = None,
) -> list[DataSource]:
    """Returns the sources of a ``train_dataset`` with everything filled in and names that differ.

    Args:
        data_path: a file, or a list whose items are files, `DataSource` or dicts of its arguments.
        image_folder: of sources without their own, like the next two.
        box_json_path: see there.
        prompt_template: see there.
        columns: see there.
        frame_cache: of sources without their own: the folder itself for one source, numbered ones below it for several.

    Raises:
        XTunerError: an item that is none of these.
    """
    items = [data_path] if data_path is None or isinstance(data_path, (str, Mapping, DataSource)) else list(data_path)
    sources = [_read(item) for item in items]
    names = [source.name or source_name(source.data_path or "prepared") for source in sources]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    caches = [None] * len(sources) if frame_cache is None else numbered(frame_cache, len(sources))
    return [
        replace(
            source,
            image_folder=source.image_folder or image_folder,
            box_json_path=box_json_path if source.box_json_path is None else source.box_json_path,
            prompt_template=source.prompt_template or prompt_template,
            columns=columns if source.columns is None else source.columns,
            frame_cache=source.frame_cache or kept,
            name=f"{name}#{number}" if name in repeated else name,
        )
        for number, (source, name, kept) in enumerate(zip(sources, names, caches, strict=True), start=1)
    ]


def sources_of(node: Mapping[str, Any]) -> list[DataSource]:
    """Returns the sources of a config's ``train_dataset``, see `read_sources`."""
    found = (node.get("data_path"), node["image_folder"], node.get("box_json_path"), node["prompt_template"])
    return read_sources(*found, node.get("data_columns"), node.get("frame_cache"))


def numbered(folder: str, count: int) -> list[str]:
    """Returns a folder for each of `count` sources: the folder itself for one, else numbered ones below it."""
    return [folder] if count == 1 else [os.path.join(folder, f"{number:03d}") for number in range(count)]


def _read(item: Any) -> DataSource:
    if item is None or isinstance(item, str):
        return DataSource(item)
    if isinstance(item, DataSource):
        return item
    if is_node(item):
        return _read(build(item))
    if not isinstance(item, Mapping):
        raise XTunerError(f"data_path holds {item!r}: expected a file, or dict(data_path=..., repeats=..., ...).")
    known = [field.name for field in fields(DataSource)]
    for key in item:
        if key not in known:
            raise XTunerError(f"a source of data_path does not take '{key}'.{nearest(str(key), known)}")
    if item.get("data_path") is None:
        raise XTunerError(f"a source of data_path names no file: {dict(item)!r}; give it 'data_path'.")
    return DataSource(**item)

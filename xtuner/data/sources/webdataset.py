"""Records of WebDataset shards: members of one key, of which a JSON one says the record and others are its pictures and
videos.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from xtuner.data.pictures.index import picture_index
from xtuner.data.records.records import Record
from xtuner.data.sources.columns import PICTURES, TALKS, VIDEOS, as_messages, choose_columns
from xtuner.data.sources.locate import SourceFiles
from xtuner.data.sources.places import Place, bytes_spot
from xtuner.data.sources.table import records_digest
from xtuner.data.store.arrow_rows import ArrowRows
from xtuner.data.store.cache import remembered_of
from xtuner.errors import XTunerError
from xtuner.json_values import JSONFault, parse_json

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "webm", "mkv", "avi")
TEXT_SUFFIXES = ("json", "txt")
_LARGEST_TEXT = 64 << 20


@dataclass
class Sample:
    """The members of one key: of each its suffix, name, and what reads it.

    Attributes:
        key: what their names begin with.
        pictures: suffix, member's name and place of each picture, in the shard's order.
        videos: the same of each video.
        texts: suffix and content of each text.
    """

    key: str
    pictures: list[tuple[str, str, str]] = field(default_factory=list)
    videos: list[tuple[str, str, str]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)

    def held(self, suffix: str) -> list[tuple[str, str, str]] | None:
        """Returns the list that a member with this suffix belongs to; None for a text or another file."""
        kind = suffix.rpartition(".")[2]
        return self.pictures if kind in PICTURE_SUFFIXES else self.videos if kind in VIDEO_SUFFIXES else None


class WebDatasetSource:
    """Records of tar shards. Each member is read at its place; nothing is unpacked.

    A record's fields are those of the key's ``.json`` member, and its other texts by their suffix; its pictures are the
    key's members with a picture's suffix, of whichever formats, in the shard's order, and so are its videos.

    Args:
        found: the shards.
        columns: the column (a field of the JSON member, or a suffix) of a field.
    """

    def __init__(self, found: SourceFiles, columns: Mapping[str, str]) -> None:
        self.data_path = found.data_path
        self.found = found
        self.columns = dict(columns)

    def records(self, on_bytes: Callable[[int], None] | None = None) -> Iterator[Record | str]:
        """Yields a record per key.

        Raises:
            XTunerError: a shard is damaged, or the first record lacks a field.
        """
        total, read = self.size(), 0
        for number, sample in enumerate(self._samples()):
            where = f"'{sample.key}' (number {number + 1} of '{self.data_path}')"
            item = record_of(sample, self.columns, self.data_path, where, number == 0)
            yield item if isinstance(item, str) else Record(item, number)
            read += sum(map(len, sample.texts.values()))
            if on_bytes is not None:
                on_bytes(min(read, total))

    def size(self) -> int:
        """Returns the bytes of the JSON and text members."""
        rows = self._members().values("name", "size")
        return sum(size for name, size in rows if split_name(name)[1].rpartition(".")[2] in TEXT_SUFFIXES)

    def identity(self) -> dict[str, Any]:
        """Returns path, number of records and digest of what they say; pictures count by their places."""
        what = json.dumps([self.found.names, self.columns], sort_keys=True)
        found = json.loads(remembered_of(self.found.files, what, lambda: records_digest(self.records())))
        return {"path": self.data_path, "size": found["records"], "digest": found["digest"]}

    def _members(self) -> ArrowRows:
        folder, rows_of_batches = picture_index(list(self.found.files))
        return ArrowRows([folder / "members.arrow"], [rows_of_batches])

    def _samples(self) -> Iterator[Sample]:
        rows = self._members().values("file", "name", "offset", "size")
        for number, members in groupby(rows, key=lambda row: row[0]):
            with open(self.found.files[number], "rb") as shard:
                for key, group in groupby(members, key=lambda row: split_name(row[1])[0]):
                    sample = Sample(key)
                    for _, name, offset, size in group:
                        suffix = split_name(name)[1]
                        if (held := sample.held(suffix)) is not None:
                            place = Place(self.found.names[number], bytes_spot(offset, size), name)
                            held.append((suffix, name, str(place)))
                        elif suffix.rpartition(".")[2] in TEXT_SUFFIXES:
                            within = min(size, _LARGEST_TEXT + 1)
                            sample.texts[suffix] = os.pread(shard.fileno(), within, offset)
                    if sample.pictures or sample.videos or sample.texts:
                        yield sample


def split_name(name: str) -> tuple[str, str]:
    """Splits a member's name into its key and, in small letters, what follows the first dot of its last part."""
    folder, base = posixpath.split(name)
    key, _, suffix = base.partition(".")
    return posixpath.join(folder, key), suffix.lower()


def record_of(
    sample: Sample, columns: Mapping[str, str], data_path: str, where: str, is_first: bool
) -> dict[str, Any] | str:
    """Returns the record of a sample, or a sentence that says what is wrong with it.

    Raises:
        XTunerError: `is_first` and it lacks a field that all need.
    """
    fields: dict[str, Any] = {}
    for suffix, content in sample.texts.items():
        if len(content) > _LARGEST_TEXT:
            return f"record too large: {where}: its .{suffix} has more than {_LARGEST_TEXT / 1e6:,.0f} MB."
        try:
            text = content.decode("utf-8-sig")
            value = parse_json(text, whole_characters=False) if suffix.endswith("json") else text
        except UnicodeDecodeError as error:
            return f"malformed text: {where}: its .{suffix} is not UTF-8 ({error.reason})."
        except JSONFault as error:
            return f"malformed JSON: {where}: its .{suffix}: {error}."
        fields |= value if suffix == "json" and isinstance(value, dict) else {suffix: value}
    held = {PICTURES: sample.pictures, VIDEOS: sample.videos}
    suffixes = {names: list(dict.fromkeys(suffix for suffix, _, _ in found)) for names, found in held.items()}
    wanted = {
        names: [columns[name] for name in names if columns.get(name) in found] for names, found in suffixes.items()
    }
    given = {
        name: column
        for name, column in columns.items()
        if not any(name in names and column in found for names, found in suffixes.items())
    }
    there = [suffix for found in suffixes.values() for suffix in found if suffix not in fields]
    try:
        chosen = choose_columns(data_path, [*fields, *there], given)
    except XTunerError as error:
        if is_first:
            raise
        return f"no messages: {where}: {error}"
    record: dict[str, Any] = dict.fromkeys(name for name in fields if name not in chosen.values())
    record |= {name: fields.get(column) for name, column in chosen.items()}
    record |= {name: as_messages(record[name]) for name in TALKS if name in record}
    record.setdefault("id", sample.key)
    for names, found in held.items():
        _set_places(record, names, [entry for entry in found if not wanted[names] or entry[0] in wanted[names]])
    return record


def _set_places(record: dict[str, Any], names: tuple[str, str], members: list[tuple[str, str, str]]) -> None:
    """Names a record's pictures, or its videos, by the places of the members that hold them."""
    own = next((record[name] for name in names if record.get(name) is not None), None)
    given = own if isinstance(own, list) else [own]
    places = [place for _, _, place in members]
    if own is not None and len(given) == len(places) and all(isinstance(name, str) for name in given):
        # box files know them by the names that the record gives
        places = [place.partition("@")[0] + f"@{name}" for place, name in zip(places, given, strict=True)]
    if places:
        one, several = names
        record.pop(several, None)
        record[one] = places

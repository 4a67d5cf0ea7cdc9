"""Shards that are read from beginning to end, where they lie: on the Hub, on another server or on a disk."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa

from xtuner.data.pictures.files import MOST_BYTES, PictureFiles, picture_files
from xtuner.data.records.formats import read_record
from xtuner.data.records.json_stream import Record
from xtuner.data.sources.columns import check_names
from xtuner.data.sources.hub import HUB, find_on_hub
from xtuner.data.sources.locate import SourceFiles, expand_braces, locate, of_one_kind
from xtuner.data.sources.pictures import SourcePictures
from xtuner.data.sources.places import Place, bytes_spot, read_place, without_name
from xtuner.data.sources.table import TableSource
from xtuner.data.sources.webdataset import TEXT_SUFFIXES, Sample, record_of, split_name
from xtuner.errors import SampleError, XTunerError, reason_of

Item: TypeAlias = "tuple[Record | str, dict[str, bytes]]"
"""A record, or a sentence that says what is wrong with it, and the bytes of its pictures and videos by their places
without names.
"""


class StreamShards:
    """The shards of a source that has no copy on the disk. Pickles as its arguments.

    Args:
        data_path: ``hf://owner/name[:split]``, files or a pattern of Parquet or WebDataset shards, or an address that
            fsspec opens (``https://host/shard-{0000..0127}.tar``).
        columns: the column of each field whose name is another one.

    Raises:
        XTunerError: nothing is there, or files of another kind.
    """

    def __init__(self, data_path: str, columns: Mapping[str, str] | None = None) -> None:
        self.columns = check_names(columns)
        if data_path.startswith(HUB):
            self.found = of_one_kind(data_path, find_on_hub(data_path).addresses)
        elif "://" in data_path:
            self.found = of_one_kind(data_path, expand_braces(data_path))
        else:
            self.found = locate(data_path)
        if self.found.kind not in ("parquet", "webdataset"):
            raise XTunerError(
                f"'{data_path}' is {self.found.kind}, which is not streamed: expected Parquet or WebDataset shards; "
                "prepare it instead (train_dataset.type=MGLLaVADataset)."
            )

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.found.files)

    def read(self, shard: int, start: int = 0) -> Iterator[Item]:
        """Yields what a shard holds from record `start` on.

        Raises:
            XTunerError: the shard is damaged, lacks a column, or the connection broke.
        """
        one = SourceFiles(self.found.data_path, self.found.kind, (self.found.files[shard],), (self.found.names[shard],))
        with _reading(one.files[0]):
            if one.kind == "parquet":
                yield from islice(_table_items(one, self.columns, start), start, None)
            else:
                yield from islice(_tar_items(one, self.columns), start, None)


class MemoryPictures:
    """Pictures that stand in memory, others by their paths.

    Args:
        contents: bytes by place, without names.
        image_folder: where the others lie.
        strict_paths: refuse those outside the folder.
    """

    def __init__(self, contents: Mapping[str, bytes], image_folder: str, strict_paths: bool = False) -> None:
        self.contents = contents
        self.image_folder = image_folder
        self.strict_paths = strict_paths

    def open(self, path: str) -> str | io.BytesIO:
        """Returns the picture's bytes, or the path of its file.

        Raises:
            SampleError: it is not there.
        """
        content = self.contents.get(without_name(path))
        if content is not None:
            return io.BytesIO(content)
        if read_place(path) is not None:
            raise SampleError("missing picture", f"picture '{path}' is not in its shard, or is too large.")
        return self._others().open(path)

    def holds(self, path: str) -> bool:
        """Says whether the picture is there."""
        return without_name(path) in self.contents or self._others().holds(path)

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that are not there."""
        return [path for path in paths.to_pylist() if not self.holds(path)]

    def outside(self, path: str) -> str | None:
        """Says how a path leads out of the folder."""
        return None if read_place(path) is not None else self._others().outside(path)

    def _others(self) -> PictureFiles:
        return picture_files(self.image_folder, self.strict_paths)


def _table_items(one: SourceFiles, columns: Mapping[str, str], start: int) -> Iterator[Item]:
    pictures = SourcePictures(one, "", in_order=True)
    for item in TableSource(one, columns, random_access=False).records():
        if isinstance(item, str) or item.index < start:
            yield item, {}
            continue
        yield item, {without_name(place): _content(pictures, place) for place in _places(item.value)}


def _content(pictures: SourcePictures, place: str) -> bytes:
    found = pictures.open(place)
    assert isinstance(found, io.BytesIO)
    return found.getvalue()


def _places(value: Any) -> list[str]:
    try:
        found = read_record(value, videos=True)
        return [path for path in (*found.images, *found.videos) if read_place(path) is not None]
    except SampleError:
        # named when the record is encoded
        return []


def _tar_items(one: SourceFiles, columns: Mapping[str, str]) -> Iterator[Item]:
    for number, (sample, contents) in enumerate(_tar_samples(one)):
        where = f"'{sample.key}' (number {number + 1} of '{one.names[0]}')"
        record = record_of(sample, columns, one.data_path, where, number == 0)
        yield (record if isinstance(record, str) else Record(record, number)), contents


def _tar_samples(one: SourceFiles) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Yields the samples of a shard, read as it comes, with the bytes of their pictures."""
    import fsspec

    sample: Sample | None = None
    contents: dict[str, bytes] = {}
    with fsspec.open(one.files[0], "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            # else the list grows by every member
            tar.members = []  # type: ignore[attr-defined]  # missing in the stubs
            key, suffix = split_name(member.name)
            is_text = suffix.rpartition(".")[2] in TEXT_SUFFIXES
            if not member.isfile() or not (is_text or Sample(key).held(suffix) is not None):
                continue
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample, contents
                sample, contents = Sample(key), {}
            opened = tar.extractfile(member)
            content = opened.read(MOST_BYTES + 1) if opened is not None else b""
            held = sample.held(suffix)
            if held is None:
                sample.texts[suffix] = content
                continue
            place = str(Place(one.names[0], bytes_spot(member.offset_data, member.size), member.name))
            held.append((suffix, member.name, place))
            if len(content) <= MOST_BYTES:
                contents[without_name(place)] = content
    if sample is not None:
        yield sample, contents


@contextmanager
def _reading(address: str) -> Iterator[None]:
    try:
        yield
    except XTunerError:
        raise
    except ImportError as error:
        # of the kind of address, which fsspec reads by a package that is not installed
        raise XTunerError(
            f"'{address}' cannot be read ({error}): install what it names, or download the shards."
        ) from error
    except (OSError, EOFError, ValueError, tarfile.TarError, pa.ArrowException) as error:
        reason = reason_of(error)
        raise XTunerError(
            f"the shard '{os.path.basename(address)}' cannot be read to its end ({reason}): check the connection and "
            "the file; --resume auto goes on at the place that was reached."
        ) from error

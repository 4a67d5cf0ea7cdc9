"""Which pictures stand where in tar, zip and Parquet files: looked up once, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from xtuner.data.store.cache import build_once, cache_folder, publish, unfinished_name
from xtuner.data.store.key_table import KeyTable, hash_key
from xtuner.data.tables.cells import holds_bytes, is_list
from xtuner.data.tables.parquet import ParquetTable
from xtuner.errors import XTunerError, counted
from xtuner.log import tell_from_any_rank

SUFFIXES = (".tar", ".zip", ".parquet")
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_VERSION = 2
_BATCH = 1000
_NAMES = ("path", "image_path", "file_name", "filename", "name", "key", "id")
_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "file": pa.int32(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "method": pa.int32(),
        "column": pa.string(),
    }
)

_BROKEN_ARCHIVE = (ValueError, KeyError, IndexError, EOFError, NotImplementedError, OverflowError, zlib.error)
"""What the readers of archives raise beside their own errors where bytes are wrong."""

Member = tuple[str, int, int, int, int, "str | None"]
"""Name, number of its file, offset, stored size, compression; in Parquet its row instead of the offset, and column."""


def picture_index(files: list[str]) -> tuple[Path, list[int]]:
    """Returns the folder of the index of `files` and the rows of its record batches; made now where there is none.

    Raises:
        XTunerError: a file cannot be read, or the cache cannot be written.
    """
    state = [(os.path.abspath(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
    folder = cache_folder() / "pictures" / hashlib.sha256(json.dumps([_VERSION, state]).encode()).hexdigest()[:32]
    build_once(folder, lambda: _build(files, folder))
    return folder, json.loads((folder / "index.json").read_text())


def _build(files: list[str], folder: Path) -> None:
    unfinished = unfinished_name(folder)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        hashes: list[int] = []
        rows_of_batches: list[int] = []
        with pa.OSFile(str(unfinished / "members.arrow"), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for number, file in enumerate(files):
                members = _members(file, number)
                while part := list(islice(members, _BATCH)):
                    columns = zip(*part, strict=True)
                    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)]
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
                    rows_of_batches.append(len(part))
                    hashes += [hash_key(member[0]) for member in part]
        KeyTable.save(unfinished / "members.keys", hashes, range(len(hashes)))
        (unfinished / "index.json").write_text(json.dumps(rows_of_batches))
        publish(unfinished, folder)
        tell_from_any_rank(
            "Indexed %s in %s, the first is '%s'.",
            *(counted(len(hashes), "pictures"), counted(len(files), "archives"), files[0]),
        )
    except OSError as error:
        raise XTunerError(
            f"the index of '{files[0]}' cannot be written to '{folder.parent}': {error}; free some space, or set "
            "XTUNER_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _members(file: str, number: int) -> Iterator[Member]:
    try:
        if file.lower().endswith(".tar"):
            yield from _tar_members(file, number)
        elif file.lower().endswith(".zip"):
            yield from _zip_members(file, number)
        elif file.lower().endswith(".parquet"):
            yield from _table_members(file, number)
        else:
            raise XTunerError(f"'{file}' is not an archive of pictures: expected {', '.join(SUFFIXES)}.")
    except XTunerError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, pa.ArrowException, struct.error, *_BROKEN_ARCHIVE) as error:
        raise XTunerError(f"the archive '{file}' cannot be read ({error}): copy it again.") from error


def _tar_members(file: str, number: int) -> Iterator[Member]:
    # "r:": not compressed, because only then a member can be read at its place
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            # else the list grows by every member of the archive
            tar.members = []  # type: ignore[attr-defined]  # missing in the stubs
            if member.isfile():
                yield posixpath.normpath(member.name), number, member.offset_data, member.size, STORED, None


def _zip_members(file: str, number: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive, open(file, "rb") as content:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1 or member.compress_type not in (STORED, DEFLATED):
                raise XTunerError(
                    f"'{member.filename}' in '{file}' is encrypted or compressed with an unsupported method: "
                    "expected stored or deflated."
                )
            # the local header's own lengths say where the data begins; those of the directory may differ
            content.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", content.read(4))
            start = member.header_offset + 30 + name_length + extra_length
            name = posixpath.normpath(member.filename)
            yield name, number, start, member.compress_size, member.compress_type, None


def _table_members(file: str, number: int) -> Iterator[Member]:
    """Names from the paths in the cells, else from a column of names; the pictures stay in their cells."""
    table = ParquetTable(file)
    kinds = {entry.name: entry.type for entry in table.schema}
    named = [name for name in _NAMES if name in kinds]
    pictures = [name for name, kind in kinds.items() if holds_bytes(kind) and not is_list(kind)]
    if not pictures or not (named or pa.types.is_struct(kinds[pictures[0]])):
        raise XTunerError(
            f"'{file}' has the columns {', '.join(kinds)}: expected pictures as {{bytes, path}}, or a column of bytes "
            f"beside one of {', '.join(_NAMES)}."
        )
    row = 0
    for batch, cells in table.batches(named[:1], pictures[0]):
        assert cells is not None
        names = batch.column(named[0]).to_pylist() if named else [None] * len(batch)
        filled = iter(zip(cells.has_bytes, cells.paths, strict=True))
        for place, (count, name) in enumerate(zip(cells.counts, names, strict=True), start=row):
            has_bytes, path = next(filled) if count else (False, None)
            if has_bytes and (called := path or name) is not None:
                yield posixpath.normpath(str(called)), number, place, 0, STORED, pictures[0]
        row += len(batch)

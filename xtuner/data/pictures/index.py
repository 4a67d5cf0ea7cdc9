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
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from xtuner.data.store.cache import build_once, cache_folder, publish, unfinished_name
from xtuner.data.store.key_table import KeyTable, hash_key
from xtuner.errors import XTunerError
from xtuner.log import tell_from_any_rank

SUFFIXES = (".tar", ".zip", ".parquet")
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_BATCH = 1000
_PARQUET_BATCH = 64
_NAMES = ("path", "image_path", "file_name", "filename", "name", "key", "id")
_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "file": pa.int32(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "method": pa.int32(),
        "bytes": pa.binary(),
    }
)

_BROKEN_ARCHIVE = (ValueError, KeyError, IndexError, EOFError, NotImplementedError, OverflowError, zlib.error)
"""What the readers of archives raise beside their own errors where bytes are wrong."""

Member = tuple[str, int, int, int, int, "bytes | None"]
"""Name, number of its file, offset, stored size, compression, and its bytes where it comes from Parquet."""


def picture_index(files: list[str]) -> tuple[Path, list[int]]:
    """Returns the folder of the index of `files` and the rows of its record batches; made now where there is none.

    Parquet cannot be read at a place: its pictures' bytes are copied into the index.

    Raises:
        XTunerError: a file cannot be read, or the cache cannot be written.
    """
    state = [(os.path.abspath(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
    folder = cache_folder() / "pictures" / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
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
                size = _PARQUET_BATCH if file.lower().endswith(".parquet") else _BATCH
                while part := list(islice(members, size)):
                    columns = zip(*part, strict=True)
                    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)]
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
                    rows_of_batches.append(len(part))
                    hashes += [hash_key(member[0]) for member in part]
        KeyTable.save(unfinished / "members.keys", hashes, range(len(hashes)))
        (unfinished / "index.json").write_text(json.dumps(rows_of_batches))
        publish(unfinished, folder)
        tell_from_any_rank(
            "Indexed %s pictures in %d archives, the first is '%s'.", f"{len(hashes):,}", len(files), files[0]
        )
    except OSError as error:
        raise XTunerError(
            f"the index of '{files[0]}' cannot be written to '{folder.parent}': {error}. Free some space, or set "
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
            yield from _parquet_members(file, number)
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


def _parquet_members(file: str, number: int) -> Iterator[Member]:
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(file)
    for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
        names, pictures = _picture_columns(batch, file)
        for name, picture in zip(names, pictures, strict=True):
            if name is not None and picture is not None:
                yield posixpath.normpath(str(name)), number, 0, len(picture), STORED, picture


def _picture_columns(batch: pa.RecordBatch, file: str) -> tuple[Iterable[Any], Iterable[bytes | None]]:
    """Names and bytes: of a struct column {bytes, path}, as `datasets` writes pictures, or of two columns."""
    named = [name for name in _NAMES if name in batch.schema.names]
    for field in batch.schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            values = [value or {} for value in batch.column(field.name).to_pylist()]
            inner = [value.get("path") for value in values]
            names = inner if all(inner) or not named else batch.column(named[0]).to_pylist()
            return names, [value.get("bytes") for value in values]
        if (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)) and named:
            return batch.column(named[0]).to_pylist(), batch.column(field.name).to_pylist()
    raise XTunerError(
        f"'{file}' has the columns {', '.join(batch.schema.names)}: expected pictures as {{bytes, path}}, or a "
        f"column of bytes beside one of {', '.join(_NAMES)}."
    )

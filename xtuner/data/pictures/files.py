"""Where pictures lie: in a folder, in tar or zip shards, or in Parquet; read there, never copied."""

from __future__ import annotations

import glob
import io
import os
import posixpath
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from xtuner.data.pictures.index import DEFLATED, SUFFIXES, picture_index
from xtuner.data.store.arrow_rows import ArrowRows
from xtuner.data.store.key_table import KeyTable
from xtuner.data.tables.parquet import ParquetTable
from xtuner.errors import SampleError, XTunerError

MOST_BYTES = 256 << 20
"""Most bytes of a picture's file in an archive, stored or unpacked: a small member may unpack to gigabytes."""
_LISTED = 10_000
"""Names of a folder that stand in memory as Python's at a time."""


class PictureFiles(Protocol):
    """Pictures by their path as the records give it."""

    def open(self, path: str) -> str | io.BytesIO:
        """Returns the path of a picture's file, or its bytes."""
        ...

    def holds(self, path: str) -> bool:
        """Says whether the picture is there."""
        ...

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that are not there."""
        ...

    def outside(self, path: str) -> str | None:
        """Says how a path leads out of where the pictures lie; None where it does not."""
        ...


def picture_files(image_folder: str, strict_paths: bool = False) -> PictureFiles:
    """Opens what a setting ``image_folder`` names.

    Args:
        image_folder: a folder; or a ``.tar``, ``.zip`` or ``.parquet`` file, or a pattern of such (``shards/*.tar``),
            whose members' names are the records' paths.
        strict_paths: refuse pictures outside the folder. Archives never give others than their own.

    Raises:
        XTunerError: a pattern or file that is not there, or a file of another kind.
    """
    is_pattern = any(letter in image_folder for letter in "*?[") and not os.path.isdir(image_folder)
    if not is_pattern and not image_folder.lower().endswith(SUFFIXES):
        if os.path.isfile(image_folder):
            raise XTunerError(
                f"image_folder '{image_folder}' is neither a folder nor one of {', '.join(SUFFIXES)} (an "
                "uncompressed tar, because pictures are read in place): unpack it."
            )
        return FolderPictures(image_folder, strict_paths)
    files = sorted(glob.glob(image_folder, recursive=True)) if is_pattern else [image_folder]
    if not files or not all(os.path.isfile(file) for file in files):
        raise XTunerError(f"image_folder '{image_folder}' names no file: expected {', '.join(SUFFIXES)}, or a folder.")
    return ArchivePictures(files)


class FolderPictures:
    """Pictures as files below a folder.

    Args:
        folder: of the pictures.
        strict_paths: refuse to open what lies outside of it.
    """

    def __init__(self, folder: str, strict_paths: bool = False) -> None:
        self.folder = folder
        self.strict_paths = strict_paths

    def open(self, path: str) -> str:
        """Returns the path of the picture's file.

        Raises:
            SampleError: it lies outside the folder, where that is refused.
        """
        if self.strict_paths and (how := self.outside(path)):
            message = f"picture '{path}' {how}, which strict_paths refuses: move it there, or set strict_paths=False."
            raise SampleError("picture outside image_folder", message)
        return os.path.join(self.folder, path)

    def holds(self, path: str) -> bool:
        """Says whether the picture's file is there."""
        try:
            return os.path.isfile(os.path.join(self.folder, path))
        except ValueError:
            # a zero byte in the name
            return False

    def outside(self, path: str) -> str | None:
        """Says how a path leads out of the folder: by itself or by a symbolic link; None where it does not."""
        if os.path.isabs(path):
            return "is an absolute path"
        if posixpath.normpath(path).split("/")[0] == "..":
            return f"leads out of image_folder '{self.folder}' by '..'"
        root = os.path.realpath(self.folder)
        try:
            real = os.path.realpath(os.path.join(root, path))
        except (OSError, ValueError):
            return None
        return None if real.startswith(os.path.join(root, "")) else "is a symbolic link to a place outside image_folder"

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that are no files.

        Folders are listed once instead of asking for each picture: on a network's disk that is the difference
        between seconds and an hour for a million of them. Names stay in Arrow, a quarter of what Python's take.
        """
        # what stands before the name, with its slash
        parents = pc.replace_substring_regex(paths, "[^/]*$", "")
        listed = [names for parent in pc.unique(parents).to_pylist() for names in self._listed(parent)]
        found = pc.is_in(paths, value_set=pa.chunked_array(listed, pa.string()))
        # the list may lack what a file system finds under another writing of its name
        return [path for path in paths.filter(pc.invert(found)).to_pylist() if not self.holds(path)]

    def _listed(self, parent: str) -> Iterator[pa.StringArray]:
        """Yields what a folder holds, each name with `parent` before it."""
        folder = os.path.join(self.folder, parent)
        if not os.path.isdir(folder):
            return
        with os.scandir(folder) as entries:
            names = (parent + entry.name for entry in entries if _is_utf8(entry.name))
            while some := list(islice(names, _LISTED)):
                yield pa.array(some, pa.string())


class ArchivePictures:
    """Pictures in tar, zip or Parquet files, read at their place without unpacking.

    An index of the members is made once and kept in the cache. Pickles as the files' names.

    Args:
        files: of one or several of these kinds; of members with the same name the first counts.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        folder, rows_of_batches = picture_index(files)
        self._rows = ArrowRows([folder / "members.arrow"], [rows_of_batches])
        self._keys = KeyTable(folder / "members.keys")
        self._places = FilePlaces()
        self._tables: dict[int, ParquetTable] = {}

    def __reduce__(self) -> tuple[type[ArchivePictures], tuple[list[str]]]:
        return type(self), (self.files,)

    def open(self, path: str) -> io.BytesIO:
        """Returns the picture's bytes.

        Raises:
            XTunerError: no member has this name, or the archive is cut off.
        """
        row = self._row(path)
        if row is None:
            raise SampleError(
                "missing picture",
                f"picture '{path}' is in none of the archives ({len(self.files)}, first '{self.files[0]}'): check "
                "image_folder and the record's 'image'.",
            )
        batch, number = self._rows.locate(row)
        names = ("file", "offset", "size", "method", "column")
        file, offset, size, method, column = (batch.column(name)[number].as_py() for name in names)
        if column is not None:
            return io.BytesIO(self._cell(file, column, offset, path))
        content = self._places.read(self.files[file], offset, size, path)
        if method != DEFLATED:
            return io.BytesIO(content)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            unpacked = unpacker.decompress(content, MOST_BYTES)
            if unpacker.unconsumed_tail:
                raise _too_large(path, f"unpacks to more than {MOST_BYTES / 1e6:,.0f} MB")
            if not unpacker.eof:
                raise zlib.error("the compressed data is cut off")
            return io.BytesIO(unpacked)
        except zlib.error as error:
            message = f"picture '{path}' in '{self.files[file]}' cannot be unpacked ({error}): copy the archive again."
            raise SampleError("picture does not decode", message) from error

    def _cell(self, file: int, column: str, row: int, path: str) -> bytes:
        if file not in self._tables:
            self._tables[file] = ParquetTable(self.files[file])
        content = self._tables[file].bytes_of(column, row, 0) or b""
        if len(content) > MOST_BYTES:
            raise _too_large(path, f"has {len(content) / 1e6:,.0f} MB")
        return content

    def holds(self, path: str) -> bool:
        """Says whether an archive holds the picture."""
        return self._row(path) is not None

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that no archive holds."""
        found = pc.is_in(paths, value_set=self._rows.column("name"))
        # others may be members under another writing of their name
        return [path for path in paths.filter(pc.invert(found)).to_pylist() if not self.holds(path)]

    def below(self, folder: str) -> list[str]:
        """Returns the names of the members in `folder`, those of its own folders left out; all names are looked at."""
        names = self._rows.column("name")
        start = f"{posixpath.normpath(folder)}/"
        found = names.filter(pc.starts_with(names, start)) if len(names) else names
        return [name for name in dict.fromkeys(found.to_pylist()) if "/" not in name[len(start) :]]

    def outside(self, path: str) -> str | None:
        """Returns None: names are looked up among the members and nowhere else."""
        return None

    def _row(self, path: str) -> int | None:
        name = posixpath.normpath(path)
        for row in self._keys.rows(name):
            batch, number = self._rows.locate(row)
            if batch.column("name")[number].as_py() == name:
                return row
        return None


class FilePlaces:
    """Reads bytes at places in files, which stay open."""

    def __init__(self) -> None:
        self._handles: dict[str, int] = {}

    def read(self, file: str, offset: int, size: int, path: str) -> bytes:
        """Returns `size` bytes of a file.

        Args:
            file: its path.
            offset: of the first byte.
            size: at most `MOST_BYTES`.
            path: of the picture, for messages.

        Raises:
            SampleError: the picture is too large, or the file is cut off or cannot be read.
        """
        if size > MOST_BYTES:
            raise _too_large(path, f"has {size / 1e6:,.0f} MB")
        try:
            if file not in self._handles:
                self._handles[file] = os.open(file, os.O_RDONLY)
            # at a place of its own: processes that share the handle do not move each other
            content = os.pread(self._handles[file], size, offset)
        except (OSError, ValueError, OverflowError) as error:
            message = f"picture '{path}' in '{file}' cannot be read ({error}): copy the archive again."
            raise SampleError("picture does not decode", message) from error
        if len(content) < size:
            message = f"picture '{path}': the archive '{file}' is truncated; copy it again."
            raise SampleError("picture does not decode", message)
        return content


def _too_large(path: str, found: str) -> SampleError:
    message = f"picture '{path}' in its archive {found}, at most {MOST_BYTES / 1e6:,.0f} MB are read: make it smaller."
    return SampleError("picture too large", message)


def _is_utf8(name: str) -> bool:
    """False for a name of undecodable bytes: Arrow cannot hold it, and no data file can name it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Records of JSON and JSONL files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from xtuner.data.records.records import Record, read_records
from xtuner.data.sources.locate import SourceFiles
from xtuner.data.store.cache import remembered_digest
from xtuner.errors import XTunerError


class JSONSource:
    """Records of JSON or JSONL files, one after the other.

    Args:
        found: the files.
    """

    def __init__(self, found: SourceFiles) -> None:
        self.data_path = found.data_path
        self.files = found.files

    def records(self, on_bytes: Callable[[int], None] | None = None) -> Iterator[Record | str]:
        """Yields the records; see `xtuner.data.records.records.read_records`."""
        read = first = 0
        for file in self.files:
            count = 0
            for item in read_records(file, None if on_bytes is None else _from(read, on_bytes)):
                if isinstance(item, Record):
                    count = item.index + 1
                    yield replace(item, index=first + item.index) if first else item
                else:
                    yield item
            read, first = read + os.path.getsize(file), first + count

    def size(self) -> int:
        """Returns the bytes of the files."""
        return sum(os.path.getsize(file) for file in self.files if os.path.isfile(file))

    def identity(self) -> dict[str, Any]:
        """Returns path, size and digest of the content.

        Raises:
            XTunerError: a file does not exist.
        """
        for file in self.files:
            if not os.path.isfile(file):
                raise XTunerError(
                    f"data file '{file}' does not exist: set data_path to a JSON or JSONL file, or to another source "
                    "of records (docs/data.md)."
                )
        digests = [remembered_digest(file) for file in self.files]
        return {"path": self.data_path, "size": self.size(), "digest": "+".join(digests)}


def _from(start: int, on_bytes: Callable[[int], None]) -> Callable[[int], None]:
    return lambda position: on_bytes(start + position)

"""Prepared data sets: folders of memory-mapped Arrow shards, opened in no time.

A folder holds ``data-00000.arrow``, ... (columns: see `xtuner.data.text.encoder`), ``data-00000.npy``, ... (`INDEX` of
each shard's samples), and ``settings.json``: what it was made from and with, the shards, and counts of what was
dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xtuner.data.store.arrays import load_array
from xtuner.data.store.arrow_rows import ArrowRows, list_values
from xtuner.data.store.fingerprint import FORMAT_VERSION, differences
from xtuner.data.text.encoder import INDEX
from xtuner.errors import XTunerError
from xtuner.json_values import read_json

SETTINGS = "settings.json"
_AGAIN = "xtuner preprocess llava --config CONFIG --out FOLDER"


class PreparedData:
    """The samples of a prepared folder. Pickles as its path.

    Args:
        folder: made by `xtuner.data.store.prepare.prepare`.

    Attributes:
        settings: what it was made from and with.
        report: counts of what was kept, dropped and cut off.
        index: `INDEX` of every sample.

    Raises:
        XTunerError: no prepared folder, one of another version, or one in which a shard is missing or cut off.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        content = read_settings(self.folder)
        self.settings: dict[str, Any] = content
        self.report: dict[str, int] = content["report"]
        shards = content["shards"]
        _check_shards(self.folder, shards)
        self._rows = ArrowRows(
            [self.folder / shard["file"] for shard in shards], [shard["rows_of_batches"] for shard in shards]
        )
        parts = [load_array((self.folder / shard["file"]).with_suffix(".npy")) for shard in shards]
        self.index = np.concatenate([np.zeros(0, INDEX), *parts])

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple[type[PreparedData], tuple[Path]]:
        return type(self), (self.folder,)

    def row(self, number: int) -> PreparedRow:
        """Returns sample `number`."""
        return PreparedRow(*self._rows.locate(number))

    def picture_paths(self) -> pa.StringArray:
        """Returns the paths of all samples' pictures, each once."""
        images = self._rows.column("images")
        return pc.unique(pc.list_flatten(images)) if len(images) else pa.array([], pa.string())

    def values(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yields each sample's values of the columns `names`; a batch at a time stands in memory."""
        return self._rows.values(*names)


class PreparedRow:
    """One sample: columns are read when they are asked for."""

    def __init__(self, batch: pa.RecordBatch, row: int) -> None:
        self._batch = batch
        self._row = row

    def __getitem__(self, name: str) -> Any:
        """Returns the value of a column as Python has it."""
        return self._batch.column(name)[self._row].as_py()

    def numbers(self, name: str) -> np.ndarray:
        """Returns the numbers of a list column without a copy (read-only)."""
        return list_values(self._batch, name, self._row)


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns what a prepared folder says of itself.

    Raises:
        XTunerError: it is no prepared folder, or one of another version.
    """
    if not folder.is_dir():
        raise XTunerError(f"the prepared folder '{folder}' does not exist: create it with {_AGAIN}")
    content = read_json(folder / SETTINGS, dict, f"prepare the data again with {_AGAIN}")
    if content.get("version") != FORMAT_VERSION or "shards" not in content:
        raise XTunerError(
            f"'{folder}' was prepared by another version (format {content.get('version', 'unknown')}, expected "
            f"{FORMAT_VERSION}): delete it and prepare it again with {_AGAIN}"
        )
    return content


def check_settings(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a prepared folder that must have been made with `wanted`.

    Raises:
        XTunerError: it was made with others; each difference is named.
    """
    prepared = read_settings(folder)
    kept = {key: value for key, value in prepared.items() if key not in ("report", "shards")}
    if found := differences(kept, wanted):
        raise XTunerError(
            f"'{folder}' was prepared with other settings: {'; '.join(found)}; change the settings back, or prepare "
            f"another folder with {_AGAIN}"
        )
    return prepared


def _check_shards(folder: Path, shards: list[dict[str, Any]]) -> None:
    faults = []
    for shard in shards:
        path = folder / shard["file"]
        for file, size in ((path, shard["bytes"]), (path.with_suffix(".npy"), shard["index_bytes"])):
            if not file.is_file():
                faults.append(f"{file.name} is missing")
            elif file.stat().st_size != size:
                faults.append(f"{file.name} has {file.stat().st_size:,} bytes, expected {size:,}")
    if faults:
        raise XTunerError(
            f"the prepared folder '{folder}' is incomplete: {'; '.join(faults)}; copy it again, or delete it and "
            f"prepare it again with {_AGAIN}"
        )

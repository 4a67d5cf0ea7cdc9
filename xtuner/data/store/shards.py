"""Writing the shards of a prepared folder: each appears whole, so that a run that was killed goes on after the last."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xtuner.data.store.cache import unfinished_name
from xtuner.data.store.fingerprint import differences
from xtuner.data.text.encoder import INDEX, EncodedBatch
from xtuner.errors import counted
from xtuner.log import tell_from_any_rank

BATCH = 500
"""Records per record batch: fixed, so that the files do not depend on the number of processes."""

BATCHES_PER_SHARD = 40
"""A restart does at most one shard's work again."""

_WANTED = "wanted.json"


class ShardWriter:
    """Writes record batches as shards into an unfinished folder.

    Args:
        folder: new, or of an earlier run that was killed: its finished shards are kept where they were made with the
            same settings.
        settings: everything that the content depends on.
        schema: of the record batches.

    Attributes:
        shards: one entry per finished shard: ``file``, ``bytes``, ``index_bytes``, ``rows_of_batches``, ``counts``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema
        self.shards: list[dict[str, Any]] = []
        wanted = {**settings, "records_per_shard": self.records_per_shard}
        if not self._same(wanted):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / _WANTED, wanted)
        while (entry := self._path(len(self.shards)).with_suffix(".json")).is_file():
            self.shards.append(json.loads(entry.read_text()))
        for leftover in folder.glob(".data-*"):
            leftover.unlink()
        if self.shards:
            tell_from_any_rank("Continuing: an earlier start finished %s.", counted(len(self.shards), "shards"))

    @property
    def records_per_shard(self) -> int:
        """Records that a full shard is made of, dropped ones included."""
        return BATCH * BATCHES_PER_SHARD

    def write(self, batches: Iterator[EncodedBatch]) -> bool:
        """Makes the next shard of the next batches; False where there are none.

        Raises:
            OSError: the disk is full; the unfinished shard is removed.
        """
        first = next(batches, None)
        if first is None:
            return False
        path = self._path(len(self.shards))
        unfinished = unfinished_name(path)
        rows: list[int] = []
        counts: Counter[str] = Counter()
        index = [np.zeros(0, INDEX)]
        try:
            with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, self.schema) as writer:
                for batch in _with_first(first, islice(batches, BATCHES_PER_SHARD - 1)):
                    counts.update(batch.counts)
                    if batch.batch.num_rows:
                        writer.write_batch(batch.batch)
                        rows.append(batch.batch.num_rows)
                        index.append(batch.index)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        index_path = path.with_suffix(".npy")
        with open(index_path, "wb") as file:
            np.save(file, np.concatenate(index))
        entry = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "index_bytes": index_path.stat().st_size,
            "rows_of_batches": rows,
            "counts": dict(counts),
        }
        # the entry says that the shard is finished, so it comes last
        write_json(path.with_suffix(".json"), entry)
        self.shards.append(entry)
        return True

    def finish(self) -> list[dict[str, Any]]:
        """Removes what only a restart needs; returns the entries for the folder's settings."""
        for shard in self.shards:
            (self.folder / shard["file"]).with_suffix(".json").unlink()
        (self.folder / _WANTED).unlink()
        return [{key: value for key, value in shard.items() if key != "counts"} for shard in self.shards]

    def _same(self, wanted: Mapping[str, Any]) -> bool:
        try:
            before = json.loads((self.folder / _WANTED).read_text())
        except (OSError, json.JSONDecodeError):
            return False
        return not differences(before, wanted)

    def _path(self, number: int) -> Path:
        return self.folder / f"data-{number:05d}.arrow"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` under another name and renames it."""
    unfinished = unfinished_name(path)
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


def _with_first(first: EncodedBatch, others: Iterable[EncodedBatch]) -> Iterator[EncodedBatch]:
    yield first
    yield from others

"""Kept frames by their places: memory-mapped Arrow files, of which a frame's own pages are read."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mg_llava.videos.sampling import FrameSampling
from xtuner.data.store.arrow_rows import ArrowRows
from xtuner.data.store.key_table import KeyTable
from xtuner.errors import SampleError, XTunerError
from xtuner.json_values import read_json

VERSION = 1
INDEX, KEYS = "frames.json", "frames.keys"
PLACE, FRAME = "place", "frame"
"""Columns: of each frame its place as prepared samples have it, and the bytes of its picture."""
SCHEMA = pa.schema({PLACE: pa.string(), FRAME: pa.binary()})
_AGAIN = "xtuner preprocess video"


class FrameCache:
    """Frames of videos that `keep_frames` wrote. Pickles as its folder.

    Args:
        folder: complete.

    Raises:
        XTunerError: it is not there, unfinished, of another version, or one of its files is missing or cut off.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        content = read_index(self.folder)
        self.sampling: dict[str, Any] = content["sampling"]
        shards = content["shards"]
        _check_shards(self.folder, shards)
        self._rows = ArrowRows(
            [self.folder / shard["file"] for shard in shards], [shard["rows_of_batches"] for shard in shards]
        )
        self._keys = KeyTable(self.folder / KEYS)

    def __reduce__(self) -> tuple[type[FrameCache], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._rows)

    def check_sampling(self, sampling: FrameSampling) -> None:
        """Refuses a rule by which other frames would be taken: nearly all would have to be decoded after all.

        Raises:
            XTunerError: it is another one.
        """
        wanted = asdict(sampling)
        if found := _differences(self.sampling, wanted):
            raise XTunerError(
                f"the frames in '{self.folder}' (setting frame_cache) were sampled by another rule: {found}. Keep "
                f"those of this rule in another folder with `{_AGAIN}`, or set frame_sampling back."
            )

    def holds(self, place: str) -> bool:
        """Says whether a frame is there."""
        return self._find(place) is not None

    def open(self, place: str) -> io.BytesIO:
        """Returns the bytes of a frame's picture.

        Raises:
            SampleError: it is not there.
        """
        found = self._find(place)
        if found is None:
            raise SampleError("missing frame", f"frame '{place}' is not in '{self.folder}': keep the frames again.")
        batch, number = found
        return io.BytesIO(batch.column(FRAME)[number].as_buffer())

    def missing(self, places: pa.StringArray) -> list[str]:
        """Returns those of `places` that are not there."""
        if not len(self):
            return places.to_pylist()
        return places.filter(pc.invert(pc.is_in(places, value_set=self._rows.column(PLACE)))).to_pylist()

    def _find(self, place: str) -> tuple[pa.RecordBatch, int] | None:
        for row in self._keys.rows(place) if len(self) else ():
            batch, number = self._rows.locate(row)
            if batch.column(PLACE)[number].as_py() == place:
                return batch, number
        return None


def read_index(folder: Path) -> dict[str, Any]:
    """Returns what a folder of kept frames says of itself.

    Raises:
        XTunerError: it is none, is unfinished, or of another version.
    """
    if not folder.is_dir():
        raise XTunerError(f"the folder of frames '{folder}' (setting frame_cache) does not exist: run `{_AGAIN}`.")
    if not (folder / INDEX).is_file():
        raise XTunerError(f"'{folder}' (setting frame_cache) holds no complete frames: run `{_AGAIN}` to its end.")
    content = read_json(folder / INDEX, dict, f"Keep the frames again with `{_AGAIN}`")
    if content.get("version") != VERSION or "shards" not in content:
        raise XTunerError(
            f"the frames in '{folder}' were kept by another version (format {content.get('version', 'unknown')}, "
            f"expected {VERSION}): keep them again in another folder with `{_AGAIN}`."
        )
    return content


def _check_shards(folder: Path, shards: list[dict[str, Any]]) -> None:
    faults = []
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file():
            faults.append(f"{path.name} is missing")
        elif path.stat().st_size != shard["bytes"]:
            faults.append(f"{path.name} has {path.stat().st_size:,} bytes, expected {shard['bytes']:,}")
    if not (folder / KEYS).is_file():
        faults.append(f"{KEYS} is missing")
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise XTunerError(
            f"the frames in '{folder}' are incomplete ({faults[0]}{more}): copy the folder again, or run `{_AGAIN}` "
            "again, which makes what is missing."
        )


def _differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    found = [
        f"{name} was {made.get(name)!r}, now {value!r}" for name, value in wanted.items() if made.get(name) != value
    ]
    return ", ".join(found)

"""From a ``data_path`` to the files that it names, all of one kind."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

from xtuner.data.sources.hub import HUB, hub_files
from xtuner.data.sources.places import SCHEME
from xtuner.errors import XTunerError, reason_of

Kind: TypeAlias = Literal["json", "parquet", "arrow", "webdataset"]

SUFFIXES: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
}
_TAKEN = (
    "a JSON, JSONL, Parquet or Arrow file, a folder of such Parquet or Arrow files (also of datasets' save_to_disk), "
    "WebDataset shards (shards/*.tar), or hf://owner/name[:split]"
)
_COMPRESSED_TAR = re.compile(r"\.(tgz|tar\.\w+)$", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class SourceFiles:
    """The files of a data source.

    Attributes:
        data_path: as the setting has it.
        kind: of all files.
        files: where they lie, in order.
        names: of each, without the folder that all are in: the same on every machine.
    """

    data_path: str
    kind: Kind
    files: tuple[str, ...]
    names: tuple[str, ...]


def locate(data_path: str) -> SourceFiles:
    """Finds the files of a data source; those of the Hub are downloaded into its own cache where they are not there.

    Args:
        data_path: a file, a folder, a pattern (``*``, ``?``, ``[..]``, ``{000..015}``) or ``hf://owner/name[:split]``.

    Raises:
        XTunerError: nothing is there, or files of several kinds.
    """
    if data_path.startswith(HUB):
        return of_one_kind(data_path, hub_files(data_path))
    if _COMPRESSED_TAR.search(data_path):
        raise XTunerError(
            f"data_path '{data_path}' is a compressed tar, in which nothing can be read in place: unpack it to a .tar."
        )
    if os.path.isdir(data_path):
        return of_one_kind(data_path, _files_of_folder(data_path))
    if os.path.exists(data_path) or not _is_pattern(data_path):
        # a JSON file may have any name
        kind = SUFFIXES.get(Path(data_path).suffix.lower(), "json")
        return SourceFiles(data_path, kind, (data_path,), (os.path.basename(data_path),))
    return of_one_kind(data_path, _files_of_pattern(data_path))


def is_columnar(data_path: str) -> bool:
    """Says whether a ``data_path`` names something else than a JSON or JSONL file."""
    return data_path.startswith(HUB) or os.path.isdir(data_path) or _kind_of_name(data_path) != "json"


def is_there(path: str) -> bool:
    """Says whether files stand behind a path or pattern; of the Hub it is not asked."""
    path = path.removeprefix(SCHEME)
    if path.startswith(HUB) or glob.glob(path, recursive=True):
        return True
    try:
        return _BRACES.search(path) is not None and bool(_files_of_pattern(path))
    except XTunerError:
        return False


def needs_folder(data_path: Any) -> bool:
    """Says whether the pictures of a setting ``data_path`` need a folder: not where all sources may hold their own."""
    items = data_path if isinstance(data_path, (list, tuple)) else [data_path]
    paths = [item.get("data_path") if isinstance(item, Mapping) else item for item in items]
    return not all(isinstance(path, str) and is_columnar(path) for path in paths)


def place_of(data_path: str) -> str:
    """Returns a ``data_path`` that means the same in another folder."""
    return data_path if data_path.startswith(HUB) else os.path.abspath(data_path)


def source_name(data_path: str) -> str:
    """Returns a short name of a data source, for logs and folders: its file's without the suffix, as a rule."""
    path = Path(data_path)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    # of a pattern the folder says more
    words = re.sub(r"[^\w.-]+", "_", stem).strip("_.-")
    return words or re.sub(r"[^\w.-]+", "_", path.parent.name).strip("_.-") or "data"


def _kind_of_name(data_path: str) -> Kind:
    return SUFFIXES.get(Path(data_path).suffix.lower(), "json")


def _is_pattern(data_path: str) -> bool:
    return any(letter in data_path for letter in "*?[") or _BRACES.search(data_path) is not None


def _files_of_pattern(pattern: str) -> list[str]:
    files: list[str] = []
    for expanded in expand_braces(pattern):
        found = sorted(glob.glob(expanded, recursive=True))
        if not found:
            raise XTunerError(f"data_path '{pattern}': no file fits '{expanded}': expected {_TAKEN}.")
        files += [file for file in found if os.path.isfile(file)]
    return list(dict.fromkeys(files))


def expand_braces(pattern: str) -> list[str]:
    """Returns ``a-{00..02}.tar`` as its three names, as WebDataset writes patterns.

    Raises:
        XTunerError: it names none, or very many.
    """
    ranges = [(int(low), int(high), len(low)) for low, high in _BRACES.findall(pattern)]
    total = 1
    for low, high, _ in ranges:
        total *= max(0, high - low + 1)
    if not 0 < total <= _MOST_SHARDS:
        raise XTunerError(f"data_path '{pattern}' names {total:,} shards: expected 1 to {_MOST_SHARDS:,}.")
    pieces = _BRACES.split(pattern)[::3]
    numbers = product(*([f"{number:0{width}d}" for number in range(low, high + 1)] for low, high, width in ranges))
    return ["".join(map("".join, zip(pieces, [*chosen, ""], strict=True))) for chosen in numbers]


def _files_of_folder(folder: str) -> list[str]:
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        splits = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        raise XTunerError(
            f"data_path '{folder}' holds the splits {', '.join(splits) or '(none)'}: name one of them, as "
            f"'{os.path.join(folder, splits[0] if splits else 'train')}'."
        )
    if os.path.isfile(os.path.join(folder, "state.json")):
        return _files_of_saved(folder)
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    # beside data there may be JSON that describes it
    files = [file for file in found if _kind_of_name(file) != "json"]
    if not files:
        names = ", ".join(sorted(os.listdir(folder))[:10]) or "nothing"
        raise XTunerError(f"data_path '{folder}' is a folder with {names}: expected {_TAKEN}.")
    return files


def _files_of_saved(folder: str) -> list[str]:
    """The Arrow files of a folder that `datasets` saved."""
    import datasets

    try:
        saved = datasets.load_from_disk(folder, keep_in_memory=False)
    except Exception as error:  # whatever is wrong with its own files, `datasets` raises a dozen kinds
        reason = reason_of(error)
        raise XTunerError(
            f"data_path '{folder}' looks as if datasets' save_to_disk made it, but cannot be read ({reason}): "
            "save it again."
        ) from error
    return [str(entry["filename"]) for entry in saved.cache_files]


def of_one_kind(data_path: str, files: Sequence[str]) -> SourceFiles:
    """Returns files that a ``data_path`` names.

    Raises:
        XTunerError: there are none, or they are of several kinds.
    """
    kinds: dict[Kind, list[str]] = {}
    for file in files:
        suffix = Path(file).suffix.lower()
        if suffix not in SUFFIXES:
            raise XTunerError(f"data_path '{data_path}' names '{file}', which is of no known kind: expected {_TAKEN}.")
        kinds.setdefault(SUFFIXES[suffix], []).append(file)
    if len(kinds) != 1:
        found = ", ".join(f"{len(some)} of {kind} ('{some[0]}')" for kind, some in kinds.items()) or "no file"
        raise XTunerError(f"data_path '{data_path}' names {found}: expected files of one kind.")
    (only,) = kinds
    paths = [file.partition("://")[2] if "://" in file else os.path.abspath(file) for file in files]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = tuple(os.path.relpath(path, folder or ".") for path in paths)
    return SourceFiles(data_path, only, tuple(files), names)

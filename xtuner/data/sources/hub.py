"""The files of a data set of the Hub: which belong to a split says `datasets`, the Hub's own cache holds them once."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xtuner.data.store.cache import cache_folder, write_text
from xtuner.errors import XTunerError
from xtuner.log import get_logger

HUB = "hf://"
_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?")
_REMOTE = re.compile(r"hf://datasets/([^/]+/[^/@]+)@([^/]+)/(.+)")


@dataclass(frozen=True)
class HubFiles:
    """Files of one split as the Hub has them.

    Attributes:
        repository: ``owner/name``.
        revision: commit.
        names: of the files, in order, within the repository.
    """

    repository: str
    revision: str
    names: tuple[str, ...]

    @property
    def addresses(self) -> list[str]:
        """Addresses of the files for fsspec."""
        return [f"hf://datasets/{self.repository}@{self.revision}/{name}" for name in self.names]


def hub_files(address: str) -> list[str]:
    """Returns the files of ``hf://owner/name[/subset][:split]`` in the Hub's cache, downloaded where need be.

    Raises:
        XTunerError: the address is no such address, the Hub cannot be reached, or it has no such data set, subset or
            split.
    """
    from huggingface_hub import snapshot_download

    found = find_on_hub(address)
    wanted = list(found.names)
    try:
        folder = snapshot_download(
            found.repository, repo_type="dataset", revision=found.revision, allow_patterns=wanted
        )
    except Exception as error:  # offline, no rights, no room: the client raises a dozen kinds
        raise _unreachable(address, error) from error
    files = [os.path.join(folder, name) for name in found.names]
    if missing := [name for name, file in zip(found.names, files, strict=True) if not os.path.isfile(file)]:
        raise XTunerError(
            f"'{address}': {len(missing)} of {len(files)} files are not in the Hub's cache, the first is "
            f"'{missing[0]}': start once with a connection to the Hub."
        )
    return files


@lru_cache(maxsize=64)  # records and pictures of a source both ask
def find_on_hub(address: str) -> HubFiles:
    """Finds the files of an address without downloading them; asks once per process.

    Without a connection those of the last time are taken.

    Raises:
        XTunerError: as `hub_files`.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise XTunerError(f"'{address}' is no address of a data set: expected hf://owner/name[/subset][:split].")
    repository, subset, split = match.groups()
    memory = cache_folder() / "hub" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"
    try:
        found = _ask(address, repository, subset, split)
    except OSError as error:
        # ConnectionError, OfflineModeIsEnabled and their like
        try:
            content = json.loads(memory.read_text())
            found = HubFiles(content["repository"], content["revision"], tuple(content["names"]))
        except (OSError, ValueError, KeyError):
            raise _unreachable(address, error) from error
        get_logger().warning("the Hub cannot be reached; '%s' is taken as it was at the last start.", address)
        return found
    write_text(memory, json.dumps({"repository": repository, "revision": found.revision, "names": found.names}))
    return found


def _ask(address: str, repository: str, subset: str | None, split: str | None) -> HubFiles:
    import datasets

    if os.path.exists(repository):
        raise XTunerError(
            f"'{address}': a folder '{repository}' lies here, which datasets would take instead: start elsewhere, or "
            "name the folder itself."
        )
    try:
        # finds files by their names and the data set's card; runs nothing of it
        builder = datasets.load_dataset_builder(repository, subset)
    except OSError as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise _refused(address, error) from error
        raise
    except Exception as error:  # scripts, unknown subsets and malformed cards end in a dozen kinds
        raise _refused(address, error) from error
    splits: Mapping[str, Sequence[Any]] = builder.config.data_files or {}
    name = split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if name not in splits:
        known = ", ".join(map(str, splits)) or "(none)"
        raise XTunerError(f"'{address}' has no split '{name}': expected one of {known}.")
    places = [_REMOTE.fullmatch(str(file)) for file in splits[name]]
    if not places or None in places:
        raise XTunerError(f"'{address}' lists files that are not its own: download it and name the files.")
    good = [place for place in places if place is not None]
    return HubFiles(good[0][1], good[0][2], tuple(place[3] for place in good))


def _refused(address: str, error: Exception) -> XTunerError:
    return XTunerError(f"'{address}' cannot be read: {_reason(error)}.")


def _unreachable(address: str, error: Exception) -> XTunerError:
    return XTunerError(
        f"the Hub cannot be reached for '{address}' ({_reason(error)}): check the connection and HF_HUB_OFFLINE, or "
        "download the data set elsewhere and set data_path to its files."
    )


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return first[0].rstrip(".") if first else type(error).__name__

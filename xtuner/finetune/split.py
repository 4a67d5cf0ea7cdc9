"""Own records, a share of them held out: whole pictures and videos, so that none is both trained on and asked about."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow as pa

from xtuner.data.pictures.windows import windows_advice
from xtuner.data.records.messages import without_range
from xtuner.data.records.records import Record
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.text.conversations import Conversation, RecordError, parse_record
from xtuner.errors import ProblemsError, XTunerError, counted

FEWEST = 10
"""Records below which nothing can be held out that would say something."""
_SHOWN = 20


@dataclass(frozen=True)
class OwnRecord:
    """A record as it was written, and as it is read."""

    value: Any
    conversation: Conversation

    @property
    def files(self) -> list[str]:
        """The paths (or places) of its pictures and videos, ranges of time left out."""
        return [*self.conversation.images, *map(without_range, self.conversation.videos)]


@dataclass(frozen=True)
class Split:
    """Records that are trained on and records that are not, each in the file's order."""

    training: list[OwnRecord]
    held_out: list[OwnRecord]


def read_own_records(path: str, columns: Mapping[str, str] | None = None) -> list[OwnRecord]:
    """Reads the records of a data source that have an answer.

    Args:
        path: see `xtuner.data.sources.locate.locate`.
        columns: the column of each field that has another name.

    Raises:
        ProblemsError: with the records that cannot be read.
        XTunerError: no such file, or nothing in it to learn from.
    """
    found, problems = [], []
    for record in open_source(path, columns).records():
        if not isinstance(record, Record):
            problems.append(record)
            continue
        try:
            found.append(OwnRecord(record.value, parse_record(record.value, record.index, videos=True)))
        except RecordError as error:
            problems.append(str(error))
    if len(problems) == 1:
        where = "" if path in problems[0] else f"'{path}': "
        raise XTunerError(f"{where}{problems[0].rstrip('.')}.")
    if problems:
        more = len(problems) - _SHOWN
        listed = [*problems[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
        raise ProblemsError(f"'{path}'", listed)
    answered = [record for record in found if record.conversation.turns]
    if not any(turn.output and turn.output.strip() for record in answered for turn in record.conversation.turns):
        raise XTunerError(f"'{path}': {counted(len(found), 'records')}, and none has an answer to learn from.")
    return answered


def check_pictures(records: Sequence[OwnRecord], image_folder: str, which: str = "the records") -> None:
    """Refuses paths that no picture or video can be found by, in one sentence; single missing ones are check-dataset's.

    Args:
        records: all, or the first ones.
        image_folder: see `xtuner.data.sources.open_pictures`.
        which: names the records in the message.

    Raises:
        XTunerError: none of them is there, or paths are written as on Windows.
    """
    names = list(dict.fromkeys(name for record in records for name in record.files))
    files = open_pictures(image_folder)
    missing = files.missing(pa.array(names, pa.string())) if names else []
    # a folder of frames is a video, too
    missing = [name for name in missing if not os.path.isdir(os.path.join(image_folder, name))]
    advice = windows_advice(missing, len(names), files.holds)
    if advice is not None:
        raise XTunerError(advice)
    if names and len(missing) == len(names):
        found = f"none of the {len(names):,} {_what(records)} that {which} name is in '{image_folder}', the first is "
        if len(names) == 1:
            found = f"the only file that {which} name is not in '{image_folder}': "
        advice = "--images must be the folder that these paths start from"
        if "://" in names[0]:
            advice = "nothing is fetched from the net, so download them and name them by their paths"
        raise XTunerError(f"{found}'{names[0]}': {advice}.")


def _what(records: Sequence[OwnRecord]) -> str:
    kinds = {"pictures": "images", "videos": "videos"}
    return " and ".join(
        what for what, name in kinds.items() if any(getattr(record.conversation, name) for record in records)
    )


def split_records(records: Sequence[OwnRecord], share: float, seed: int) -> Split:
    """Holds out about `share` of the records, chosen by `seed`.

    Records that share a picture or a video stay together, on one side.

    Args:
        records: to split.
        share: 0 to 1; 0 holds out nothing.
        seed: of the choice.

    Raises:
        XTunerError: nothing would be left to train on or to hold out, or there are too few records for it.
    """
    if not 0 <= share < 1:
        raise XTunerError(
            f"--held-out {share:g} {_why_no_share(share)}: expected a share from 0 (none) to below 1, such as 0.1 for "
            "one record of ten."
        )
    if share == 0:
        return Split(list(records), [])
    if len(records) < FEWEST:
        few = "1 record is" if len(records) == 1 else f"{len(records)} records are"
        raise XTunerError(
            f"{few} too few to hold some out, at least {FEWEST} are needed: add records, or train on all with "
            "--held-out 0."
        )
    groups = _groups(records)
    if len(groups) == 1:
        raise XTunerError(
            f"all {len(records)} records share pictures or videos, or are the same, so none can be held out: train on "
            "all with --held-out 0."
        )
    random.Random(seed).shuffle(groups)
    wanted = max(1, round(share * len(records)))
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) <= wanted:
            chosen.update(group)
    if not chosen:
        # every picture has more records than are wanted
        lightest = min(groups, key=len)
        chosen.update(lightest)
    if len(chosen) == len(records):
        raise XTunerError(
            f"--held-out {share:g} holds out all {len(records)} records and leaves none to train on: 0.1 holds out one "
            "of ten."
        )
    return Split(
        [record for place, record in enumerate(records) if place not in chosen],
        [record for place, record in enumerate(records) if place in chosen],
    )


def _why_no_share(share: float) -> str:
    if isnan(share):
        return "is no number"
    if share < 0:
        return "is negative"
    return "would hold out all records and leave none to train on" if share == 1 else "is more than all records"


def write_records(records: Sequence[OwnRecord], path: Path) -> bool:
    """Writes records as JSON lines; returns whether the file changed."""
    text = "".join(json.dumps(record.value) + "\n" for record in records)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
    return True


def _groups(records: Sequence[OwnRecord]) -> list[list[int]]:
    """Places of records that share pictures or videos, directly or through others, in the order of their first.

    Records of words alone are together where they are the same.
    """
    first: list[int] = list(range(len(records)))
    holder: dict[str, int] = {}

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = first[place]
        return place

    for place, record in enumerate(records):
        for name in record.files or [repr(record.conversation.turns)]:
            low, high = sorted((root(holder.setdefault(name, place)), root(place)))
            first[high] = low
    groups: dict[int, list[int]] = {}
    for place in range(len(records)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())

"""A row of a table to a record: which columns are read, under which names, and in which forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from xtuner.data.tables.cells import is_list
from xtuner.errors import XTunerError, nearest
from xtuner.json_values import JSONFault, parse_json

TALKS = ("conversations", "messages")
PICTURES = ("image", "images")
VIDEOS = ("video", "videos")
FIELDS = (
    *("id", *PICTURES, *VIDEOS, *TALKS, "system"),
    *("boxes", "labels", "scores", "width", "height", "loss", "weight"),
)
"""What a record may have; a column of the same name is read, unless the setting names another."""


def check_names(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the setting ``data_columns``, checked.

    Raises:
        XTunerError: it is no mapping of fields to names of columns.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
        raise XTunerError(f"data_columns is {columns!r}: expected dict(FIELD='COLUMN', ...).")
    for field in columns:
        if field not in FIELDS:
            raise XTunerError(
                f"data_columns names the field {field!r}: expected some of {', '.join(FIELDS)}."
                f"{nearest(str(field), FIELDS)}"
            )
    return dict(columns)


def choose_columns(where: str, found: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns the column of each field that a source has.

    Args:
        where: of the source, for messages.
        found: names of its columns.
        given: the setting.

    Raises:
        XTunerError: a named column is not there, nobody says anything, or it is not clear which column is meant.
    """
    there = f"'{where}' has the columns {', '.join(map(repr, found)) or '(none)'}"
    for field, name in given.items():
        if name not in found:
            raise XTunerError(f"{there}, but data_columns names {name!r} for {field!r}.{nearest(name, found)}")
    taken = {*given, *given.values()}
    chosen = {name: name for name in FIELDS if name in found and name not in taken}
    chosen |= given
    for pair, what in ((TALKS, "what is said"), (PICTURES, "the pictures"), (VIDEOS, "the videos")):
        both = [field for field in pair if field in chosen]
        wanted = [field for field in both if field in given]
        if len(both) > 1 and len(wanted) != 1:
            columns = " and ".join(repr(chosen[field]) for field in both)
            raise XTunerError(
                f"{there}, of which {columns} may both be {what}: choose one by the setting "
                f"data_columns=dict({both[0]}='{chosen[both[0]]}')."
            )
        for field in both:
            if wanted and field not in wanted:
                del chosen[field]
    if not any(field in chosen for field in TALKS):
        raise XTunerError(
            f"{there}: expected 'conversations' or 'messages', and 'image' or 'images' where there are pictures; if "
            "they have other names, set data_columns=dict(conversations='COLUMN', image='COLUMN')."
        )
    return chosen


def check_talk_type(where: str, name: str, kind: pa.DataType) -> None:
    """Refuses a column of conversations that cannot hold any.

    Raises:
        XTunerError: it is of another type.
    """
    inner = kind.value_type if is_list(kind) else kind
    texts = pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)
    if not (pa.types.is_struct(inner) or texts or pa.types.is_map(inner)):
        raise XTunerError(
            f"column '{name}' of '{where}' is of type {kind}: expected a list of {{'from', 'value'}} or {{'role', "
            "'content'}, or the same as JSON text."
        )


def as_messages(value: Any) -> Any:
    """Returns the messages of a cell: JSON text is parsed, and a struct of lists becomes a list of structs."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value, whole_characters=False)
        except JSONFault:
            return value
    if isinstance(value, dict):
        lists = list(value.values())
        if lists and all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
            return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return value

"""Picture columns of tables: what each cell holds, without its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BYTES, PATH = "bytes", "path"


@dataclass(frozen=True)
class PictureCells:
    """The pictures of a batch's rows.

    Attributes:
        counts: pictures of each row; None = the row has null.
        in_lists: the column holds lists of pictures.
        has_bytes: (all pictures,) bool: the cell holds the picture's bytes.
        paths: (all pictures,) the path that the cell gives, None where it gives none.
        spots: (all pictures,) offset and size of the bytes in the file, None where they do not stand there as they are;
            None = not looked for.
    """

    counts: Sequence[int | None]
    in_lists: bool
    has_bytes: np.ndarray
    paths: Sequence[str | None]
    spots: Sequence[tuple[int, int] | None] | None = None


def is_picture_type(kind: pa.DataType) -> bool:
    """Says whether a column of this type can hold pictures: bytes, paths, `Image` features, or lists of these."""
    return _is_one(_item_type(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """Says whether a column of this type has a place for a picture's bytes."""
    inner = _item_type(kind)
    return _is_binary(inner) or (pa.types.is_struct(inner) and inner.get_field_index(BYTES) >= 0)


def is_list(kind: pa.DataType) -> bool:
    """Says whether a type is a list of any kind."""
    return any(
        test(kind)
        for test in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def read_cells(column: pa.Array, has_bytes: np.ndarray | None = None) -> PictureCells:
    """Reads a picture column of a batch.

    Args:
        column: of a type that `is_picture_type` takes; its bytes may have been left out.
        has_bytes: (all pictures,) bool where the bytes have been left out; None = the column has them.
    """
    in_lists = is_list(column.type)
    if in_lists:
        counts = pc.list_value_length(column).to_pylist()
        items = pc.list_flatten(column)
    else:
        counts = [1 if valid else None for valid in column.is_valid().to_pylist()]
        items = column.filter(column.is_valid())
    paths: list[str | None] = [None] * len(items)
    found = np.zeros(len(items), bool)
    if pa.types.is_struct(items.type):
        if items.type.get_field_index(PATH) >= 0:
            paths = [None if path is None else str(path) for path in pc.struct_field(items, PATH).to_pylist()]
        if items.type.get_field_index(BYTES) >= 0:
            found = _valid(pc.struct_field(items, BYTES))
    elif _is_binary(items.type):
        found = _valid(items)
    else:
        paths = items.to_pylist()
    return PictureCells(counts, in_lists, found if has_bytes is None else has_bytes, paths)


def bytes_column(column: pa.Array) -> pa.Array:
    """Returns the bytes of all pictures of a column that holds bytes."""
    items = pc.list_flatten(column) if is_list(column.type) else column.filter(column.is_valid())
    return pc.struct_field(items, BYTES) if pa.types.is_struct(items.type) else items


def cell_bytes(cell: Any, number: int) -> bytes | None:
    """Returns the bytes of picture `number` of a cell as Python has it; None where it holds none."""
    if isinstance(cell, list):
        cell = cell[number] if number < len(cell) else None
    if isinstance(cell, dict):
        cell = cell.get(BYTES)
    return cell if isinstance(cell, bytes) else None


def _item_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if is_list(kind) else kind


def _is_one(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = {name: kind.get_field_index(name) for name in (BYTES, PATH)}
        known = {name: kind.field(place).type for name, place in at.items() if place >= 0}
        fits = {BYTES: _is_binary, PATH: _is_text}
        return bool(known) and all(fits[name](inner) or pa.types.is_null(inner) for name, inner in known.items())
    return _is_binary(kind) or _is_text(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _valid(column: pa.Array) -> np.ndarray:
    return column.is_valid().to_numpy(zero_copy_only=False)

"""Opens the records of a ``data_path``, whatever it names."""

from __future__ import annotations

from collections.abc import Mapping

from xtuner.data.records.records import RecordSource
from xtuner.data.sources.columns import check_names
from xtuner.data.sources.json_file import JSONSource
from xtuner.data.sources.locate import locate
from xtuner.data.sources.table import TableSource
from xtuner.data.sources.webdataset import WebDatasetSource


def open_source(data_path: str, columns: Mapping[str, str] | None = None, random_access: bool = True) -> RecordSource:
    """Opens the records of a data source.

    Args:
        data_path: see `xtuner.data.sources.locate.locate`.
        columns: the column of each field whose name is another one; JSON has no columns.
        random_access: pictures will be read one by one, in any order: row groups too large for that are refused.

    Raises:
        XTunerError: nothing is there, or `columns` names what there is not.
    """
    names = check_names(columns)
    found = locate(data_path)
    if found.kind == "json":
        return JSONSource(found)
    if found.kind == "webdataset":
        return WebDatasetSource(found, names)
    return TableSource(found, names, random_access)

"""Predictions as VLMEvalKit has them: an xlsx of the questions and a column ``prediction``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Question
from mg_llava.evaluation.results.predictions import PredictionFiles
from xtuner.errors import XTunerError

_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_LAST = {"answer": 1, "prediction": 2}
_LONGEST_CELL = 32_767
"""Of an xlsx; a longer text is cut there."""


def write_spreadsheet(benchmark: Benchmark, folder: str | Path) -> Path:
    """Writes ``<name>_predictions.xlsx`` beside a benchmark's results, for VLMEvalKit's own scoring.

    Columns: index, question, options, groups, answer, and ``prediction``, the model's raw words.

    Args:
        benchmark: with its files in place.
        folder: of its results: ``predictions.jsonl``.

    Returns:
        The file.

    Raises:
        XTunerError: `folder` holds no predictions.
    """
    predictions = list(PredictionFiles(folder, {}).read().values())
    if not predictions:
        raise XTunerError(f"'{folder}' holds no predictions for a spreadsheet: evaluate first.")
    rows = [
        {**question_cells(question), "prediction": one.output or ""} for question, one in benchmark.pairs(predictions)
    ]
    return write_rows(Path(folder) / f"{benchmark.name}_predictions.xlsx", rows)


def question_cells(question: Question) -> dict[str, Any]:
    """Returns a question's row without its pictures and without a prediction."""
    answer = question.answer
    if isinstance(answer, Mapping):
        answer = answer.get("answer")
    if isinstance(answer, (list, tuple)):
        # as VLMEvalKit's tables hold several right answers
        answer = repr(list(answer))
    return {
        "index": question.box_id,
        "question": question.text,
        **question.options,
        **question.groups,
        "answer": answer,
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes an xlsx; all texts in it are texts, never formulas.

    Columns are the rows' keys in order of appearance, answer and prediction last. Characters that a spreadsheet cannot
    hold are left out.
    """
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    columns = sorted(dict.fromkeys(key for row in rows for key in row), key=lambda key: _LAST.get(key, 0))
    book = Workbook(write_only=True)
    sheet = book.create_sheet("predictions")
    sheet.append(columns)
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            if isinstance(value, str):
                value = _NOT_IN_XML.sub("", value)[:_LONGEST_CELL]
            cell = WriteOnlyCell(sheet, value=value)
            if isinstance(value, str):
                # an answer like "=2+3" would be computed
                cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    partial = path.with_name(f".{path.name}.partial")
    book.save(partial)
    partial.replace(path)
    return path

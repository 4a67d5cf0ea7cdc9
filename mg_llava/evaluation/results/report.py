"""A page of a benchmark's results that opens without a server: pictures, boxes, prompts, answers, verdicts."""

from __future__ import annotations

import hashlib
import html
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from mg_llava.boxes.store import BoxRecord, BoxStore
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.clips import Clip
from mg_llava.evaluation.benchmarks.pictures import find_boxes
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.errors import XTunerError
from xtuner.json_values import read_json

_LONGEST_SIDE = 320
_PAGE = Path(__file__).with_name("report_page.html")
_THREADS = 8


def write_report(benchmark: Benchmark, folder: str | Path, image_processor: ImageProcessor) -> Path:
    """Writes ``report.html`` and its pictures (``report_images/``, made small) beside a benchmark's results.

    Args:
        benchmark: with its files in place.
        folder: of its results: ``predictions.jsonl`` and ``metrics.json``.
        image_processor: opens the pictures as the model got them.

    Returns:
        The page.

    Raises:
        XTunerError: `folder` holds no results.
    """
    folder = Path(folder)
    metrics_file = folder / "metrics.json"
    if not metrics_file.exists():
        raise XTunerError(f"'{folder}' holds no metrics.json to report on: evaluate first.")
    metrics = read_json(metrics_file, dict, "evaluate again.")
    pairs = benchmark.pairs(PredictionFiles(folder, {}).read().values())
    (folder / "report_images").mkdir(exist_ok=True)
    pictures = _Pictures(image_processor, folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        # decoding and shrinking leave Python's lock
        figures = list(pool.map(lambda pair: _figures(pair[0], benchmark.boxes, pictures), pairs))
    rows = [_row(question, one, shown) for (question, one), shown in zip(pairs, figures, strict=True)]
    score = "not scored" if metrics["overall"] is None else f"{metrics['overall']:.1%}"
    asked = metrics.get("checkpoint") or metrics.get("model")
    shares = benchmark.summary(metrics) or f"overall {score}"
    facts = [shares, f"{len(pairs)} questions", str(metrics.get("config")), str(asked)]
    # no "<" in the data: it could end the script that holds it
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"TITLE": html.escape(benchmark.name), "SUMMARY": html.escape(" · ".join(facts)), "ROWS": data}
    text = re.sub("@(TITLE|SUMMARY|ROWS)@", lambda place: values[place[1]], _PAGE.read_text(encoding="utf-8"))
    page = folder / "report.html"
    partial = page.with_name("report.partial")
    # half characters, which answers may end in, are no UTF-8
    partial.write_text(text, encoding="utf-8", errors="replace")
    partial.replace(page)
    return page


def _row(question: Question, prediction: Prediction, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page shows of a question; all cells are text or null."""
    answer = question.answer if not isinstance(question.answer, dict) else question.answer.get("answer")
    verdict = _verdict(prediction.hit)
    cells = {
        "question": question.id,
        "prompt": prediction.prompt,
        "answer": prediction.output if prediction.error is None else prediction.error,
        "read as": prediction.parsed,
        "right is": answer,
        "verdict": verdict if prediction.hit is None else f"{verdict} ({prediction.hit:.2g})",
    }
    shown = {name: None if value is None else str(value) for name, value in cells.items()}
    return {"verdict": verdict, "cells": shown, "figures": figures}


def _verdict(hit: float | None) -> str:
    if hit is None:
        return "unscored"
    return "right" if hit >= 1 else "wrong" if hit <= 0 else "partly"


def _figures(question: Question, store: BoxStore | None, pictures: _Pictures) -> list[dict[str, Any]]:
    """The question's pictures, made small, with their boxes."""
    figures = []
    for one in _frames(question):
        small = pictures.small(one)
        if small is None:
            # the row says why there is no answer
            continue
        record = find_boxes(store, question, one)
        figures.append({**small, "boxes": [] if record is None else _boxes(record)})
    return figures


def _frames(question: Question) -> list[Picture]:
    """The question's pictures, and the frames of its videos; a video that cannot be read has none."""
    found: list[Picture] = []
    for one in question.pictures:
        try:
            found += one.frames() if isinstance(one, Clip) else [one]
        except XTunerError:
            # the row says why there is no answer
            continue
    return found


def _boxes(record: BoxRecord) -> list[list[Any]]:
    found = record.found
    return [
        [*(round(edge, 1) for edge in box), f"{label} {score:.2f}"]
        for box, label, score in zip(found.boxes.tolist(), found.labels, found.scores, strict=True)
    ]


class _Pictures:
    """Small copies of pictures in ``report_images/``, one of each however many questions share it."""

    def __init__(self, image_processor: ImageProcessor, folder: Path) -> None:
        self.image_processor = image_processor
        self.folder = folder
        self._made: dict[str, dict[str, Any] | None] = {}
        self._locks: dict[str, Lock] = {}

    def small(self, picture: Picture) -> dict[str, Any] | None:
        """Returns the copy's file, its shown size and the picture's own, all in pixels; None if it does not open."""
        name = hashlib.sha256((picture.path or picture.encoded or picture.key).encode()).hexdigest()[:16]
        with self._locks.setdefault(name, Lock()):
            if name not in self._made:
                self._made[name] = self._make(picture, f"report_images/{name}.jpg")
        return self._made[name]

    def _make(self, picture: Picture, file: str) -> dict[str, Any] | None:
        try:
            opened = picture.open(self.image_processor)
        except XTunerError:
            return None
        width, height = opened.size
        small = opened.copy()
        small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC)
        small.save(self.folder / file, quality=85)
        # small pictures are shown larger, so that their boxes can be told apart
        scale = _LONGEST_SIDE / max(width, height)
        return {"src": file, "size": [round(width * scale), round(height * scale), width, height]}

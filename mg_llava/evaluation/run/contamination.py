"""Questions whose picture was trained on: counted, and the score without them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.results.predictions import PredictionFiles
from xtuner.errors import XTunerError
from xtuner.evaluation.contamination import marks_in_folders, picture_mark
from xtuner.json_values import read_json


def note_contamination(benchmark: Benchmark, folder: str | Path, train_images: Sequence[str]) -> dict[str, Any]:
    """Adds ``contamination`` to the ``metrics.json`` in `folder`; returns the metrics.

    It holds `num_pictures` and how many of them stand in the training data, `num_questions_in_training`, `examples` of
    both files, and `overall_without`: the score of the other questions, of whole units that count together.

    Args:
        benchmark: with its files in place.
        folder: of its results.
        train_images: folders of training pictures.

    Raises:
        XTunerError: there are no results, or a folder does not exist.
    """
    file = Path(folder) / "metrics.json"
    if not file.exists():
        raise XTunerError(f"'{folder}' holds no metrics.json to add to: evaluate first.")
    predictions = list(PredictionFiles(folder, {}).read().values())
    marks: dict[str, tuple[int, str]] = {}
    of_question: dict[str, list[tuple[int, str]]] = {}
    for question, _ in benchmark.pairs(predictions):
        of_question[question.id] = []
        for picture in question.pictures:
            name = picture.path or picture.encoded or picture.key
            try:
                marks[name] = marks[name] if name in marks else picture_mark(picture.content())
            except XTunerError:
                # a picture that is absent was not seen; the question says so
                continue
            of_question[question.id].append(marks[name])
    found = marks_in_folders(marks.values(), train_images)
    trained = {key for key, own in of_question.items() if any(mark in found for mark in own)}
    units = {benchmark.unit(question) for question in benchmark.questions() if question.id in trained}
    other = {question.id for question in benchmark.questions() if benchmark.unit(question) not in units}
    rest = [one for one in predictions if one.id in other]
    metrics = read_json(file, dict, "Evaluate again.")
    metrics["contamination"] = {
        "train_images": list(train_images),
        "num_pictures": len(set(marks.values())),
        "num_pictures_in_training": len(found),
        "num_questions_in_training": len(trained),
        "overall_without": benchmark.score(rest)["overall"] if rest else None,
        "examples": [
            {"question": key, "file": found[next(m for m in of_question[key] if m in found)]}
            for key in sorted(trained)[:5]
        ],
    }
    partial = file.with_name("metrics.partial")
    partial.write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)
    return metrics

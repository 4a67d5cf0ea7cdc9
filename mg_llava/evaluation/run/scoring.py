"""From predictions to ``metrics.json``: judged, scored, counted; with or without a model at hand."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark, repeated_ids
from mg_llava.evaluation.benchmarks.pictures import find_boxes
from mg_llava.evaluation.benchmarks.records import Prediction
from mg_llava.evaluation.judging.verdicts import judge as judge_predictions
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.run.uncertainty import find_clusters, uncertainties
from xtuner import __version__
from xtuner.errors import XTunerError, counted
from xtuner.evaluation.comparison import write_clusters
from xtuner.evaluation.judge import Judge
from xtuner.json_values import read_json
from xtuner.log import get_logger


def rescore(benchmark: Benchmark, folder: str | Path, judge: Judge | None = None) -> dict[str, Any]:
    """Reads and scores the raw answers in `folder` again, by the rules of today.

    Args:
        benchmark: with its files in place.
        folder: of its results.
        judge: judges free answers; None asks nobody.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        XTunerError: `folder` has no prediction of a question of the benchmark.
    """
    facts_file = Path(folder) / "run.json"
    if not facts_file.exists():
        raise XTunerError(f"'{folder}' holds no results to score again: evaluate with --checkpoint first.")
    files = PredictionFiles(folder, read_json(facts_file, dict, "Evaluate again with --checkpoint."))
    old = files.merge([question.id for question in benchmark.questions()])
    anew = []
    for question, prediction in benchmark.pairs(old.values()):
        if prediction.output is not None:
            prediction = benchmark.predict(question, prediction.prompt, prediction.output)
        anew.append(prediction)
    if not anew:
        raise XTunerError(
            f"'{files.path}' holds {counted(len(old), 'predictions')}, but none for a question of benchmark "
            f"'{benchmark.name}': they may come from another version of its file. Evaluate with --checkpoint again."
        )
    return finish(benchmark, files, anew, judge)


def finish(
    benchmark: Benchmark, files: PredictionFiles, predictions: Sequence[Prediction], judge: Judge | None
) -> dict[str, Any]:
    """Judges and scores predictions; writes verdicts, ``metrics.json`` and what the benchmark's server wants.

    Args:
        benchmark: that they answer.
        files: of the results, with what the run was.
        predictions: in the order of the questions.
        judge: judges free answers; None applies earlier judgements only.

    Returns:
        What ``metrics.json`` holds.
    """
    judged, judging = judge_predictions(benchmark, predictions, files.folder, judge)
    files.replace(judged)
    scores = benchmark.score(judged)
    clusters = find_clusters(benchmark, [question for question, _ in benchmark.pairs(judged)])
    write_clusters(files.folder, clusters)
    metrics: dict[str, Any] = {
        **scores,
        "uncertainty": uncertainties(benchmark, judged, clusters, scores),
        **benchmark.beside(judged),
        **_counts(benchmark, judged),
        **benchmark.rules([question for question, _ in benchmark.pairs(judged)]),
        **judging,
    }
    metrics |= _published_scores(benchmark, judged)
    if benchmark.strict_differs and not benchmark.strict_reference:
        metrics["overall_strict_reference"] = _strict_overall(benchmark, judged)
    incomplete = metrics.get("num_incomplete_groups")
    if incomplete:
        get_logger().warning(
            "%s: not scored: %s in '%s'; a group counts only with all of its questions.",
            *(benchmark.name, counted(incomplete, "incomplete groups"), ", ".join(benchmark.data_paths)),
        )
    if metrics["overall"] is None:
        get_logger().info(
            "%s: not scored, because its answers are not public or wait for a judge, or because no group is complete. "
            "The predictions are saved.",
            benchmark.name,
        )
    metrics |= {
        **files.facts,
        "strict_reference": benchmark.strict_reference,
        "request": _request_facts(benchmark),
        "prompt_example": judged[0].prompt,
        **_strict_prompts(benchmark, judged),
        "prompts_sha256": _prompts_hash(judged),
        "versions": {
            "xtuner": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "files": [Path(path).name for path in benchmark.write_files(str(files.folder), judged)],
    }
    text = json.dumps(metrics, indent=1, ensure_ascii=False) + "\n"
    (files.folder / "metrics.json").write_text(text, encoding="utf-8")
    return metrics


def _request_facts(benchmark: Benchmark) -> dict[str, Any]:
    """Whose wording was asked with, the sentence, and who else has the same."""
    name, sentence = benchmark.wording
    same = [other for other, words in benchmark.requests.items() if words == sentence and other != name]
    return {"wording": name, "sentence": sentence, "same_as": same}


def _strict_prompts(benchmark: Benchmark, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The first question that the original asks otherwise, in both wordings; nothing where it asks the same."""
    sound, strict = (replace(benchmark, strict_reference=value) for value in (False, True))
    differing = [
        {"id": question.id, "prompt": sound.prompt(question), "strict_reference": strict.prompt(question)}
        for question, _ in benchmark.pairs(predictions)
        if sound.prompt(question) != strict.prompt(question)
    ]
    return {"num_prompts_strict_differs": len(differing), "prompts_strict": differing[0]} if differing else {}


def _prompts_hash(predictions: Sequence[Prediction]) -> str:
    """Hash of all prompts in order: two runs with the same one were asked the same."""
    return hashlib.sha256("\0".join(one.prompt for one in predictions).encode("utf-8", "replace")).hexdigest()[:16]


def _strict_overall(benchmark: Benchmark, predictions: Sequence[Prediction]) -> float | None:
    """The score as the original would have reported it for the same answers."""
    strict = replace(benchmark, strict_reference=True)
    pairs = strict.pairs(predictions)
    read = [one if one.output is None else strict.predict(question, one.prompt, one.output) for question, one in pairs]
    return strict.score(read)["overall"]


def _published_scores(benchmark: Benchmark, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The score as the benchmark's own scorer gives it for the same answers, and as other published ones do.

    They credit groups that are not whole, as `strict_reference` does.
    """
    strict = replace(benchmark, strict_reference=True)
    read: dict[str, list[Prediction]] = {}
    for question, one in strict.pairs(predictions):
        for name, (parsed, hit) in strict.published(question, one.output or "").items():
            failed = one.output is None and hit is not None
            read.setdefault(name, []).append(replace(one, parsed=parsed, hit=0.0 if failed else hit))
    scores = {name: strict.score(answers)["overall"] for name, answers in read.items()}
    if not scores:
        return {}
    official, *others = scores
    return {
        "official": scores[official],
        "official_scorer": official,
        "other_scorers": {name: scores[name] for name in others},
    }


def _counts(benchmark: Benchmark, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Counts what went wrong and what was absent, and says so."""
    failed = [prediction for prediction in predictions if prediction.error is not None]
    if failed:
        get_logger().warning(
            "%s: %d of %d questions could not be asked and count as wrong; the first, '%s': %s",
            *(benchmark.name, len(failed), len(predictions), failed[0].id, failed[0].error),
        )
    if len(failed) == len(predictions):
        raise XTunerError(f"benchmark '{benchmark.name}': no question could be asked; the first: {failed[0].error}")
    pairs = benchmark.pairs(predictions)
    without_boxes = _without_boxes(benchmark, predictions)
    if without_boxes and benchmark.boxes is not None:
        get_logger().info(
            "%s: %d of %d questions were asked without boxes, because '%s' has none for them.",
            *(benchmark.name, without_boxes, len(predictions), benchmark.box_path),
        )
    return {
        "num_questions": len(predictions),
        "num_unparsed": sum(p.parsed is None and p.error is None for p in predictions),
        "num_failed": len(failed),
        "num_without_answer": sum(question.answer is None for question, _ in pairs),
        "num_without_boxes": without_boxes,
        "share_with_boxes": 1 - without_boxes / len(predictions),
        "num_repeated_ids": len(repeated_ids([question for question, _ in pairs])),
    }


def _without_boxes(benchmark: Benchmark, predictions: Sequence[Prediction]) -> int:
    if benchmark.boxes is None:
        return len(predictions)
    questions = [question for question, _ in benchmark.pairs(predictions)]
    return sum(all(find_boxes(benchmark.boxes, one, picture) is None for picture in one.pictures) for one in questions)

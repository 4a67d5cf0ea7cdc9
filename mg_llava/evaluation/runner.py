"""Asking a model all questions of a benchmark, in batches, and scoring the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from mg_llava.assistant import Assistant, Prompt
from mg_llava.box_store import BoxStore
from mg_llava.boxes import BoxSelection
from mg_llava.evaluation.base import Benchmark, Prediction, Question
from mg_llava.evaluation.predictions import PredictionFile
from mg_llava.preprocess import ImageProcessor
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.templates import PromptTemplate, Turn
from xtuner.errors import XTunerError
from xtuner.log import console, get_logger
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mg_llava.model import MGLLaVA


class EvaluationRunner:
    """Runs benchmarks on a model: left-padded batches, greedy, resumable.

    Args:
        tokenizer: the model's, or its config node.
        image_processor: as in training, or its config node.
        prompt_template: as in training.
        boxes: which boxes become object tokens, or its config node.
        batch_size: questions a batch.
        num_workers: processes that read and resize pictures; 0 = none besides this one.
        model: supplied by the command, in eval mode on its device.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | Mapping[str, Any],
        image_processor: ImageProcessor | Mapping[str, Any],
        prompt_template: str | PromptTemplate,
        model: MGLLaVA,
        boxes: BoxSelection | Mapping[str, Any] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        self.assistant = Assistant(
            model, build(tokenizer), build(image_processor), prompt_template, None if boxes is None else build(boxes)
        )
        self.batch_size = batch_size
        self.num_workers = num_workers

    def run(
        self, benchmark: Benchmark, folder: str | Path, facts: Mapping[str, Any], limit: int | None = None
    ) -> dict[str, Any]:
        """Asks the questions that `folder` has no prediction of, scores all, and writes ``metrics.json``.

        Args:
            benchmark: with its files in place.
            folder: of the results: ``predictions.jsonl``, ``metrics.json``, files for upload.
            facts: what answers depend on (checkpoint, config), kept in both.
            limit: ask only the first so many questions.

        Returns:
            What ``metrics.json`` holds: ``overall`` (0–1 or None), ``groups``, counts, and `facts`.

        Raises:
            XTunerError: a file of the benchmark is malformed, or no question could be asked.
        """
        questions = benchmark.questions()[:limit]
        box_store = None if benchmark.box_json_path is None else BoxStore(benchmark.box_json_path)
        with PredictionFile(folder, {**facts, "benchmark": benchmark.name}) as file:
            open_questions = [question for question in questions if question.id not in file.done]
            if len(open_questions) < len(questions):
                get_logger().info("%s: %d answers stand already", benchmark.name, len(questions) - len(open_questions))
            dataset = _Prompts(self.assistant, benchmark, open_questions, box_store)
            for predictions in _progress(self._answer(benchmark, dataset), benchmark.name, len(open_questions)):
                file.add(predictions)
            predictions = [file.done[question.id] for question in questions if question.id in file.done]
        metrics = self._metrics(benchmark, predictions, box_store, facts)
        metrics["files"] = [Path(path).name for path in benchmark.write_files(str(folder), predictions)]
        (Path(folder) / "metrics.json").write_text(
            json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return metrics

    def _answer(self, benchmark: Benchmark, dataset: _Prompts) -> Iterator[list[Prediction]]:
        """Yields the predictions batch by batch."""
        loader = DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list)
        for batch in loader:
            asked = [(question, words, prompt) for question, words, prompt in batch if isinstance(prompt, Prompt)]
            outputs: list[str] = []
            if asked:
                outputs = self.assistant.generate([prompt for _, _, prompt in asked], benchmark.max_new_tokens)
            answers = {question.id: output for (question, _, _), output in zip(asked, outputs, strict=True)}
            yield [
                benchmark.predict(question, words, answers[question.id])
                if isinstance(prompt, Prompt)
                else _unanswered(question, words, prompt)
                for question, words, prompt in batch
            ]

    def _metrics(
        self,
        benchmark: Benchmark,
        predictions: Sequence[Prediction],
        box_store: BoxStore | None,
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        failed = [prediction for prediction in predictions if prediction.error is not None]
        if failed:
            get_logger().warning(
                "%s: %d of %d questions could not be asked and count as wrong; the first, '%s': %s",
                *(benchmark.name, len(failed), len(predictions), failed[0].id, failed[0].error),
            )
        if len(failed) == len(predictions):
            raise XTunerError(f"benchmark '{benchmark.name}': no question could be asked; the first: {failed[0].error}")
        pairs = benchmark.pairs(predictions)
        without_boxes = sum(
            box_store is None or box_store.find(_box_key(question), question.box_id) is None for question, _ in pairs
        )
        metrics = {
            **benchmark.score(predictions),
            "num_questions": len(predictions),
            "num_unparsed": sum(prediction.parsed is None and prediction.error is None for prediction in predictions),
            "num_failed": len(failed),
            "num_without_boxes": without_boxes,
            "prompt_template": self.assistant.template.name,
            **facts,
        }
        if metrics["overall"] is None:
            get_logger().info("%s: not scored, its answers are not public; predictions are written.", benchmark.name)
        return metrics


class _Prompts(Dataset):
    """The prompts of questions, made where the loader's workers run; a question's fault stands in its prompt's place."""

    def __init__(
        self, assistant: Assistant, benchmark: Benchmark, questions: Sequence[Question], box_store: BoxStore | None
    ) -> None:
        self.assistant = assistant
        self.benchmark = benchmark
        self.questions = questions
        self.box_store = box_store

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[Question, str, Prompt | str]:
        question = self.questions[index]
        words = self.benchmark.prompt(question)
        if question.picture is None:
            return question, words, self.assistant.prepare([Turn(words)])
        words = f"{IMAGE_TOKEN}\n{words}"
        try:
            picture = question.picture.open(self.assistant.image_processor)
        except XTunerError as error:
            return question, words, str(error)
        found = None if self.box_store is None else self.box_store.lookup(_box_key(question), question.box_id)
        return question, words, self.assistant.prepare([Turn(words)], [picture], [found])


def _box_key(question: Question) -> str | None:
    return question.picture.key or None if question.picture else None


def _unanswered(question: Question, words: str, error: str) -> Prediction:
    return Prediction(question.id, words, None, None, None if question.answer is None else 0.0, error)


def _progress(batches: Iterator[list[Prediction]], name: str, total: int) -> Iterator[list[Prediction]]:
    """Shows a bar with the share of right answers while the batches pass through."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hits: list[float] = []
    with Progress(*columns, console=console, disable=total == 0) as progress:
        task = progress.add_task(name, total=total)
        for predictions in batches:
            yield predictions
            hits += [prediction.hit for prediction in predictions if prediction.hit is not None]
            running = f" {sum(hits) / len(hits):.1%}" if hits else ""
            progress.update(task, advance=len(predictions), description=name + running)

"""Asking a model all questions of a benchmark, in batches, and scoring the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from mg_llava.assistant import Assistant, Prompt
from mg_llava.box_store import BoxStore
from mg_llava.boxes import BoxSelection
from mg_llava.evaluation.base import Benchmark, Prediction, Question
from mg_llava.evaluation.predictions import PredictionFiles
from mg_llava.evaluation.report import write_report
from mg_llava.evaluation.scoring import finish, rescore
from mg_llava.preprocess import ImageProcessor
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.templates import PromptTemplate, Turn
from xtuner.engine.environment import Collective
from xtuner.errors import XTunerError
from xtuner.judge import Judge
from xtuner.log import console, get_logger
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mg_llava.model import MGLLaVA


class EvaluationRunner:
    """Runs benchmarks on a model: left-padded batches, greedy, resumable, questions dealt out to all processes.

    Args:
        tokenizer: the model's, or its config node.
        image_processor: as in training, or its config node.
        prompt_template: as in training.
        model: supplied by the command: in eval mode, on its device.
        collective: supplied by the command: this process among the others; None = alone.
        boxes: which boxes become object tokens, or its config node.
        batch_size: questions a batch.
        num_workers: processes that read and resize pictures; 0 = none besides this one.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("model", "collective")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | Mapping[str, Any],
        image_processor: ImageProcessor | Mapping[str, Any],
        prompt_template: str | PromptTemplate,
        model: MGLLaVA,
        collective: Collective | None = None,
        boxes: BoxSelection | Mapping[str, Any] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        selection = None if boxes is None else build(boxes)
        self.assistant = Assistant(model, build(tokenizer), build(image_processor), prompt_template, selection)
        self.collective = collective or Collective()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def run(
        self,
        benchmark: Benchmark,
        folder: str | Path,
        facts: Mapping[str, Any],
        limit: int | None = None,
        judge: Judge | None = None,
    ) -> dict[str, Any]:
        """Asks the questions that `folder` has no prediction of, scores all, and writes ``metrics.json``.

        Args:
            benchmark: with its files in place.
            folder: of the results: ``predictions.jsonl``, ``metrics.json``, files for upload.
            facts: what answers depend on (checkpoint, config), kept in both.
            limit: ask only the first so many questions.
            judge: judges free answers; None leaves those unscored that no earlier run had judged.

        Returns:
            What ``metrics.json`` holds: ``overall`` (0–1 or None), ``groups``, counts, and `facts`; on ranks other
            than 0 nothing.

        Raises:
            XTunerError: a file of the benchmark is malformed, or no question could be asked.
        """
        questions = benchmark.questions()[:limit]
        store = None if benchmark.box_path is None else BoxStore(benchmark.box_path)
        rank, world_size = self.collective.rank, self.collective.world_size
        facts = {**facts, "benchmark": benchmark.name, "prompt_template": self.assistant.template.name}
        files = PredictionFiles(folder, facts, rank)
        # 1. what an earlier evaluation left
        if rank == 0:
            files.prepare()
        self.collective.barrier()
        # what a missing picture prevented is tried again
        done = {key for key, prediction in files.read().items() if prediction.error is None}
        to_ask = [question for question in questions if question.id not in done]
        if rank == 0 and len(to_ask) < len(questions):
            get_logger().info("%s: %d answers stand already", benchmark.name, len(questions) - len(to_ask))
        # 2. this process's share
        self.collective.barrier()
        own = to_ask[rank::world_size]
        for predictions in _progress(self._answer(benchmark, own, store), benchmark.name, len(own), rank):
            files.add(predictions)
        # 3. everything together
        self.collective.barrier()
        if rank != 0:
            return {}
        answered = files.merge([question.id for question in questions])
        return finish(benchmark, files, [answered[question.id] for question in questions], judge)

    @staticmethod
    def rescore(benchmark: Benchmark, folder: str | Path, judge: Judge | None = None) -> dict[str, Any]:
        """Reads and scores again what stands in `folder`, without a model; see `scoring.rescore`."""
        return rescore(benchmark, folder, judge)

    @staticmethod
    def report(benchmark: Benchmark, folder: str | Path, image_processor: Mapping[str, Any] | ImageProcessor) -> Path:
        """Writes the page of a benchmark's results; see `report.write_report`."""
        return write_report(benchmark, folder, build(image_processor))

    def _answer(
        self, benchmark: Benchmark, questions: Sequence[Question], store: BoxStore | None
    ) -> Iterator[list[Prediction]]:
        """Yields the predictions batch by batch."""
        dataset = _Prompts(self.assistant, benchmark, questions, store)
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


class _Prompts(Dataset):
    """Prompts of questions, made where the loader's workers run; a question's fault stands in its prompt's place."""

    def __init__(
        self, assistant: Assistant, benchmark: Benchmark, questions: Sequence[Question], store: BoxStore | None
    ) -> None:
        self.assistant = assistant
        self.benchmark = benchmark
        self.questions = questions
        self.store = store

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
        found = None if self.store is None else self.store.lookup(question.picture.key or None, question.box_id)
        return question, words, self.assistant.prepare([Turn(words)], [picture], [found])


def _unanswered(question: Question, words: str, error: str) -> Prediction:
    return Prediction(question.id, words, None, None, None if question.answer is None else 0.0, error)


def _progress(batches: Iterator[list[Prediction]], name: str, total: int, rank: int) -> Iterator[list[Prediction]]:
    """Shows a bar with the share of right answers while the batches pass through."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hits: list[float] = []
    with Progress(*columns, console=console, disable=total == 0 or rank != 0) as progress:
        task = progress.add_task(name, total=total)
        for predictions in batches:
            yield predictions
            hits += [prediction.hit for prediction in predictions if prediction.hit is not None]
            running = f" {sum(hits) / len(hits):.1%}" if hits else ""
            progress.update(task, advance=len(predictions), description=name + running)

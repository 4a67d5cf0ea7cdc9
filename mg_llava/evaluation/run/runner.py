"""Asking a model all questions of a benchmark, in batches, and scoring the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mg_llava.boxes.selection import BoxSelection
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.results.report import write_report
from mg_llava.evaluation.results.spreadsheet import write_spreadsheet
from mg_llava.evaluation.run.asking import Asker, ModelAsker
from mg_llava.evaluation.run.contamination import note_contamination
from mg_llava.evaluation.run.offline import Engine, OfflineAsker
from mg_llava.evaluation.run.remote import EndpointAsker
from mg_llava.evaluation.run.scoring import finish, rescore
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.prompts import PromptMaker
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.data.text.fitting import build_template
from xtuner.data.text.specials import Policy, check_policy
from xtuner.data.text.templates import PromptTemplate
from xtuner.engine.processes.environment import Collective
from xtuner.errors import XTunerError
from xtuner.evaluation.endpoint import Endpoint
from xtuner.evaluation.judge import Judge
from xtuner.log import console, get_logger
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mg_llava.model.mg_llava import MGLLaVA


class EvaluationRunner:
    """Runs benchmarks on a model: left-padded batches, greedy, resumable, shared by all processes; or on another engine
    or an endpoint.

    Args:
        tokenizer: the model's, or its config node.
        image_processor: as in training, or its config node.
        prompt_template: as in training.
        model: supplied by the command: in eval mode, on its device; None where an engine or an endpoint is asked.
        collective: supplied by the command: this process among the others; None = alone.
        lockstep: supplied by the command: the model's weights are spread over the processes (ZeRO-3), so that all
            must call it equally often.
        boxes: which boxes become object tokens, or its config node.
        batch_size: questions a batch.
        system_prompt: of conversations without one; None = the template's own.
        num_workers: processes that read and resize pictures; 0 = none besides this one.
        special_tokens_in_text: as in training, see `xtuner.data.text.specials.Policy`.
        endpoint: supplied by the command: is asked in the model's place; it has its own tokenizer and template.
        endpoint_boxes: supplied by the command: how boxes are sent to the endpoint: ``send``, beside the picture, as
            this project's server takes them, ``url``, in its URL, as the plug-in for vLLM does, or ``omit``.
        endpoint_settings: supplied by the command: of the requests to the endpoint, see `EndpointAsker`.
        engine: supplied by the command: is asked in the model's place, in this process; its tokenizer and its image
            processor take the places of `tokenizer` and `image_processor`.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = (
        *("model", "collective", "lockstep"),
        *("endpoint", "endpoint_boxes", "endpoint_settings", "engine"),
    )

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | Mapping[str, Any],
        image_processor: ImageProcessor | Mapping[str, Any],
        prompt_template: str | PromptTemplate,
        model: MGLLaVA | None = None,
        collective: Collective | None = None,
        lockstep: bool = False,
        boxes: BoxSelection | Mapping[str, Any] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        special_tokens_in_text: Policy = "split",
        system_prompt: str | None = None,
        endpoint: Endpoint | None = None,
        endpoint_boxes: Literal["send", "url", "omit"] = "send",
        endpoint_settings: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
    ) -> None:
        selection = BoxSelection() if boxes is None else build(boxes)
        self.collective = collective or Collective()
        self.asker: Asker
        if endpoint is not None:
            self.asker = EndpointAsker(
                endpoint,
                build(image_processor),
                None if endpoint_boxes == "omit" else selection,
                endpoint_settings or {"temperature": 0},
                boxes_in_url=endpoint_boxes == "url",
            )
            return
        if engine is not None:
            template = build_template(prompt_template, engine.tokenizer, system_prompt)
            policy = check_policy(special_tokens_in_text)
            maker = PromptMaker(engine.tokenizer, engine.image_processor, template, selection, policy)
            self.asker = OfflineAsker(engine, maker, num_workers)
            return
        if model is None:
            raise XTunerError("there is neither a model nor an endpoint to ask: give one of the two.")
        built = build(tokenizer)
        assistant = Assistant(
            model,
            built,
            build(image_processor),
            build_template(prompt_template, built, system_prompt),
            selection,
            check_policy(special_tokens_in_text),
        )
        self.asker = ModelAsker(assistant, batch_size, num_workers, self.collective, lockstep)

    def sample(self, seed: int, temperature: float, top_p: float) -> None:
        """From here on answers are drawn: tokens by `temperature` and `top_p`, random numbers by `seed`."""
        self.asker.sample(seed, temperature, top_p)

    @property
    def assistant(self) -> Assistant:
        """What answers; commands that export or chat take it from here.

        Raises:
            XTunerError: an endpoint answers, of which there is only the address, or another engine.
        """
        if not isinstance(self.asker, ModelAsker):
            raise XTunerError("another engine is asked, so there is no model here: give a checkpoint instead.")
        return self.asker.assistant

    def run(
        self,
        benchmark: Benchmark,
        folder: str | Path,
        facts: Mapping[str, Any],
        limit: int | None = None,
        judge: Judge | None = None,
        should_stop: Callable[[], bool] | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Asks the questions that `folder` has no prediction of, scores all, and writes ``metrics.json``.

        Args:
            benchmark: with its files in place.
            folder: of the results: ``predictions.jsonl``, ``metrics.json``, files for upload.
            facts: what answers depend on (checkpoint, config), kept in both.
            limit: ask only so many of the first questions; those that count together are never cut, see `units`.
            judge: judges free answers; None leaves those unscored that no earlier run had judged.
            should_stop: asked before each batch; where any process says True, the answers so far are kept and nothing
                is scored.
            progress: show a bar; a terminal has room for one, so not within a training.

        Returns:
            What ``metrics.json`` holds: ``overall`` (0–1 or None), ``groups``, counts, and `facts`; nothing on ranks
            other than 0, or when it was stopped.

        Raises:
            XTunerError: a file of the benchmark is malformed, or no question could be asked.
        """
        questions = benchmark.first_questions(limit)
        rank = self.collective.rank
        facts = {**facts, "benchmark": benchmark.name, **self.asker.facts(benchmark)}
        files = PredictionFiles(folder, facts, rank)
        # 1. what an earlier evaluation left
        to_ask = self._open_questions(questions, files, benchmark.name)
        # 2. this process's share, once all have read what stands
        self.collective.barrier()
        answers = self.asker.ask(benchmark, to_ask, should_stop or _never)
        bar = progress and rank == 0 and bool(to_ask)
        # the others are about as fast as this process
        share = -(-len(to_ask) // self.collective.world_size)
        for predictions in _progress(answers, benchmark.name, share, bar):
            files.add(predictions)
        # 3. everything together
        self.collective.barrier()
        if rank != 0:
            return {}
        answered = files.merge([question.id for question in questions])
        still_open = sum(question.id not in answered for question in questions)
        if still_open:
            get_logger().info(
                "%s: stopped with %d of %d questions unanswered", benchmark.name, still_open, len(questions)
            )
            return {}
        return finish(benchmark, files, [answered[question.id] for question in questions], judge)

    def _open_questions(self, questions: Sequence[Question], files: PredictionFiles, name: str) -> list[Question]:
        """Makes the folder ready; returns the questions that it has no prediction of, the same on all processes."""
        if self.collective.rank == 0:
            files.prepare()
        self.collective.barrier()
        # what a missing picture prevented is tried again
        done = {key for key, prediction in files.read().items() if prediction.error is None}
        to_ask = [question for question in questions if question.id not in done]
        if self.collective.rank == 0 and len(to_ask) < len(questions):
            get_logger().info(
                "%s: %d of %d questions are already answered", name, len(questions) - len(to_ask), len(questions)
            )
        return to_ask

    @staticmethod
    def rescore(benchmark: Benchmark, folder: str | Path, judge: Judge | None = None) -> dict[str, Any]:
        """Reads and scores again what stands in `folder`, without a model; see `scoring.rescore`."""
        return rescore(benchmark, folder, judge)

    @staticmethod
    def contamination(benchmark: Benchmark, folder: str | Path, train_images: Sequence[str]) -> dict[str, Any]:
        """Counts questions whose picture was trained on; see `contamination.note_contamination`."""
        return note_contamination(benchmark, folder, train_images)

    @staticmethod
    def spreadsheet(benchmark: Benchmark, folder: str | Path) -> Path:
        """Writes the xlsx of a benchmark's predictions; see `spreadsheet.write_spreadsheet`."""
        return write_spreadsheet(benchmark, folder)

    @staticmethod
    def report(benchmark: Benchmark, folder: str | Path, image_processor: Mapping[str, Any] | ImageProcessor) -> Path:
        """Writes the page of a benchmark's results; see `report.write_report`."""
        return write_report(benchmark, folder, build(image_processor))


def _never() -> bool:
    return False


def _progress(batches: Iterator[list[Prediction]], name: str, total: int, shown: bool) -> Iterator[list[Prediction]]:
    """Shows a bar with the share of right answers while the batches pass through."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hits: list[float] = []
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(name, total=total)
        for predictions in batches:
            yield predictions
            hits += [prediction.hit for prediction in predictions if prediction.hit is not None]
            running = f" {sum(hits) / len(hits):.1%}" if hits else ""
            progress.update(task, advance=len(predictions), description=name + running)

"""From questions to answers: packages of like length, taken by whichever process is free, asked as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch.utils.data import Dataset

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.run.showing import show, unanswered
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.generation import Draws
from mg_llava.inference.prompts import Prompt, PromptMaker
from xtuner.data.text.templates import Turn
from xtuner.engine.processes.environment import Collective
from xtuner.engine.processes.work_queue import WorkQueue
from xtuner.engine.steps.loader import SteadyLoader
from xtuner.errors import SampleError

_PACKAGES_PER_WORKER = 4
"""Loading ahead takes packages out of the queue: with fewer than so many for each worker, others would go idle."""

Asked: TypeAlias = tuple[Question, str, Prompt | str]
"""A question, its words, and the prompt made of them or the fault that prevented it."""


class Asker(Protocol):
    """What answers the questions of a benchmark: a model, an engine in this process, or an endpoint."""

    def facts(self, benchmark: Benchmark) -> dict[str, Any]:
        """Returns what answers depend on besides checkpoint and config, as JSON values."""

    def sample(self, seed: int, temperature: float, top_p: float) -> None:
        """From here on draws tokens instead of taking the likeliest; see `Draws`."""

    def ask(
        self, benchmark: Benchmark, questions: Sequence[Question], stop: Callable[[], bool]
    ) -> Iterator[list[Prediction]]:
        """Yields the predictions of this process's share, some at a time.

        Args:
            benchmark: of the questions.
            questions: the same on all processes.
            stop: asked before each batch; once it is True on this process, no process begins another batch.
        """


@dataclass
class ModelAsker:
    """Asks an assistant in batches; the longest prompts come first, so that a batch holds little padding.

    Args:
        assistant: answers.
        batch_size: see `EvaluationRunner`, as for all that follow.
        num_workers: see there.
        collective: see there.
        lockstep: see there.
        draws: how tokens are drawn; None = the likeliest each time.
    """

    assistant: Assistant
    batch_size: int
    num_workers: int
    collective: Collective
    lockstep: bool
    draws: Draws | None = None

    def sample(self, seed: int, temperature: float, top_p: float) -> None:
        """See `Asker.sample`."""
        self.draws = Draws(seed, temperature, top_p)

    def facts(self, benchmark: Benchmark) -> dict[str, Any]:
        """Returns the template and how answers are generated."""
        return {
            "prompt_template": self.assistant.template.name,
            "generation": self.assistant.generation_facts(benchmark.max_new_tokens, self.draws),
        }

    def ask(
        self, benchmark: Benchmark, questions: Sequence[Question], stop: Callable[[], bool]
    ) -> Iterator[list[Prediction]]:
        """See `Asker.ask`."""
        # few questions are shared by all processes rather than asked by one
        size = max(1, min(self.batch_size, -(-len(questions) // self.collective.world_size)))
        ordered = sorted(range(len(questions)), key=lambda number: -_length(benchmark, questions[number]))
        packages = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        takes = _Rounds(packages, self.collective) if self.lockstep else _Packages(packages, self.collective)
        loader = SteadyLoader(
            Prompts(self.assistant.maker, benchmark, questions),
            batch_sampler=takes,  # type: ignore[arg-type]  # any iterable of lists of indices will do
            num_workers=min(self.num_workers, len(packages) // (_PACKAGES_PER_WORKER * self.collective.world_size)),
            prefetch_factor=None,
            collate_fn=list,
        )
        for batch in loader:
            yield _answer(self.assistant, benchmark, batch, self.lockstep, self.draws)
            if takes.ends(stop()):
                return


def _length(benchmark: Benchmark, question: Question) -> int:
    return len(benchmark.prompt(question)) + _PICTURE_LETTERS * len(question.pictures)


_PICTURE_LETTERS = 2000
"""A picture is about as long as so many letters: only the order depends on it."""


class _Packages:
    """Index lists that processes take from one queue."""

    def __init__(self, packages: Sequence[list[int]], collective: Collective) -> None:
        self.packages = packages
        self.queue = WorkQueue(collective, len(packages))

    def __iter__(self) -> Iterator[list[int]]:
        return (self.packages[number] for number in self.queue)

    def ends(self, stop: bool) -> bool:
        """Closes the queue for all processes where this one stops; returns whether it does."""
        if stop:
            self.queue.close()
        return stop


class _Rounds:
    """Index lists dealt out in rounds, empty for processes that the last round has none for.

    Weights that are spread over the processes are gathered by all of them together, so all make as many batches.
    """

    def __init__(self, packages: Sequence[list[int]], collective: Collective) -> None:
        self.collective = collective
        rank, size = collective.rank, collective.world_size
        self.own = [
            packages[start + rank] if start + rank < len(packages) else [] for start in range(0, len(packages), size)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.own)

    def ends(self, stop: bool) -> bool:
        """Returns whether any process stops."""
        return self.collective.sum([float(stop)])[0] > 0


def _answer(
    assistant: Assistant, benchmark: Benchmark, batch: Sequence[Asked], lockstep: bool, draws: Draws | None
) -> list[Prediction]:
    """The predictions of a batch; in lockstep the model is called even where there is nothing to ask."""
    asked = [(question, words, prompt) for question, words, prompt in batch if isinstance(prompt, Prompt)]
    outputs: list[str] = []
    if asked:
        prompts = [prompt for _, _, prompt in asked]
        names = [question.id for question, _, _ in asked]
        outputs = assistant.generate(prompts, benchmark.max_new_tokens, synced=lockstep, draws=draws, names=names)
    elif lockstep:
        assistant.generate([assistant.prepare([Turn("-")])], benchmark.max_new_tokens, synced=True)
    answers = {question.id: output for (question, _, _), output in zip(asked, outputs, strict=True)}
    return [
        benchmark.predict(question, words, answers[question.id])
        if isinstance(prompt, Prompt)
        else unanswered(question, words, prompt)
        for question, words, prompt in batch
    ]


class Prompts(Dataset):
    """Prompts of questions, made where the loader's workers run; a question's fault stands in its prompt's place.

    Args:
        maker: makes them.
        benchmark: of the questions.
        questions: in the order of the items.
    """

    def __init__(self, maker: PromptMaker, benchmark: Benchmark, questions: Sequence[Question]) -> None:
        self.maker = maker
        self.benchmark = benchmark
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Asked:
        question = self.questions[index]
        shown = show(self.benchmark, question, self.maker.image_processor)
        if shown.error is not None:
            return question, shown.words, shown.error
        try:
            return question, shown.words, self.maker.prepare(shown.turns, shown.opened, shown.found)
        except SampleError as error:
            # its text cannot be asked; the other questions can
            return question, shown.words, str(error)

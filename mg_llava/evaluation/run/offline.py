"""Asking another engine in this process, which answers many prompts together and orders them itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.run.asking import Prompts
from mg_llava.evaluation.run.showing import unanswered
from mg_llava.inference.endings import Endings
from mg_llava.inference.generation import Draws
from mg_llava.inference.prompts import Prompt, PromptMaker
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.engine.steps.loader import SteadyLoader
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOGETHER = 256
"""Questions that an engine gets at a time; the answers of a finished lot outlive the process."""


class Engine(Protocol):
    """What answers prompts of `PromptMaker`, with the tokenizer and the image processor of its own model.

    Attributes:
        tokenizer: of the model.
        image_processor: as in its training.
        end_ids: ids that end an answer by the model's own files.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor
    end_ids: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """Returns what answers depend on besides the folder and the prompts, as JSON values."""

    def answer(
        self, prompts: Sequence[Prompt], draws: Sequence[Draws | None], endings: Endings, max_new_tokens: int
    ) -> list[list[int] | str]:
        """Returns the ids of each answer, or in a sentence why a prompt cannot be asked.

        Args:
            prompts: in any number.
            draws: how the tokens of each are drawn; None = the likeliest each time.
            endings: what ends an answer.
            max_new_tokens: answers are cut there.
        """


@dataclass
class OfflineAsker:
    """Asks an engine.

    Args:
        engine: answers.
        maker: makes the prompts.
        num_workers: processes that read and resize pictures; 0 = none besides this one.
        draws: how tokens are drawn; None = the likeliest each time.
    """

    engine: Engine
    maker: PromptMaker
    num_workers: int = 0
    draws: Draws | None = None
    endings: Endings = field(init=False)

    def __post_init__(self) -> None:
        self.endings = Endings(self.engine.tokenizer, self.maker.template, self.engine.end_ids)
        self.endings.tell_differences()

    def sample(self, seed: int, temperature: float, top_p: float) -> None:
        """See `Asker.sample`."""
        self.draws = Draws(seed, temperature, top_p)

    def facts(self, benchmark: Benchmark) -> dict[str, Any]:
        """Returns the template, how answers are generated, and by which engine."""
        used = self.endings.generation_config(benchmark.max_new_tokens, self.draws).to_diff_dict()
        used.pop("transformers_version", None)
        return {
            "prompt_template": self.maker.template.name,
            "generation": {"used": used},
            "backend": self.engine.facts(),
        }

    def ask(
        self, benchmark: Benchmark, questions: Sequence[Question], stop: Callable[[], bool]
    ) -> Iterator[list[Prediction]]:
        """See `Asker.ask`; questions on one picture stay together, so that the engine encodes it once.

        Raises:
            XTunerError: the engine ended.
        """
        loader = SteadyLoader(
            Prompts(self.maker, benchmark, questions),
            batch_size=_TOGETHER,
            num_workers=min(self.num_workers, len(questions) // _TOGETHER),
            prefetch_factor=None,
            collate_fn=list,
        )
        for lot in loader:
            prompts = [prompt for _, _, prompt in lot if isinstance(prompt, Prompt)]
            names = [question.id for question, _, prompt in lot if isinstance(prompt, Prompt)]
            try:
                found = self.engine.answer(
                    prompts, [self._draws(name) for name in names], self.endings, benchmark.max_new_tokens
                )
            except XTunerError as error:
                raise XTunerError(
                    f"benchmark '{benchmark.name}': {error} Its answers so far are kept: run the command again to go "
                    "on."
                ) from error
            answers = dict(zip(names, found, strict=True))
            yield [
                self._predict(benchmark, question, words, prompt if isinstance(prompt, str) else answers[question.id])
                for question, words, prompt in lot
            ]
            if stop():
                return

    def _draws(self, name: str) -> Draws | None:
        """Those of a question, which do not depend on what it is asked with."""
        return None if self.draws is None else replace(self.draws, seed=self.draws.seed_of([name]))

    def _predict(self, benchmark: Benchmark, question: Question, words: str, found: list[int] | str) -> Prediction:
        if isinstance(found, str):
            return unanswered(question, words, found)
        return benchmark.predict(question, words, self.endings.decode(found))

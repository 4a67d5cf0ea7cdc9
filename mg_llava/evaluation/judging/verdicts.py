"""Benchmarks whose free answers a language model judges, and what they are judged with."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from xtuner.evaluation.judge import Judge, JudgementFile

JUDGEMENTS = "judgements.jsonl"


class JudgedBenchmark(Benchmark):
    """A benchmark that has answers judged; without judgements only what needs none is scored."""

    judge_max_tokens: int = 16
    """Longest reply that the judge may give."""

    @abstractmethod
    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns what to ask the judge about an answer; None where no judge is needed."""

    @abstractmethod
    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction as the judge sees it; a reply that cannot be read leaves `hit` None."""

    def judge_prompts(self, predictions: Sequence[Prediction]) -> list[str]:
        """Returns all that a judge must be asked for these predictions, each once."""
        prompts = (
            self.judge_prompt(question, prediction.output)
            for question, prediction in self.pairs(predictions)
            if prediction.output is not None
        )
        return list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))

    def apply(self, predictions: Sequence[Prediction], replies: Mapping[str, str]) -> list[Prediction]:
        """Returns the predictions with the judge's verdicts.

        Args:
            predictions: as `predict` made them.
            replies: the judge's words by what it was asked.
        """
        judged = []
        for question, prediction in self.pairs(predictions):
            prompt = None if prediction.output is None else self.judge_prompt(question, prediction.output)
            if prompt is not None and prompt in replies:
                prediction = self.read_judgement(question, prediction, replies[prompt])
            judged.append(prediction)
        return judged


def judge(
    benchmark: Benchmark, predictions: Sequence[Prediction], folder: str | Path, judge: Judge | None
) -> tuple[list[Prediction], dict[str, object]]:
    """Has predictions judged, where the benchmark wants that, and applies all judgements that `folder` holds.

    Args:
        benchmark: any.
        predictions: of its questions.
        folder: of its results; judgements stand in `JUDGEMENTS` there, so that none is asked for twice.
        judge: None applies what stands there and asks nothing.

    Returns:
        The predictions with verdicts, and what to say of them in the metrics (nothing without a judged benchmark).
    """
    if not isinstance(benchmark, JudgedBenchmark):
        return list(predictions), {}
    file = JudgementFile(Path(folder) / JUDGEMENTS)
    prompts = benchmark.judge_prompts(predictions)
    failed = 0
    if judge is not None:
        failed = judge.ask_all(prompts, file, benchmark.judge_max_tokens, benchmark.name)
    replies = file.replies(None if judge is None else judge.model)
    answered = {prompt: reply for prompt, reply in replies.items() if prompt in set(prompts)}
    facts = {
        "num_to_judge": len(prompts),
        "num_judged": len(answered),
        "num_judgements_failed": failed,
        "judges": sorted(file.models()),
    }
    return benchmark.apply(predictions, answered), facts


def with_verdict(prediction: Prediction, hit: float | None, parsed: str | None = None) -> Prediction:
    """Returns the prediction with another hit, and another reading where one is given."""
    return replace(prediction, hit=hit, parsed=prediction.parsed if parsed is None else parsed)


def first_number(reply: str) -> float | None:
    """Returns the first number of a judge's reply, or None."""
    found = re.search(r"-?\d+(?:\.\d+)?", reply)
    return float(found.group()) if found else None

"""Benchmarks: one small class per kind, one runner; the table of benchmarks stands in configs/_base_/benchmarks.py."""

from mg_llava.evaluation.base import Benchmark, Picture, Prediction, Question
from mg_llava.evaluation.multiple_choice import MultipleChoice
from mg_llava.evaluation.runner import EvaluationRunner
from mg_llava.evaluation.short_answer import ShortAnswer
from mg_llava.evaluation.vqa import GQA, VQA, TextVQA, VQAv2
from mg_llava.evaluation.yes_no import YesNo

__all__ = [
    "GQA",
    "VQA",
    "Benchmark",
    "EvaluationRunner",
    "MultipleChoice",
    "Picture",
    "Prediction",
    "Question",
    "ShortAnswer",
    "TextVQA",
    "VQAv2",
    "YesNo",
]

"""Benchmarks: one small class per kind, one runner; the table of benchmarks stands in configs/_base_/benchmarks.py."""

from mg_llava.evaluation.base import Benchmark, Prediction, Question
from mg_llava.evaluation.chart_qa import ChartQA, TallyQA
from mg_llava.evaluation.math_vista import MathVista
from mg_llava.evaluation.mmvp import MMVP
from mg_llava.evaluation.multiple_choice import MultipleChoice
from mg_llava.evaluation.open_answers import LLaVABench, MMVet
from mg_llava.evaluation.paired_yes_no import MME, HallusionBench
from mg_llava.evaluation.pictures import Picture
from mg_llava.evaluation.ref_coco import RefCOCO
from mg_llava.evaluation.runner import EvaluationRunner
from mg_llava.evaluation.short_answer import ShortAnswer
from mg_llava.evaluation.tables import OCRVQA, DocVQA
from mg_llava.evaluation.vqa import GQA, VQA, TextVQA, VQAv2
from mg_llava.evaluation.yes_no import YesNo

__all__ = [
    "GQA",
    "MME",
    "MMVP",
    "OCRVQA",
    "VQA",
    "Benchmark",
    "ChartQA",
    "DocVQA",
    "EvaluationRunner",
    "HallusionBench",
    "LLaVABench",
    "MMVet",
    "MathVista",
    "MultipleChoice",
    "Picture",
    "Prediction",
    "Question",
    "RefCOCO",
    "ShortAnswer",
    "TallyQA",
    "TextVQA",
    "VQAv2",
    "YesNo",
]

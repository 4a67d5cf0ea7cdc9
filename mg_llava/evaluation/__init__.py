"""Benchmarks: one small class per kind, one runner; the table of benchmarks stands in configs/_base_/benchmarks.py.

``benchmarks`` says what is asked and how it scores; ``reading`` reads answers; ``run`` asks the model and keeps what it
said; ``judging`` lets a judge decide; ``results`` shows them; ``lmms_eval`` is our model inside lmms-eval.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "benchmarks.base": ["Benchmark"],
        "benchmarks.records": ["Picture", "Prediction", "Question"],
        "benchmarks.kinds.open_tables": ["OCRVQA", "DocVQA"],
        "run.runner": ["EvaluationRunner"],
        "benchmarks.kinds.chart_qa": ["ChartQA", "TallyQA"],
        "benchmarks.kinds.choice_files": ["SEEDBench", "VStarBench"],
        "benchmarks.kinds.math_vista": ["MathVista"],
        "benchmarks.kinds.mmvp": ["MMVP"],
        "benchmarks.kinds.multiple_choice": ["MultipleChoice"],
        "benchmarks.kinds.open_answers": ["LLaVABench", "MMVet"],
        "benchmarks.kinds.own_records": ["OwnRecords"],
        "benchmarks.kinds.paired_yes_no": ["MME", "HallusionBench"],
        "benchmarks.kinds.ref_coco": ["RefCOCO"],
        "benchmarks.kinds.short_answer": ["ShortAnswer"],
        "benchmarks.kinds.video.choices": ["MVBench", "NExTQA", "VideoMME"],
        "benchmarks.kinds.video.open_answers": ["VideoQA"],
        "benchmarks.kinds.vqa.challenge": ["VQA", "TextVQA", "VQAv2"],
        "benchmarks.kinds.vqa.gqa": ["GQA"],
        "benchmarks.kinds.vqa.viz_wiz": ["VizWiz"],
        "benchmarks.kinds.yes_no": ["YesNo"],
    },
)

"""Expected time of both stages for every LLM, from the FLOPs of a step: nothing is trained, no weights are read.

Usage: ``python tools/benchmarks/expected_time.py [--peak 312e12] [--mfu 0.45]``

Samples follow the law of ``padding.py`` (half of the text is supervised; all samples of stage 1 have a picture), their
numbers are those of docs/dataset_prepare.md. hours = FLOPs of a sample x samples / (GPUs x peak x MFU) / 3600; the
FLOPs are those that the MFU of a run's log counts (docs/cluster.md).
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where not installed

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tools.benchmarks.layouts import text_batch  # noqa: E402
from tools.benchmarks.padding import published_samples  # noqa: E402
from xtuner.config import load_config, parse_overrides  # noqa: E402
from xtuner.log import get_logger  # noqa: E402
from xtuner.model.meta import meta_init  # noqa: E402
from xtuner.registry import build  # noqa: E402

GPUS = {"phi3": 8, "vicuna7b": 8, "llama3_8b": 8, "vicuna13b": 8, "yi34b": 32}
SAMPLES = {"pretrain": 558_000 + 708_000, "sft": 665_000 + 692_000 + 25_000}
DRAWN, VOCABULARY, CHUNK = 2000, 32000, 100


def flops_of_a_sample(llm: str, stage: str) -> float:
    """Mean FLOPs of forward and backward pass over drawn samples."""
    cfg = load_config(f"fuse_{llm}_clip_L_14_336_{stage}_padding", parse_overrides([]))
    with meta_init():
        model = build(cfg.model)
    drawn = published_samples(DRAWN)
    if stage == "pretrain":
        drawn = drawn._replace(has_picture=np.ones(DRAWN, dtype=bool))
    chunks = np.arange(DRAWN).reshape(-1, CHUNK)
    size = model.high_res_encoder.image_size
    return sum(model.step_flops(text_batch(drawn, chunk.tolist(), VOCABULARY, size)) for chunk in chunks) / DRAWN


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=312e12, help="FLOP/s of a GPU (default: an A100's, 312e12)")
    parser.add_argument("--mfu", type=float, default=0.45, help="share of it that is reached (default: 0.45)")
    args = parser.parse_args()
    get_logger().setLevel(logging.ERROR)
    title = f"peak {args.peak / 1e12:.0f} TFLOP/s a GPU, MFU {args.mfu:.0%}"
    columns = ("LLM", "GPUs", "stage 1, TFLOP a sample", "hours", "stage 2, TFLOP a sample", "hours", "both, hours")
    table = Table(*columns, title=title)
    for llm, gpus in GPUS.items():
        cells, total = [llm, str(gpus)], 0.0
        for stage, samples in SAMPLES.items():
            flops = flops_of_a_sample(llm, stage)
            hours = flops * samples / (gpus * args.peak * args.mfu) / 3600
            cells += [f"{flops / 1e12:.1f}", f"{hours:.1f}"]
            total += hours
        table.add_row(*cells, f"{total:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

"""Batch of 8 against eight single answers on the tiny model: `python tools/benchmarks/generate_batch.py`.

Both sides take turns in one run; medians of their times and the ratio of the pairs are printed. Without --folder the
tests' tiny model with random weights is exported to a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mg_llava.hf import load_assistant, save_pretrained  # noqa: E402
from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.inference.prompts import as_picture_boxes  # noqa: E402
from xtuner.data.text.templates import Turn  # noqa: E402

BATCH = 8


def tiny_folder(target: Path) -> Path:
    """Exports the tests' tiny model with random weights."""
    from tests.tiny_assistant import randomize, tiny_assistant

    assistant, node = tiny_assistant(target / "parts")
    return save_pretrained(randomize(assistant), node, target / "hf")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="exported folder (default: a tiny one)")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        assistant = load_assistant(args.folder or tiny_folder(Path(temporary)))
        measure(assistant, args.new_tokens, args.repeats)


def measure(assistant: Assistant, new_tokens: int, repeats: int) -> None:
    """Times both ways `repeats` times; answers are of one length, so that no way has less to do."""
    boxes = as_picture_boxes([[2, 3, 20, 25], [10, 5, 38, 28]])
    prompts = [
        assistant.prepare(
            [Turn(f"<image>\nIs it red w{number}")], [Image.new("RGB", (40, 30), (number * 30, 9, 9))], [boxes]
        )
        for number in range(BATCH)
    ]
    assistant.stop_ids = lambda: []  # type: ignore[method-assign]
    single, together = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        for prompt in prompts:
            assistant.generate([prompt], new_tokens)
        middle = time.perf_counter()
        assistant.generate(prompts, new_tokens)
        end = time.perf_counter()
        if repeat:
            single.append(middle - start)
            together.append(end - middle)
    ratios = [alone / batch for alone, batch in zip(single, together, strict=True)]
    print(f"{BATCH} single: {statistics.median(single):.3f} s, one batch: {statistics.median(together):.3f} s")
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} ({repeats} pairs)")


if __name__ == "__main__":
    main()

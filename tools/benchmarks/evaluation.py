"""Samples per second of batched evaluation beside a batch-1 loop, on a tiny random model: same answers, less time.

    python tools/benchmarks/evaluation.py [--questions 64] [--batch-size 64] [--repeats 2]

Both ask the same questions of the same model with the same code; only the batch differs. The two alternate, so that
another program on the machine slows both; the median of each is reported, also over the seconds that the processor
worked for it. Fails where the answers differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mg_llava.evaluation import ShortAnswer  # noqa: E402
from tests.mg_llava.evaluation.world import runner  # noqa: E402
from tests.tiny_assistant import box_record, save_picture, tiny_assistant  # noqa: E402

PICTURES = 8


def make_world(folder: Path, questions: int, max_new_tokens: int) -> ShortAnswer:
    """Questions of several lengths on a few pictures with boxes."""
    rows = [
        {
            "id": str(number),
            "image": f"images/{number % PICTURES}.png",
            "question": " ".join(["what"] * (1 + number % 7)) + f" w{number % 50}",
            "answer": "dog",
        }
        for number in range(questions)
    ]
    for number in range(PICTURES):
        save_picture(folder / "images" / f"{number}.png", number, (64, 48))
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "boxes.json").write_text(json.dumps([box_record(f"images/{number}.png") for number in range(PICTURES)]))
    return ShortAnswer(
        name="speed",
        data_root=str(folder),
        data_file="test.json",
        image_folder="",
        box_json_path="boxes.json",
        max_new_tokens=max_new_tokens,
    )


def main() -> int:
    """Measures and prints one line per way, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assistant, _ = tiny_assistant(folder / "parts")
        bench = make_world(folder / "world", args.questions, args.max_new_tokens)
        rates: dict[int, list[float]] = {1: [], args.batch_size: []}
        cpu_rates: dict[int, list[float]] = {1: [], args.batch_size: []}
        answers: dict[int, str] = {}
        for repeat in range(args.repeats + 1):
            for size in rates:
                run = runner(assistant, size)
                out = folder / f"out_{size}_{repeat}"
                started, worked = time.perf_counter(), time.process_time()
                run.run(bench, out, {})
                seconds, worked = time.perf_counter() - started, time.process_time() - worked
                # the first round warms up
                if repeat:
                    rates[size].append(args.questions / seconds)
                    cpu_rates[size].append(args.questions / worked)
                answers[size] = (out / "predictions.jsonl").read_text()
    if answers[1] != answers[args.batch_size]:
        print("the answers differ between the batch sizes")
        return 1
    medians = {size: statistics.median(values) for size, values in rates.items()}
    print(f"{torch.get_num_threads()} threads, {args.questions} questions, up to {args.max_new_tokens} new tokens")
    for size, median in medians.items():
        spread = f"{min(rates[size]):.1f}–{max(rates[size]):.1f}"
        print(f"batch {size:>3}: {median:7.1f} samples/s ({spread})")
    cpu = {size: statistics.median(values) for size, values in cpu_rates.items()}
    by_cpu = cpu[args.batch_size] / cpu[1]
    print(f"ratio: {medians[args.batch_size] / medians[1]:.1f}× ({by_cpu:.1f}× by processor time)")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

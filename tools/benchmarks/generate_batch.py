"""Batch of 8 against eight single answers on the tiny model: `python tools/benchmarks/generate_batch.py`.

With ``--config fuse_vicuna7b_clip_L_14_336_sft_padding`` tokens per second of that config's real size with random
weights, for one answer and for a batch of 64.

Both sides take turns in one run; medians of their times and the ratio of the pairs are printed. Without --folder the
tests' tiny model with random weights is exported to a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mg_llava.hf import load_assistant, save_pretrained  # noqa: E402
from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.inference.prompts import as_picture_boxes  # noqa: E402
from tools.benchmarks.real_step import make_batch, peak_bytes, random_weights  # noqa: E402
from xtuner.config import load_config, parse_overrides  # noqa: E402
from xtuner.data.text.templates import Turn  # noqa: E402
from xtuner.engine.steps.precision import resolve_precision  # noqa: E402

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
    parser.add_argument("--config", help="a shipped config: its real sizes with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for --config")
    args = parser.parse_args()
    if args.config:
        for batch in (1, 64):
            found = measure_real(args.config, [], torch.device(args.device), batch, args.new_tokens)
            print(
                f"batch of {batch}: first token {found['first']:.3f} s, {found['tokens_per_second']:.1f} tokens/s, "
                f"{batch / found['seconds']:.2f} answers/s, {found['bytes'] / 1e9:.1f} GB"
            )
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        assistant = load_assistant(args.folder or tiny_folder(Path(temporary)))
        measure(assistant, args.new_tokens, args.repeats)


def measure_real(
    config: str, options: Sequence[str], device: torch.device, batch: int, new_tokens: int
) -> dict[str, float]:
    """Generates `new_tokens` for each of `batch` prompts with a picture and 20 boxes, once to warm up and once timed.

    Returns:
        ``first``, seconds to the first token; ``tokens_per_second`` of those after it, all answers together;
        ``seconds`` of the whole; ``bytes`` at the peak.
    """
    model = random_weights(load_config(config, parse_overrides(list(options))), device)
    model = model.eval().to(resolve_precision("auto", device).dtype)
    high = model.high_res_encoder or model.low_res_encoder
    vocabulary = model.llm.get_input_embeddings().num_embeddings
    given = make_batch(vocabulary, batch, high.image_size, 20, 40)
    del given["labels"]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def timed(count: int) -> float:
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        arguments: dict[str, Any] = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        model.generate(**given, **arguments)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed(2)
    first, whole = timed(1), timed(new_tokens)
    return {
        "first": first,
        "seconds": whole,
        "tokens_per_second": batch * (new_tokens - 1) / max(whole - first, 1e-9),
        "bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_bytes(reset=False),
    }


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

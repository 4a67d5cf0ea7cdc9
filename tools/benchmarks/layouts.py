"""Samples a second of SFT on lengths like the published data's: shuffled, grouped by length, packed in one row.

On the CPU, scaled: ``python tools/benchmarks/layouts.py [--samples 32] [--batch 8] [--width 512]``
On a GPU, real sizes: the same with ``--config fuse_vicuna7b_clip_L_14_336_sft_padding --samples 256``

Every layout sees the same samples once, in the micro-batches that the shipped samplers make; lengths follow the law of
``padding.py``, half of the text is supervised. A step is one micro-batch: forward, backward, AdamW; the language model
is trained. Time is the process's CPU time (CPU) or wall time (GPU), after one step to warm up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tools.benchmarks.padding import Published, padding, published_samples  # noqa: E402
from tools.benchmarks.real_step import peak_bytes, random_weights  # noqa: E402
from tools.benchmarks.train_step import ROWS, scaled_model, write_encoders  # noqa: E402
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX  # noqa: E402
from xtuner.data.batches.collate import collate  # noqa: E402
from xtuner.data.batches.samplers import LengthGroupedBatchSampler, ShuffledBatchSampler  # noqa: E402
from xtuner.engine.processes.environment import Collective, Environment  # noqa: E402
from xtuner.engine.steps.optim import build_optimizer  # noqa: E402
from xtuner.engine.steps.step import run_step  # noqa: E402
from xtuner.engine.strategies.plain import PlainBackend, wrap_plain  # noqa: E402

CONNECTORS = ("fusion", "projector", "object_encoder")


class Layout(NamedTuple):
    """How samples come together."""

    name: str
    grouped: bool
    pack: bool


LAYOUTS = {
    "shuffled_padded": Layout("shuffled, padded", False, False),
    "grouped_padded": Layout("grouped, padded (default)", True, False),
    "grouped_packed": Layout("grouped, packed", True, True),
}


def micro_batches(drawn: Published, layout: Layout, batch_size: int) -> list[list[int]]:
    """One epoch in a layout's order; every sample comes once where the batch size divides their number."""
    sampler: Any = ShuffledBatchSampler(drawn.lengths, batch_size)
    if layout.grouped:
        sampler = LengthGroupedBatchSampler(drawn.lengths, batch_size, groups=drawn.has_picture.astype(np.int64))
    return list(islice(sampler, sampler.steps_per_epoch))


def text_batch(drawn: Published, chosen: Sequence[int], vocabulary: int, image_size: int) -> dict[str, Any]:
    """The collated batch of the chosen samples without pictures: random ids, boxes of the drawn number."""
    draw = torch.Generator().manual_seed(int(chosen[0]))
    samples, boxes = [], []
    for index in chosen:
        ids = torch.randint(3, vocabulary, (int(drawn.text[index]),), generator=draw)
        labels = ids.clone()
        labels[: len(ids) // 2] = IGNORE_INDEX
        if drawn.has_picture[index]:
            ids[1] = IMAGE_TOKEN_INDEX
            corners = torch.rand(int(drawn.boxes[index]), 2, 2, generator=draw).sort(dim=1).values
            boxes.append(corners.flatten(1) * image_size)
        samples.append({"input_ids": ids, "labels": labels, "sample_id": str(index)})
    return {**collate(samples, pad_id=0), **({"boxes": boxes} if boxes else {})}


def make_batch(drawn: Published, chosen: Sequence[int], vocabulary: int, image_size: int) -> dict[str, Any]:
    """`text_batch` with random pictures."""
    batch = text_batch(drawn, chosen, vocabulary, image_size)
    if "boxes" in batch:
        shape = (len(batch["boxes"]), 3, image_size, image_size)
        draw = torch.Generator().manual_seed(int(chosen[0]))
        batch["pixel_values"] = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    return batch


def build_model(args: argparse.Namespace, layout: Layout, device: torch.device) -> Any:
    """The scaled model, or a config's real sizes with random weights."""
    if args.config:
        from xtuner.config import load_config, parse_overrides

        options = [f"pack={layout.pack}", *args.cfg_options]
        return random_weights(load_config(args.config, parse_overrides(options)), device)
    with tempfile.TemporaryDirectory() as folder:
        write_encoders(Path(folder))
        trainable = (*CONNECTORS, "llm")
        return scaled_model(Path(folder), 32000, ROWS["all"], args.width, trainable=trainable, pack=layout.pack)


def measure(args: argparse.Namespace, layout: Layout) -> dict[str, float]:
    """Runs an epoch of a layout in this process."""
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    model = build_model(args, layout, device)
    optimizer = build_optimizer(model, device, lr=1e-5)
    backend = PlainBackend(wrap_plain(model, optimizer, Environment("none", 0, 1, 0, device)), optimizer, device)
    high = model.high_res_encoder or model.low_res_encoder
    vocabulary = model.llm.get_input_embeddings().num_embeddings
    drawn = published_samples(args.samples)
    chosen = micro_batches(drawn, layout, args.batch)
    run_step(
        backend, [make_batch(drawn, chosen[0][: None if on_gpu else 1], vocabulary, high.image_size)], Collective()
    )
    before, seconds, loss, tokens = peak_bytes(reset=True), 0.0, 0.0, 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for batch in (make_batch(drawn, indices, vocabulary, high.image_size) for indices in chosen):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter() if on_gpu else time.process_time()
        result = run_step(backend, [batch], Collective())
        if on_gpu:
            torch.cuda.synchronize()
        seconds += (time.perf_counter() if on_gpu else time.process_time()) - start
        loss, tokens = loss + float(result.loss_sum), tokens + result.expected
    return {
        "seconds": seconds,
        "bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_bytes(reset=False) - before,
        "padding": 0.0 if layout.pack else padding(chosen, drawn.lengths),
        "loss": loss / tokens,
    }


def main() -> None:
    """Measures every layout in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="seen by every layout (default: 32)")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch (default: 8)")
    parser.add_argument("--width", type=int, default=512, help="of the scaled language model (default: 512)")
    parser.add_argument("--config", help="a shipped config: its real sizes with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cfg-options", nargs="*", default=[], metavar="k=v", help="further settings, for --config")
    parser.add_argument("--layout", choices=list(LAYOUTS), help="one layout, as JSON")
    args = parser.parse_args()
    if args.layout:
        print(json.dumps(measure(args, LAYOUTS[args.layout])))
        return
    device = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )
    model = args.config or f"two layers of width {args.width}"
    title = f"SFT, {model}, {args.samples} samples in micro-batches of {args.batch}, {device}"
    table = Table("layout", "padding", "time", "samples/s", "of the first", "memory", "loss", title=title)
    first = None
    for key, layout in LAYOUTS.items():
        done = subprocess.run([sys.executable, *sys.argv, "--layout", key], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        speed = args.samples / found["seconds"]
        first = first or speed
        numbers = (
            f"{found['seconds']:.1f} s",
            f"{speed:.2f}",
            f"{speed / first:.2f}x",
            f"{found['bytes'] / 1e9:.2f} GB",
        )
        table.add_row(layout.name, f"{found['padding']:.1%}", *numbers, f"{found['loss']:.4f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

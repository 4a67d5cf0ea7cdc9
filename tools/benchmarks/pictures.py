"""A worker's work per picture: Pillow, CLIP's processor and two float tensors, against 8-bit pictures.

Usage: ``python tools/benchmarks/pictures.py [--pictures 40] [--repeats 5] [--batch 8]``

Both sides run in turns in one process on one core, on 640 x 480 JPEG files made here. The work is from the file to the
batch in shared memory, which is what the main process receives. The usual way is the published one: pad, CLIP's
processor (its Pillow version) at 768 pixels, and the 336 pixel view resized from that. Here a worker hands over the
8-bit square, and the device does the rest; that both give the same bits is checked too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from own_process import seconds_of
from PIL import Image
from rich.console import Console
from torch.nn import functional
from transformers import CLIPImageProcessorPil

from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD

SIZE, LOW = 768, 336


def make_pictures(folder: Path, number: int) -> list[Path]:
    """Writes smooth random pictures with some noise, of the size in bytes that photographs have."""
    draw = np.random.default_rng(0)
    paths = []
    for index in range(number):
        small = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + draw.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def usual(paths: list[Path], processor: Any) -> list[torch.Tensor]:
    """Two float batches: (B, 3, 768, 768) and (B, 3, 336, 336)."""
    high, low = [], []
    for path in paths:
        image = Image.open(path).convert("RGB")
        side = max(image.size)
        padded = Image.new("RGB", (side, side), tuple(int(value * 255) for value in CLIP_MEAN))
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = processor(padded, return_tensors="pt")["pixel_values"]
        high.append(pixels[0])
        low.append(functional.interpolate(pixels, size=(LOW, LOW), mode="bilinear", align_corners=False)[0])
    return [torch.stack(high).share_memory_(), torch.stack(low).share_memory_()]


def here(paths: list[Path], processor: ImageProcessor) -> list[torch.Tensor]:
    """One batch of bytes, as data set and collate make it."""
    pixels = [processor.pixels(processor.open(path)).permute(1, 2, 0).unsqueeze(0) for path in paths]
    return [torch.cat(pixels).permute(0, 3, 1, 2).share_memory_()]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_pictures(folder, args.pictures)
        statistics_file = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(statistics_file))
        ours = ImageProcessor(name, SIZE)
        theirs = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
        times: dict[str, list[float]] = {"usual": [], "here": []}
        for _ in range(args.repeats):
            for key in times:
                times[key].append(0.0)
            for start in range(0, len(paths), args.batch):
                batch = paths[start : start + args.batch]
                seconds, before = seconds_of(lambda some=batch: usual(some, theirs))
                times["usual"][-1] += seconds
                seconds, now = seconds_of(lambda some=batch: here(some, ours))
                times["here"][-1] += seconds
        high, _ = PixelNormalizer()(now[0], LOW)
        difference = float((high - before[0]).abs().max())
        sizes = [sum(tensor.nbytes for tensor in side) / len(now[0]) / 1e6 for side in (before, now)]
    rates = {key: args.pictures / statistics.median(values) for key, values in times.items()}
    Console(highlight=False, soft_wrap=True).print(
        f"pictures/s on a core: usual {rates['usual']:.1f}, here {rates['here']:.1f}: "
        f"{rates['here'] / rates['usual']:.2f}x. "
        f"MB from worker to main process per picture: usual {sizes[0]:.2f}, here {sizes[1]:.2f}. "
        f"Largest difference of the normalised pixels: {difference:g}"
    )


if __name__ == "__main__":
    main()

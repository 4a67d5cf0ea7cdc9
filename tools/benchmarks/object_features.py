"""Object features two ways: the published procedure and the closed form; time, extra memory, difference.

Usage: ``python tools/benchmarks/object_features.py [--boxes 50] [--repeats 5] [--device cpu] [--dtype float32]``

Both sides run in turns in one process on the same random maps, of the published model's size by default. Extra
memory is what a side takes at its peak beyond what was there before it: on a GPU by the allocator's count, on the CPU
by the growth of the process's resident memory, looked at every millisecond. Threads wait as they do in the program, so
that another busy process costs both sides about the same.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from xtuner.threads import settle_waiting

settle_waiting()
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402
from torchvision.ops import roi_align  # noqa: E402

from mg_llava.model.objects import pool_boxes  # noqa: E402

CHANNELS = (192, 384, 768, 1536)
STRIDES = (4, 8, 16, 32)
OUTPUT = 56

Side = Callable[[list[torch.Tensor], list[torch.Tensor], int], list[torch.Tensor]]


def published(maps: list[torch.Tensor], boxes: list[torch.Tensor], image_size: int) -> list[torch.Tensor]:
    """Upsample all maps to the finest, concatenate, roi-align to 56 × 56, average."""
    side = maps[0].shape[-1]
    shape = (side, side)
    upsampled = [functional.interpolate(m.float(), size=shape, mode="bilinear", align_corners=False) for m in maps]
    crops = roi_align(torch.cat(upsampled, dim=1), boxes, OUTPUT, side / image_size, -1, aligned=False)
    return list(crops.mean(dim=(2, 3)).split([len(box) for box in boxes]))


@dataclass
class Measured:
    """Seconds of each run, and bytes at the peak of one."""

    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0

    @property
    def median(self) -> float:
        """The middle run's seconds."""
        return statistics.median(self.seconds)


class PeakMemory:
    """Most memory within a ``with`` block beyond that at its start: resident (CPU) or allocated (CUDA)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.extra_bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._before = self._peak = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self._peak = max(self._peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.extra_bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._stop.set()
        self._thread.join()
        self.extra_bytes = max(self._peak, resident_bytes()) - self._before


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def random_boxes(count: int, image_size: int, generator: torch.Generator) -> torch.Tensor:
    """(N, 4) boxes like a detector's: sides from 2 % to 60 % of the picture, anywhere in it."""
    sides = (0.02 + 0.58 * torch.rand(count, 2, generator=generator)) * image_size
    corners = torch.rand(count, 2, generator=generator) * (image_size - sides)
    return torch.cat([corners, corners + sides], dim=1)


def run_once(side: Side, maps: list[torch.Tensor], boxes: list[torch.Tensor], image_size: int) -> float:
    """Seconds of one run, the device's work included."""
    start = time.perf_counter()
    with torch.no_grad():
        side(maps, boxes, image_size)
        if maps[0].is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    sides: dict[str, Side], maps: list[torch.Tensor], boxes: list[torch.Tensor], image_size: int, repeats: int
) -> dict[str, Measured]:
    """Runs the sides in turns: the memory of a first run each, then the time of `repeats`."""
    measured = {name: Measured() for name in sides}
    for name, side in sides.items():
        # a small run first: what a library sets up once is no cost of a picture
        run_once(side, [m[:, :1] for m in maps], [box[:1] for box in boxes], image_size)
        with PeakMemory(maps[0].device) as memory:
            run_once(side, maps, boxes, image_size)
        measured[name].extra_bytes = memory.extra_bytes
    for _ in range(repeats):
        for name, side in sides.items():
            measured[name].seconds.append(run_once(side, maps, boxes, image_size))
    return measured


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference, in units of the largest expected number."""
    both = torch.cat(found), torch.cat(expected)
    return float((both[0] - both[1]).abs().max() / both[1].abs().max())


def main() -> None:
    """Prints the comparison as a table, then the closed form's time by number of boxes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=50, help="boxes of each picture (default: 50)")
    parser.add_argument("--pictures", type=int, default=1, help="pictures of the batch (default: 1)")
    parser.add_argument("--image-size", type=int, default=768, help="pixels (default: 768)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the maps")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default: 2)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(0)
    sizes = [args.image_size // stride for stride in STRIDES]
    maps = [
        torch.randn(args.pictures, channels, size, size, generator=generator).to(device, dtype)
        for channels, size in zip(CHANNELS, sizes, strict=True)
    ]
    boxes = [random_boxes(args.boxes, args.image_size, generator).to(device) for _ in range(args.pictures)]

    sides: dict[str, Side] = {"upsample, roi_align, mean": published, "closed form": pool_boxes}
    measured = measure(sides, maps, boxes, args.image_size, args.repeats)
    with torch.no_grad():
        difference = largest_difference(
            pool_boxes(maps, boxes, args.image_size), published(maps, boxes, args.image_size)
        )

    console = Console()
    theirs, ours = measured.values()
    title = f"{args.pictures} picture(s), {args.boxes} boxes each, {args.dtype}, {device}, {args.threads} threads"
    table = Table("", "median of " + str(args.repeats), "fastest", "extra memory", title=title)
    for name, side in measured.items():
        row = (
            f"{side.median * 1e3:.1f} ms",
            f"{min(side.seconds) * 1e3:.1f} ms",
            f"{side.extra_bytes / 2**20:.1f} MiB",
        )
        table.add_row(name, *row)
    memory = theirs.extra_bytes / max(1, ours.extra_bytes)
    table.add_row("ratio", f"{theirs.median / ours.median:.0f}x", "", f"1/{memory:.0f}")
    console.print(table)
    console.print(f"largest difference: {difference:.1e} of the largest feature")

    growth = Table("boxes", "median", title="closed form by number of boxes")
    for count in (0, 1, 10, 25, 50, 100, 200):
        some = [random_boxes(count, args.image_size, generator).to(device) for _ in range(args.pictures)]
        runs = [run_once(pool_boxes, maps, some, args.image_size) for _ in range(max(5, args.repeats))]
        growth.add_row(str(count), f"{statistics.median(runs) * 1e3:.2f} ms")
    console.print(growth)


if __name__ == "__main__":
    main()

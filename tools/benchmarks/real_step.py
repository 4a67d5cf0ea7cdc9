"""A shipped config's model with random weights made on the device, and what a training step of it costs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xtuner.config import load_config, parse_overrides
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.engine.processes.environment import Collective, Environment
from xtuner.engine.steps.optim import build_optimizer
from xtuner.engine.steps.step import run_step
from xtuner.engine.strategies.plain import PlainBackend, wrap_plain
from xtuner.model.flops import peak_flops
from xtuner.model.meta import meta_init
from xtuner.registry import build

FIRST_STEPS = 3
"""Steps that are not timed: compiling takes the first ones."""

LEFT_FREE = 0.08
"""Share of the GPU's memory that the largest batch leaves, for fragments and what other shapes take."""

MOST_SAMPLES = 64


def random_weights(cfg: Any, device: torch.device) -> Any:
    """A config's model with random weights: shapes on ``meta``, then memory on `device`; compiled where it says so."""
    with meta_init():
        model = build(cfg.model)
    model = model.to_empty(device=device)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.02)
    for part in (model.llm, getattr(model.low_res_encoder, "clip", None)):
        for module in () if part is None else part.modules():  # tables that are computed, not read: rotary angles
            part._init_weights(module)
    model.data_preprocessor.normalizer.reset_constants()
    model.data_preprocessor.to(device)
    backend = cfg.model.get("compile")
    if backend:
        model.compile_parts(backend if isinstance(backend, str) else "inductor")
    return model.train()


def make_batch(vocabulary: int, samples: int, image_size: int, boxes: int, supervised: int) -> dict[str, Any]:
    """One collated batch: a picture with boxes, a short question and a supervised answer in each sample."""
    generator = torch.Generator().manual_seed(1)
    length = supervised + 8
    input_ids = torch.randint(3, vocabulary, (samples, length), generator=generator)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[:, -supervised:] = input_ids[:, -supervised:]
    input_ids[:, 1] = IMAGE_TOKEN_INDEX
    shape = (samples, 3, image_size, image_size)
    corners = torch.rand(samples, boxes, 2, 2, generator=generator).sort(dim=2).values * image_size
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": torch.ones_like(input_ids, dtype=torch.bool),
        "pixel_values": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "boxes": list(corners.flatten(2)),
    }


def peak_bytes(reset: bool) -> int:
    """Peak resident memory of this process since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


class RealStep:
    """Training steps of a shipped config at its real size, with random weights.

    Args:
        config: name of a shipped config.
        options: settings, ``k=v``.
        device: where to train.
        boxes, supervised: of each sample.

    Attributes:
        model: with its weights; precision: the name of what it computes in.
    """

    def __init__(
        self, config: str, options: Sequence[str], device: torch.device, boxes: int = 20, supervised: int = 200
    ) -> None:
        self.device, self.boxes, self.supervised = device, boxes, supervised
        self.model = random_weights(load_config(config, parse_overrides(list(options))), device)
        optimizer = build_optimizer(self.model, device, lr=1e-5)
        self.precision = optimizer.precision.name
        environment = Environment("none", 0, 1, 0, device)
        self.backend = PlainBackend(wrap_plain(self.model, optimizer, environment), optimizer, device)

    def batch(self, samples: int) -> dict[str, Any]:
        """A collated batch of so many samples."""
        high = self.model.high_res_encoder or self.model.low_res_encoder
        vocabulary = self.model.llm.get_input_embeddings().num_embeddings
        return make_batch(vocabulary, samples, high.image_size, self.boxes, self.supervised)

    def run(self, samples: int, repeats: int, first: int = FIRST_STEPS) -> dict[str, float]:
        """Seconds of a step (the median), peak bytes, model FLOP/s and their share of the GPU's peak; see
        docs/cluster.md.
        """
        on_gpu = self.device.type == "cuda"
        wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else (lambda: None)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        batch, seconds, result = self.batch(samples), [], None
        for _ in range(repeats + first):
            start = time.perf_counter()
            result = run_step(self.backend, [batch], Collective())
            wait()
            seconds.append(time.perf_counter() - start)
        assert result is not None
        median = statistics.median(seconds[first:])
        flops, peak = self.model.step_flops(batch), peak_flops(self.device, self.precision)
        return {
            "samples": samples,
            "seconds": median,
            "bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_bytes(reset=False),
            "flops": flops / median,
            "mfu": flops / median / peak if peak else float("nan"),
            "loss": float(result.loss_sum) / result.loss_count,
        }

    def largest_batch(self, most: int = MOST_SAMPLES) -> int:
        """Samples that fit into the GPU's memory: peaks of two small batches give the line, which is then followed to
        what the card has. On the CPU `most` itself.
        """
        if self.device.type != "cuda":
            return most
        self.run(2, 1, first=1)
        two, four = (self.run(samples, 1, first=0)["bytes"] for samples in (2, 4))
        room = torch.cuda.get_device_properties(self.device).total_memory * (1 - LEFT_FREE)
        return max(1, min(most, int(4 + (room - four) / max(1.0, (four - two) / 2))))


def clear_memory() -> None:
    """Lets go of what a former model held on the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def measure_real(
    config: str, options: Sequence[str], device: torch.device, repeats: int, samples: int
) -> dict[str, float]:
    """One row at a real size: see `RealStep.run`."""
    clear_memory()
    return RealStep(config, options, device).run(samples, repeats)

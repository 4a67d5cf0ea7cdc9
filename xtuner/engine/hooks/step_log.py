"""The log line: what the steps since the last one cost and brought."""

from __future__ import annotations

import datetime
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook

from xtuner.engine.steps.optim import LAYER
from xtuner.engine.steps.step import StepResult, check_counts
from xtuner.log import get_logger
from xtuner.model.flops import peak_flops

_SOURCE = "loss/"
_LONG_SECONDS = 60
_PROBE_SIDE = 512


class StepLogHook(Hook):
    """Writes a line and the scalars after the first step and every `interval` optimizer steps, over all steps since
    the last line and all ranks.

    Between lines everything is added up on the device; only the steps with a line wait for it.

    Args:
        interval: optimizer steps between lines.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._since = 0.0
        self._saving = 0.0
        self._first = 0
        self._started = 0.0
        self._reset()

    def before_train(self, runner: Any) -> None:
        """Starts the clock."""
        self._started = self._since = time.perf_counter()
        self._first = runner.iter
        self._saving = runner.pause_seconds
        self._reset()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Says how long the first step will take where that is long: on a CPU, with a model of real size."""
        device = runner.plan.environment.device
        if runner.iter != self._first or device.type != "cpu":
            return
        flops = sum(runner.module.step_flops(batch) for batch in data_batch)
        seconds = flops / _cpu_flops_per_second() if flops else 0.0
        if seconds > _LONG_SECONDS and runner.rank == 0:
            get_logger().info(
                "The first step takes %.0f minutes or more: %.1f TFLOP on this CPU. The next line comes after it.",
                seconds / 60,
                flops / 1e12,
            )

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: StepResult | None = None
    ) -> None:
        """Adds the step's numbers; writes where a line is due, always for the last step."""
        assert outputs is not None
        self._add(outputs, runner.train_loop.data_wait)
        self._host["flops"] += sum(runner.module.step_flops(batch) for batch in data_batch)
        step = runner.iter + 1
        if step == self._first + 1 or step % self.interval == 0 or step == runner.max_iters or runner.interrupted:
            scalars = self._summarise(runner, outputs)
            self._write(runner, step, scalars)
            self._since = time.perf_counter()
            self._saving = runner.pause_seconds
            self._reset()

    def _reset(self) -> None:
        self._device: torch.Tensor | None = None
        self._by_source: torch.Tensor | None = None
        self._host = {
            "loss_count": 0.0,
            "samples": 0.0,
            "positions": 0,
            "expected": 0,
            "data_wait": 0.0,
            "flops": 0.0,
            "steps": 0,
        }

    def _add(self, result: StepResult, data_wait: float) -> None:
        numbers = torch.stack([result.loss_sum.double(), result.num_tokens.double(), result.counted.double()])
        self._device = numbers if self._device is None else self._device + numbers
        if result.by_source is not None:
            self._by_source = result.by_source if self._by_source is None else self._by_source + result.by_source
        self._host["loss_count"] += result.loss_count
        self._host["samples"] += result.num_samples
        self._host["positions"] += result.num_positions
        self._host["expected"] += result.expected
        self._host["data_wait"] += data_wait
        self._host["steps"] += 1

    def _summarise(self, runner: Any, result: StepResult) -> dict[str, float]:
        """Brings the sums to the host (the one wait) and turns them into what the line says."""
        assert self._device is not None
        loss, tokens, counted = self._device.tolist()
        elapsed = time.perf_counter() - self._since - (runner.pause_seconds - self._saving)
        check_counts(counted, self._host["expected"])
        loss, tokens, positions, flops = runner.collective.sum(
            [loss, tokens, self._host["positions"], self._host["flops"]]
        )
        steps = self._host["steps"]
        runner.guard.poll(wait=True)  # the device has been waited for already
        # of a rank, so that they compare with the peak of one GPU
        flops_per_second = flops / elapsed / runner.collective.world_size
        peak = peak_flops(runner.plan.environment.device, runner.backend.optimizer.precision.name)
        return {
            "loss": loss / max(1.0, self._host["loss_count"]),
            **_rates(runner.rates()),
            "grad_norm": float("nan") if result.grad_norm is None else float(result.grad_norm),
            "step_time": elapsed / steps,
            "data_wait": self._host["data_wait"] / steps,
            "samples_per_second": self._host["samples"] / elapsed,
            "tokens_per_second": tokens / elapsed,
            "padding_share": 1 - tokens / max(1.0, positions),
            "memory_gb": _peak_memory_gb(runner.plan.environment.device),
            **self._source_losses(runner),
            "tflops_per_second": flops_per_second / 1e12,
            "skipped_steps": runner.guard.skipped,
            **({"mfu": flops_per_second / peak} if peak else {}),
        }

    def _source_losses(self, runner: Any) -> dict[str, float]:
        """Mean loss over the supervised tokens of each source that was seen."""
        names = runner.plan.source_names
        if len(names) < 2:
            return {}
        flat = [0.0] * (2 * len(names)) if self._by_source is None else self._by_source.flatten().tolist()
        sums = runner.collective.sum(flat)
        found = zip(names, sums[: len(names)], sums[len(names) :], strict=True)
        return {f"{_SOURCE}{name}": loss / tokens for name, loss, tokens in found if tokens}

    def _write(self, runner: Any, step: int, scalars: dict[str, float]) -> None:
        per_step = (time.perf_counter() - self._started) / (step - self._first)
        eta = datetime.timedelta(seconds=round(per_step * (runner.max_iters - step)))
        share = scalars["data_wait"] / scalars["step_time"]
        sources = [
            f"{name.removeprefix(_SOURCE)} {loss:.4f}" for name, loss in scalars.items() if name.startswith(_SOURCE)
        ]
        by_source = f" ({', '.join(sources)})" if sources else ""
        use = f"MFU {scalars['mfu']:.1%}" if "mfu" in scalars else f"{scalars['tflops_per_second']:.3f} TFLOP/s"
        skipped = f"  skipped {scalars['skipped_steps']:.0f}" if scalars["skipped_steps"] else ""
        rates = ", ".join(_in_words(runner.rates()))
        get_logger().info(
            f"step {step}/{runner.max_iters}  loss {scalars['loss']:.4f}{by_source}  lr {rates}  "
            f"grad_norm {scalars['grad_norm']:.3f}  step {scalars['step_time']:.3f} s  "
            f"data wait {scalars['data_wait']:.3f} s ({share:.0%})  "
            f"{scalars['samples_per_second']:.2f} samples/s  {scalars['tokens_per_second']:.0f} tokens/s  {use}  "
            f"padding {scalars['padding_share']:.1%}  memory {scalars['memory_gb']:.2f} GB  eta {eta}{skipped}"
        )
        runner.write_scalars({f"train/{name}": value for name, value in scalars.items()}, step)


def _cpu_flops_per_second() -> float:
    """What the CPU makes of a matrix product: an upper bound of what a step reaches."""
    matrix = torch.ones(_PROBE_SIDE, _PROBE_SIDE)
    matrix @ matrix
    start = time.perf_counter()
    matrix @ matrix
    return 2.0 * _PROBE_SIDE**3 / (time.perf_counter() - start)


def _rates(rates: Mapping[str, float]) -> dict[str, float]:
    """Scalars: the first group's rate as ``lr``, and each label's where there are several."""
    several = {f"lr/{label}": rate for label, rate in rates.items()} if len(rates) > 1 else {}
    return {"lr": next(iter(rates.values())), **several}


def _in_words(rates: Mapping[str, float]) -> list[str]:
    """Each label with its rate, or with the lowest and highest of its layers; the rate alone where there is one."""
    if len(rates) == 1:
        return [f"{rate:.3e}" for rate in rates.values()]
    by_entry: dict[str, list[float]] = {}
    for label, rate in rates.items():
        by_entry.setdefault(label.partition(LAYER)[0], []).append(rate)
    return [
        f"{entry} {min(found):.3e}" + ("" if min(found) == max(found) else f" to {max(found):.3e}")
        for entry, found in by_entry.items()
    ]


def _peak_memory_gb(device: torch.device) -> float:
    """Peak of this process in 10^9 bytes: what torch holds on the GPU, or the process's memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

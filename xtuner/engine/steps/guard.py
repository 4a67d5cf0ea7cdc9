"""Steps whose gradient is not finite: skipped by the optimizer, counted here, and an end put to too many in a row."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.model.files.writing import disk_reason

_MAX_WAITING = 8
_SHOWN_IDS = 20


@dataclass
class _Watched:
    step: int
    finite: torch.Tensor
    arrived: Any
    micro_batches: Sequence[Mapping[str, Any]]


class FiniteGuard:
    """Counts the optimizer steps that were skipped because their gradient was infinite or no number.

    Plain torch's fused AdamW and DeepSpeed's engine skip such a step by themselves, on the device; here the host learns
    of it, without waiting for the device: the answer of a step is looked at when it has arrived, a step or so later.
    The gradient's norm is that of all ranks, so all ranks count the same.

    Args:
        work_dir: of the run; the last bad batch is saved below its folder ``non_finite``.
        limit: so many skipped steps in a row are too many.
        rank: of this process.

    Attributes:
        skipped: steps skipped so far.
        in_row: steps skipped since the last good one.
    """

    def __init__(self, work_dir: Path, limit: int, rank: int) -> None:
        self.work_dir = work_dir
        self.limit = limit
        self.rank = rank
        self.skipped = 0
        self.in_row = 0
        self._waiting: deque[_Watched] = deque()
        self._last_bad: _Watched | None = None

    @property
    def exhausted(self) -> bool:
        """True when the limit is reached."""
        return self.in_row >= self.limit

    def watch(
        self, step: int, grad_norm: torch.Tensor | float | None, micro_batches: Sequence[Mapping[str, Any]]
    ) -> None:
        """Takes note of optimizer step `step` (from 1), of its gradient's norm and of what it trained on."""
        if grad_norm is None:
            return
        finite = torch.as_tensor(grad_norm).isfinite()
        arrived = None
        if finite.is_cuda:
            on_host = torch.empty(finite.shape, dtype=finite.dtype, pin_memory=True)
            on_host.copy_(finite, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            finite = on_host
        self._waiting.append(_Watched(step, finite, arrived, micro_batches))
        self.poll()

    def poll(self, wait: bool = False) -> None:
        """Looks at the steps whose answer has arrived; with `wait` at all."""
        while self._waiting:
            first = self._waiting[0]
            if first.arrived is not None and not first.arrived.query():
                if not wait and len(self._waiting) <= _MAX_WAITING:
                    return
                first.arrived.synchronize()
            self._waiting.popleft()
            self._count(first)

    def _count(self, watched: _Watched) -> None:
        if bool(watched.finite):
            self.in_row = 0
            return
        self.skipped += 1
        self.in_row += 1
        self._last_bad = watched
        get_logger().warning(
            "Step %d skipped: its gradient is not finite (%d in a row, %d in total). Samples: %s",
            watched.step,
            self.in_row,
            self.skipped,
            _ids(watched.micro_batches),
        )

    def failure(self) -> XTunerError:
        """Saves this rank's last bad batches and returns the error that ends the run."""
        assert self._last_bad is not None
        bad = self._last_bad
        file = self.work_dir / "non_finite" / f"step_{bad.step}_rank_{self.rank}.pt"
        where = f"The batch is in {file} (read it with torch.load)."
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save([dict(batch) for batch in bad.micro_batches], file)
        except (OSError, RuntimeError) as error:
            where = f"The batch could not be written ({disk_reason(error) or error})."
        return XTunerError(
            f"{self.in_row} steps in a row had a gradient that is not finite, the last at step {bad.step} on samples "
            f"{_ids(bad.micro_batches)} (rank {self.rank}). {where} The "
            "weights of the last good step are saved. Lower lr or max_norm, use precision=bf16 instead of fp16, or "
            "look for faulty samples."
        )


def _ids(micro_batches: Sequence[Mapping[str, Any]]) -> str:
    ids = [str(name) for batch in micro_batches for name in batch.get("sample_ids", ())]
    return ", ".join(ids[:_SHOWN_IDS]) + (" ..." if len(ids) > _SHOWN_IDS else "") if ids else "(without ids)"

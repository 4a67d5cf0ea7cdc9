"""A trace of a few steps, for a look at where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from xtuner.errors import counted
from xtuner.log import get_logger


class ProfileHook(Hook):
    """Records steps `skip` + 1 to `skip` + `steps` of this start of the run, on rank 0, with torch's profiler.

    Leaves ``<work_dir>/profile/trace.json``, for chrome://tracing or https://ui.perfetto.dev, and ``operators.txt``,
    the operators by time.

    Args:
        steps: optimizer steps to record.
        skip: steps before them: the first ones set things up.
    """

    priority = "LOWEST"

    def __init__(self, steps: int = 3, skip: int = 5) -> None:
        self.steps = steps
        self.skip = skip
        self._profiler: Any = None

    def before_train(self, runner: Any) -> None:
        """Starts the profiler, which waits for its steps."""
        if runner.rank != 0:
            return
        # a short run is recorded from its second step on
        skip = min(self.skip, max(0, runner.max_iters - runner.iter - self.steps))
        activities = [torch.profiler.ProfilerActivity.CPU]
        if runner.plan.environment.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        schedule = torch.profiler.schedule(wait=max(0, skip - 1), warmup=min(1, skip), active=self.steps, repeat=1)
        folder = runner.plan.work_dir / "profile"

        sort = "cuda_time_total" if len(activities) > 1 else "cpu_time_total"

        def write(profiler: Any) -> None:
            try:
                _write(profiler, folder, sort)
            except (OSError, RuntimeError) as error:
                # a run does not end for want of a look at it
                get_logger().warning("The profile is not written to %s: %s. The training goes on.", folder, error)
                return
            get_logger().info(
                "Profile of %s in %s (open trace.json at https://ui.perfetto.dev)",
                counted(self.steps, "steps"),
                folder,
            )

        self._profiler = torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write)
        self._profiler.start()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Moves the profiler on by a step."""
        if self._profiler is not None:
            self._profiler.step()

    def after_train(self, runner: Any) -> None:
        """Ends the profiler."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


def _write(profiler: Any, folder: Path, sort: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "trace.json"
    trace.unlink(missing_ok=True)
    profiler.export_chrome_trace(str(trace))
    # torch only prints that a disk was full
    if not trace.is_file() or not trace.read_bytes().rstrip().endswith(b"}"):
        raise OSError(f"'{trace}' is cut off; is the disk full?")
    (folder / "operators.txt").write_text(profiler.key_averages().table(sort_by=sort, row_limit=-1), encoding="utf-8")

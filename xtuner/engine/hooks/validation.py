"""Evaluation during training: the config's benchmarks on the model as it stands, every so many steps."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtuner.engine.checkpoints.checkpoint import capture_rng, restore_rng, set_aside
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.errors import XTunerError
from xtuner.evaluation.benchmarks import find_benchmarks, run_facts
from xtuner.log import get_logger
from xtuner.registry import build

_STEP = re.compile(r"step_(\d+)")


class ValLoop:
    """Asks the model in training the config's benchmarks, without a trace in the training.

    All processes share the questions. Results stand in ``<work_dir>/validation/step_<n>/<benchmark>/`` as `xtuner test`
    writes them, scores go to the visualizers as ``val/<benchmark>`` and ``val/<benchmark>/<axis>/<group>``. Random
    numbers and the model's mode are put back, so that a run with validation trains bit for bit as one without.

    Args:
        cfg: the run's, with ``evaluation`` and ``benchmarks``.
        settings: `val_benchmarks`, `val_limit`.
        work_dir: the run's folder.

    Raises:
        XTunerError: a benchmark that the config does not have, absent files of one that `val_benchmarks` names,
            malformed rows, or nothing to ask.
    """

    def __init__(self, cfg: Any, settings: RuntimeSettings, work_dir: Path) -> None:
        self.cfg = cfg
        self.limit = settings.val_limit
        self.folder = work_dir / "validation"
        self.benchmarks = chosen_benchmarks(cfg, settings.val_benchmarks)
        for benchmark in self.benchmarks:
            # faults of its files now, not after the first hours
            benchmark.questions()
        self._evaluator: Any = None

    def prepare(self, start: int) -> None:
        """Moves results of steps beyond `start` aside: they are of a former run of this folder, on other weights."""
        aside = self.folder.with_name("validation.previous")
        for path in sorted(self.folder.glob("step_*")):
            match = _STEP.fullmatch(path.name)
            if match and (start == 0 or int(match[1]) > start):
                aside.mkdir(exist_ok=True)
                if (aside / path.name).exists():
                    set_aside(aside / path.name)
                path.replace(aside / path.name)

    def is_done(self, step: int) -> bool:
        """Returns whether all benchmarks are scored for `step`."""
        return all((self.folder / f"step_{step}" / one.name / "metrics.json").exists() for one in self.benchmarks)

    def run(self, runner: Any, step: int) -> None:
        """Evaluates; cut short where a process was asked to stop.

        Args:
            runner: in training.
            step: optimizer steps done.
        """
        started = time.perf_counter()
        module, collective = runner.module, runner.collective
        if self._evaluator is None:
            partitioned = any(hasattr(parameter, "ds_id") for parameter in module.parameters())
            self._evaluator = build(self.cfg.evaluation, model=module, collective=collective, lockstep=partitioned)
        random_numbers = capture_rng()
        module.eval()
        scores: dict[str, Mapping[str, Any]] = {}
        try:
            with runner.backend.evaluating():
                for benchmark in self.benchmarks:
                    scores[benchmark.name] = self._ask(benchmark, runner, step)
                    if collective.sum([float(runner.stop_requested)])[0]:
                        get_logger().warning("validation at step %d ends early because a stop was requested", step)
                        break
        finally:
            module.train()
            restore_rng(random_numbers)
        seconds = time.perf_counter() - started
        runner.pause_seconds += seconds
        runner.rate_run(step, self._write(runner, step, scores, seconds))

    def _ask(self, benchmark: Any, runner: Any, step: int) -> Mapping[str, Any]:
        """One benchmark's metrics, on rank 0."""
        folder = self.folder / f"step_{step}" / benchmark.name
        facts = {**run_facts(self.cfg, benchmark.name), "step": step}
        try:
            return self._evaluator.run(
                benchmark,
                folder,
                facts,
                limit=self.limit,
                should_stop=lambda: runner.stop_requested,
                # the training's own bar is there
                progress=False,
            )
        except OSError as error:
            # with other processes in the middle of their questions, this one cannot go on alone
            if runner.collective.world_size > 1:
                raise XTunerError(f"validation at step {step}: {folder} cannot be written: {error}.") from error
            get_logger().error("validation at step %d, %s: cannot be written: %s", step, benchmark.name, error)
            return {}
        except XTunerError as error:
            # a night's training is worth more than one number: pictures that vanished are named, the run goes on
            get_logger().error("validation at step %d, %s: %s", step, benchmark.name, error)
            return {}

    def _write(
        self, runner: Any, step: int, scores: Mapping[str, Mapping[str, Any]], seconds: float
    ) -> dict[str, float]:
        """Sends the scores to log and visualizers; returns them by name."""
        scalars: dict[str, float] = {}
        for name, metrics in scores.items():
            if metrics.get("overall") is None:
                continue
            scalars[f"val/{name}"] = metrics["overall"]
            for axis, groups in metrics.get("groups", {}).items():
                scalars |= {f"val/{name}/{axis}/{group}": score for group, score in groups.items()}
        if scalars:
            runner.write_scalars(scalars, step)
            words = [f"{name} {scores[name]['overall']:.1%}" for name in scores if f"val/{name}" in scalars]
            get_logger().info("validation at step %d: %s, in %.1f s", step, ", ".join(words), seconds)
        return scalars


def chosen_benchmarks(cfg: Any, names: Sequence[str] | None) -> list[Any]:
    """Returns the benchmarks to validate on.

    Args:
        cfg: with ``benchmarks``.
        names: which of them; None = all whose files are there.

    Raises:
        XTunerError: a name that the config does not have, absent files of a named one, or none is left.
    """
    asked = None if names is None else ",".join(names)
    found, missing = find_benchmarks(cfg.get("benchmarks") or (), asked)
    if missing and names is not None:
        absent = "; ".join(f"{name}: {', '.join(paths)}" for name, paths in missing.items())
        raise XTunerError(
            f"val_benchmarks names benchmarks whose files are absent: {absent}. Get the files, or remove the names."
        )
    if not found:
        raise XTunerError(
            "val_interval is set, but none of the config's benchmarks has its files: name some in "
            "val_benchmarks to see which are absent, or set val_interval to None."
        )
    return found

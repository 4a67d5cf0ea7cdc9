"""The account of samples that are left out: counted, listed in a file, and the run stopped where many are faulty."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from xtuner.data.batches.bad_samples import BadSample
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_FILE = "bad_samples.jsonl"
_FEWEST_SEEN = 1000


class BadSampleHook(Hook):
    """Collects what the batches' ``bad_samples`` say, of all ranks, every `interval` optimizer steps.

    The run's folder gets ``bad_samples.jsonl``, a line per sample; samples that were bad again are listed again. Those
    that teach nothing (`BadSample.is_fault` False) are listed and counted apart, without a limit.

    Args:
        interval: optimizer steps between looks; the ranks exchange nothing in between.
        limit: most bad samples as a share of those seen since the start, of 1000 where they are fewer.
    """

    priority = "LOW"

    def __init__(self, interval: int, limit: float) -> None:
        self.interval = interval
        self.limit = limit
        self.kinds: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.seen = 0
        self._new: list[BadSample] = []
        self._new_seen = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Takes note; writes and checks where it is time, always after the last step.

        Raises:
            XTunerError: more samples are bad than the limit allows.
        """
        for micro_batch in data_batch:
            self._new += micro_batch.get("bad_samples", ())
            self._new_seen += len(micro_batch["labels"])
        step = runner.iter + 1
        if step % self.interval == 0 or step == runner.max_iters or runner.interrupted:
            self._account(runner, step)

    def _account(self, runner: Any, step: int) -> None:
        ranks = runner.collective.gather(([dataclasses.asdict(bad) for bad in self._new], self._new_seen))
        self._new, self._new_seen = [], 0
        found = [bad for some, _ in ranks for bad in some]
        self.seen += sum(seen for _, seen in ranks)
        if not found:
            return
        path = runner.plan.work_dir / _FILE
        if runner.rank == 0:
            _list(found, step, path)
        faults = [bad for bad in found if bad["is_fault"]]
        self.kinds.update(bad["kind"] for bad in faults)
        self.left_out.update(bad["kind"] for bad in found if not bad["is_fault"])
        if len(faults) < len(found):
            get_logger().info(
                "step %d: records that teach nothing, left out: %d, in total %s; see %s",
                step,
                len(found) - len(faults),
                _in_total(self.left_out),
                path,
            )
        if not faults:
            return
        get_logger().warning(
            "step %d: bad samples replaced: %d, in total %s; see %s", step, len(faults), _in_total(self.kinds), path
        )
        if (total := self.kinds.total()) > self.limit * max(self.seen, _FEWEST_SEEN):
            raise XTunerError(
                f"{total:,} of {self.seen:,} samples could not be read ({_kinds(self.kinds)}), more than "
                f"bad_sample_limit={self.limit:g} allows. {path} lists them. The last one: {faults[-1]['message']} "
                "Repair the data (`xtuner check-dataset CONFIG` finds every fault), or raise the limit."
            )


def _list(found: Sequence[Mapping[str, Any]], step: int, path: Path) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step, **bad}, ensure_ascii=False) + "\n" for bad in found)
    except OSError as error:
        get_logger().error("%s could not be written: %s. Training continues.", path, error.strerror or error)


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())


def _in_total(counts: Counter[str]) -> str:
    return f"{counts.total()} ({_kinds(counts)})"

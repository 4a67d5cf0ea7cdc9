"""The account of samples that could not be read: counted, listed in a file, and the run stopped where they are many."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from mmengine.hooks import Hook

from xtuner.data.batches.bad_samples import BadSample
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_FILE = "bad_samples.jsonl"
_FEWEST_SEEN = 1000


class BadSampleHook(Hook):
    """Collects what the batches' ``bad_samples`` say, of all ranks, every `interval` optimizer steps.

    The run's folder gets ``bad_samples.jsonl``, a line per bad sample; samples that were bad again are listed again.

    Args:
        interval: optimizer steps between looks; the ranks exchange nothing in between.
        limit: most bad samples as a share of those seen since the start, of 1000 where they are fewer.
    """

    priority = "LOW"

    def __init__(self, interval: int, limit: float) -> None:
        self.interval = interval
        self.limit = limit
        self.kinds: Counter[str] = Counter()
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
        self.kinds.update(bad["kind"] for bad in found)
        if not found:
            return
        path = runner.plan.work_dir / _FILE
        if runner.rank == 0:
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.writelines(json.dumps({"step": step, **bad}, ensure_ascii=False) + "\n" for bad in found)
            except OSError as error:
                get_logger().error("%s could not be written: %s. Training continues.", path, error.strerror or error)
        total = self.kinds.total()
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        get_logger().warning(
            "step %d: bad samples replaced: %d, in total %d (%s); see %s", step, len(found), total, kinds, path
        )
        if total > self.limit * max(self.seen, _FEWEST_SEEN):
            raise XTunerError(
                f"{total:,} of {self.seen:,} samples could not be read ({kinds}), more than bad_sample_limit="
                f"{self.limit:g} allows. {path} lists them. The last one: {found[-1]['message']} Repair the data "
                "(`xtuner check-dataset CONFIG` finds every fault), or raise the limit."
            )

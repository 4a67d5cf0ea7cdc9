"""Run by torchrun on two ranks: trains on a stream, whole and from the middle; each rank lists its samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from tests.mg_llava.hf.test_families import CONFIG
from xtuner.config import load_config, parse_overrides

STEPS, HALF, BATCH = 7, 3, 2


class SeenHook(Hook):
    """Writes the samples of every step into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        with self.file.open("a") as lines:
            for micro_batch in data_batch:
                lines.write(json.dumps(micro_batch["sample_ids"]) + "\n")


def train(folder: Path, name: str, options: Sequence[str], resume: Path | None = None) -> None:
    """Trains on the stream that `options` name, in ``<folder>/<name>``."""
    from xtuner.engine.assemble import assemble
    from xtuner.engine.processes.environment import setup_environment

    environment = setup_environment(None)
    cfg = load_config(CONFIG, parse_overrides(list(options)))
    work_dir = folder / name
    runner = assemble(cfg, name, work_dir, environment, None, None if resume is None else str(resume))
    runner.register_hook(SeenHook(folder / f"{name}_{environment.rank}.jsonl"))
    runner.train()


def main(folder: Path) -> None:
    """Leaves for each case of ``cases.json`` a whole run and one that goes on in its middle."""
    for name, options in json.loads((folder / "cases.json").read_text()).items():
        train(folder, name, options)
        train(folder, f"{name}_again", options, folder / name / f"iter_{HALF}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

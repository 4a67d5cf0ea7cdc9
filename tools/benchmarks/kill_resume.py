"""Kills runs on two ranks with -9 at random moments, resumes them, and compares the final weights bit for bit.

Usage: ``python tools/benchmarks/kill_resume.py [--kills 10] [--modes none zero1 zero2 zero3] [--async-save]``

A small model with dropout trains on two CPU ranks, two micro-batches a step, a checkpoint every three steps. For each
mode an unbroken run comes first; then, for each kill, a new run is killed after a random sample (in mid-step and
mid-accumulation as it falls) and resumed by ``auto`` to its end. The ranks are forks of this process, so that a run
takes seconds although its libraries take ten to import.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where not installed

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.xtuner.engine.toy import ToyDataset, train_toy  # noqa: E402
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder, step_of  # noqa: E402
from xtuner.engine.strategies import deepspeed as strategy  # noqa: E402, F401  (imported before the forks, which then need not)
from xtuner.model.files.weight_files import read_state_dict  # noqa: E402

RANKS, STEPS, GRAD_ACCUM, BATCH = 2, 14, 2, 2
SAMPLES_PER_STEP = GRAD_ACCUM * BATCH
SIZE = 27
"""Samples: seven steps an epoch, so that the run is in its second one for half the time."""

MODES = ("none", "zero1", "zero2", "zero3")
_seen = multiprocessing.get_context("fork").Value("i", 0)


class CountingDataset(ToyDataset):
    """The toy's data; counts what rank 0 has read."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if os.environ.get("RANK") == "0":
            _seen.value += 1
        return super().__getitem__(index)


def train_rank(rank: int, port: int, work_dir: Path, mode: str, resume: str | None, options: dict[str, Any]) -> None:
    """What a forked process does."""
    log = open(work_dir.with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115  (stays open as standard error)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    environ = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environ.items()})
    torch.set_num_threads(1)
    train_toy(
        work_dir,
        None if mode == "none" else f"deepspeed_{mode}",
        resume=resume,
        launcher="pytorch",
        max_iters=STEPS,
        save_steps=3,
        size=SIZE,
        batch_size=BATCH,
        accumulative_counts=GRAD_ACCUM,
        dropout=0.3,
        delay=0.01,
        dataset=CountingDataset,
        **options,
    )


def launch(
    work_dir: Path, mode: str, options: dict[str, Any], resume: str | None = None, kill_after: int | None = None
) -> bool:
    """Trains on two forked ranks; kills both once rank 0 has read `kill_after` samples. True if it ran to its end."""
    context = multiprocessing.get_context("fork")
    _seen.value = 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = [
        context.Process(target=train_rank, args=(rank, port, work_dir, mode, resume, options)) for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    if kill_after is not None:
        while _seen.value < kill_after and all(process.is_alive() for process in ranks):
            time.sleep(0.0005)
        # one first: the other is somewhere in its step, or waits
        for process in random.sample(ranks, len(ranks)):
            os.kill(process.pid or 0, signal.SIGKILL)
    for process in ranks:
        process.join()
    return all(process.exitcode == 0 for process in ranks)


@dataclass
class Outcome:
    """One kill: at which sample of which step, from where it went on, whether the weights are the same."""

    mode: str
    step: int
    sample: int
    resumed_from: str
    identical: bool


def equal_weights(first: Path, second: Path) -> bool:
    """True when two checkpoints hold the same trained weights, bit for bit."""
    ours, theirs = read_state_dict(first), read_state_dict(second)
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def kill_once(folder: Path, mode: str, number: int, unbroken: Path, options: dict[str, Any]) -> Outcome:
    """Kills one run and resumes it."""
    work_dir = folder / f"{mode}_{number}"
    work_dir.mkdir()
    kill_after = random.randint(1, STEPS * SAMPLES_PER_STEP - 1)
    ended = launch(work_dir, mode, options, kill_after=kill_after)
    latest = CheckpointFolder(work_dir).latest()
    assert not ended or (latest is not None and step_of(latest) == STEPS), "killed, but it says that it ended"
    finished = launch(work_dir, mode, options, resume="auto")
    identical = finished and equal_weights(work_dir / f"iter_{STEPS}.pth", unbroken)
    step, sample = divmod(kill_after, SAMPLES_PER_STEP)
    return Outcome(mode, step, sample, latest.name if latest else "the start", identical)


def run(kills: int, modes: list[str], async_save: bool, seed: int, folder: Path) -> list[Outcome]:
    """Does all kills; returns one outcome each."""
    random.seed(seed)
    options = {"async_save": async_save}
    outcomes = []
    for mode in modes:
        whole = folder / mode
        whole.mkdir()
        if not launch(whole, mode, options):
            raise SystemExit(f"the unbroken run of {mode} failed:\n{whole.with_suffix('.log').read_text()[-3000:]}")
        for number in range(kills):
            outcomes.append(kill_once(folder, mode, number, whole / f"iter_{STEPS}.pth", options))
            print(outcomes[-1], flush=True)
    return outcomes


def main() -> int:
    """Prints one row per mode; exit code 1 where a resumed run ended with other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each mode (default: 10)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--async-save", action="store_true", help="checkpoints are written beside the training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(args.kills, args.modes, args.async_save, args.seed, Path(folder))
    table = Table("mode", "kills", "identical weights", "killed after steps", "went on from")
    for mode in args.modes:
        of_mode = [outcome for outcome in outcomes if outcome.mode == mode]
        steps = ", ".join(f"{o.step}+{o.sample}/{SAMPLES_PER_STEP}" for o in of_mode)
        sources = ", ".join(o.resumed_from.removeprefix("iter_").removesuffix(".pth") for o in of_mode)
        table.add_row(mode, str(len(of_mode)), str(sum(o.identical for o in of_mode)), steps, sources)
    Console(width=160).print(table)
    total = sum(outcome.identical for outcome in outcomes)
    print(f"{total} of {len(outcomes)} ended with the weights of the unbroken run")
    return 0 if total == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

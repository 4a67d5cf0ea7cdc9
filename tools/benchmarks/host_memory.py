"""Host memory while two ranks load and partition a model, against one rank: is the model there once or twice?

Usage: ``python tools/benchmarks/host_memory.py [--mode zero3] [--parameters 400]``

A Llama of the given millions of parameters is saved once; then one rank and two ranks build it for training under the
mode (none, zero1, zero2, zero3) on the CPU and take one step's worth of engine set-up. Printed is the peak of all
ranks together (proportional set size, which counts a shared page once), beyond what the libraries take before the
model is built. On the CPU the weights' final place is host memory too, so under none, zero1 and zero2 each rank has to
hold its own copy; zero3 splits them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where not installed

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch  # noqa: E402

WIDTH, VOCABULARY = 1024, 32000


def shared_bytes() -> int:
    """Proportional set size of this process (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024


class Watch:
    """Peak of `shared_bytes` since it was made, beyond that at its start; looked at every 20 ms."""

    def __init__(self) -> None:
        self.start = self.peak = shared_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, shared_bytes())

    def end(self) -> int:
        """Stops; returns the peak beyond the start, in bytes."""
        self._stop.set()
        self._thread.join()
        return max(self.peak, shared_bytes()) - self.start


def write_model(folder: Path, millions: int) -> int:
    """Saves a random Llama; returns its bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    per_layer = 4 * WIDTH * WIDTH + 3 * WIDTH * 4 * WIDTH
    layers = max(1, round((millions * 1e6 - 2 * VOCABULARY * WIDTH) / per_layer))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=16,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(parameter.numel() * 4 for parameter in model.parameters())


def load_as_rank(folder: Path, mode: str) -> None:
    """What each rank does: build, partition; prints its peak."""
    from deepspeed import initialize

    from xtuner.engine.processes.environment import Collective, join_deepspeed, setup_environment
    from xtuner.engine.steps.precision import Precision
    from xtuner.engine.strategies.deepspeed_settings import engine_config, read_deepspeed
    from xtuner.model.llm import build_llm
    from xtuner.model.placement import partition_while_loading

    setup_environment("pytorch")
    join_deepspeed()
    collective = Collective()
    collective.barrier()
    watch = Watch()
    settings: dict[str, Any] = read_deepspeed(f"deepspeed_{mode}") if mode != "none" else {}
    partitioning = partition_while_loading(settings, 1, "fp32") if mode == "zero3" else None
    model = build_llm(str(folder)).requires_grad_(False)
    del partitioning
    head = torch.nn.Linear(WIDTH, WIDTH)
    whole = torch.nn.ModuleDict({"llm": model, "head": head})  # frozen LLM, trained connector: stage 1
    if mode != "none":
        config = engine_config(settings, Precision("fp32"), None, 1, 1, on_gpu=False)
        initialize(model=whole, optimizer=torch.optim.AdamW(head.parameters()), config=config)
    collective.barrier()
    time.sleep(0.1)
    print(f"PEAK {watch.end()}", flush=True)
    collective.barrier()


def measure(folder: Path, mode: str, ranks: int) -> int:
    """Returns the peak of `ranks` ranks together."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run([*launch, __file__, "--mode", mode, "--rank-of", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return sum(int(line.split("PEAK ")[1]) for line in done.stdout.splitlines() if "PEAK " in line)


def main() -> None:
    """Prints peak memory of one rank and of two, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("none", "zero1", "zero2", "zero3"), default="zero3")
    parser.add_argument("--parameters", type=int, default=400, metavar="MILLIONS", help="default: 400")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        load_as_rank(args.rank_of, args.mode)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write_model(Path(folder), args.parameters)
        one, two = (measure(Path(folder), args.mode, ranks) for ranks in (1, 2))
    print(
        f"weights {size / 1e9:.2f} GB, {args.mode}: one rank {one / 1e9:.2f} GB, two ranks {two / 1e9:.2f} GB together"
    )
    print(f"two ranks take {two / one:.2f} x the memory of one")


if __name__ == "__main__":
    main()

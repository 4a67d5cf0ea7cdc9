"""A training step on an idle machine and beside other programs: how OpenMP's threads wait.

    python tools/benchmarks/busy_machine.py [--config configs/tiny/tiny_pretrain.py] [--steps 60] [--busy 0 2]

It needs the tiny world (``python tools/tiny_world/make.py``). ``spinning`` is how OpenMP waits by itself, ``xtuner``
what the program sets (`xtuner.threads`). Busy programs are loops in Python, one per core at most. Beside as many of
them as there are cores, a fair system leaves each thread half a core: the step takes twice as long at least.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
WAYS: dict[str, dict[str, str]] = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "xtuner": {}}
"""Variables of each; the first is libgomp's own number where there is a core for each thread."""
_INTERVAL = 10


def step_seconds(config: str, steps: int, variables: dict[str, str]) -> float:
    """Median step of a training, the first line left out."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"max_iters={steps}", f"logging_interval={_INTERVAL}", "save_steps=100000", "visualizers=[]"]
        command = [sys.executable, "-m", "xtuner", "train", config, "--work-dir", folder, "--cfg-options", *settings]
        done = subprocess.run(
            command, cwd=ROOT, env={**environ, **variables}, capture_output=True, text=True, check=True
        )
    found = [float(seconds) for seconds in re.findall(r"step (\d+\.\d+) s", " ".join(done.stderr.split()))]
    return statistics.median(found[1:])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny/tiny_pretrain.py")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    args = parser.parse_args()
    table = Table("busy programs", *(f"{way}: s a step" for way in WAYS), *(f"{way}: against idle" for way in WAYS))
    idle: dict[str, float] = {}
    for count in args.busy:
        programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            found = {way: step_seconds(args.config, args.steps, variables) for way, variables in WAYS.items()}
        finally:
            for program in programs:
                program.kill()
        idle = idle or found
        ratios = [f"{found[way] / idle[way]:.2f}x" for way in WAYS]
        table.add_row(str(count), *(f"{seconds:.3f}" for seconds in found.values()), *ratios)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()

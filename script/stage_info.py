"""Tells the shell scripts what they need of a config, after checking it: mistakes show before training.

python script/stage_info.py [--need-files | --benchmarks] CONFIG [k=v ...]

Prints the config's name and its `deepspeed` setting, a line each. With --need-files it exits 1 where files of
the training are absent. With --benchmarks it prints instead, tab-separated and a line per benchmark,
"present NAME" or "missing NAME FILES".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where not installed

from mmengine.config import Config  # noqa: E402

from xtuner.config import load_config, parse_overrides  # noqa: E402
from xtuner.engine.preflight import missing_files  # noqa: E402
from xtuner.errors import ProblemsError, XTunerError  # noqa: E402
from xtuner.registry import build  # noqa: E402


def benchmark_lines(config: Config) -> list[str]:
    """Returns a tab-separated line for each benchmark of `config`."""
    lines = []
    for node in config.get("benchmarks") or ():
        absent = ", ".join(str(path) for path in build(node).missing_files())
        lines.append(f"missing\t{node['name']}\t{absent}" if absent else f"present\t{node['name']}\t")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--need-files", action="store_true")
    parser.add_argument("--benchmarks", action="store_true")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="k=v")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config, parse_overrides(args.overrides))
        # benchmarks may be absent: the scripts skip them
        training = {key: value for key, value in config.items() if not key.startswith("benchmark")}
        absent = missing_files(training) if args.need_files else []
        if absent:
            raise ProblemsError(f"the files of {args.config} (see docs/dataset_prepare.md)", absent)
        lines = (
            benchmark_lines(config)
            if args.benchmarks
            else [Path(config.filename).stem, config.get("deepspeed") or ""]
        )
    except XTunerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

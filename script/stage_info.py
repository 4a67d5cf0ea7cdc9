"""Checks a config and tells the shell scripts what they need from it, so that mistakes show before training.

python script/stage_info.py [--need-files] CONFIG [k=v ...]

Prints the config's name and its `deepspeed` setting, one per line. With --need-files, it exits with 1 if training
files are missing.

Old versions of Python must be able to read this file: importing xtuner refuses them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where not installed


from xtuner.config import load_config, parse_overrides  # noqa: E402
from xtuner.engine.preflight import missing_training_files  # noqa: E402
from xtuner.errors import ProblemsError, XTunerError  # noqa: E402


def main(argv: "Sequence[str] | None" = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check a config, print its name and DeepSpeed setting.")
    parser.add_argument("--need-files", action="store_true")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="k=v")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config, parse_overrides(args.overrides))
        absent = missing_training_files(config) if args.need_files else []
        if absent:
            raise ProblemsError(f"the files of {args.config} (see docs/dataset_prepare.md)", absent)
    except XTunerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{Path(config.filename).stem}\n{config.get('deepspeed') or ''}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

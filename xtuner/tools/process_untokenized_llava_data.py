"""XTuner's name for ``xtuner preprocess llava``.

python xtuner/tools/process_untokenized_llava_data.py CONFIG --save-folder PATH
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``xtuner preprocess llava`` with the arguments of XTuner's script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Same as: xtuner preprocess llava --config CONFIG --out PATH")
    parser.add_argument("config", help="path or name of the config whose train_dataset is prepared")
    parser.add_argument("--save-folder", required=True, help="folder to create")
    parser.add_argument("--num-proc", type=int, help="number of processes (default: depends on the file size)")
    from xtuner.tools.support.arguments import add_cfg_options

    add_cfg_options(parser)
    args = parser.parse_args(argv)

    from xtuner.cli import main as xtuner

    command = ["preprocess", "llava", "--config", args.config, "--out", args.save_folder]
    if args.num_proc is not None:
        command += ["--num-proc", str(args.num_proc)]
    if args.cfg_options:
        command += ["--cfg-options", *args.cfg_options]
    return xtuner(command)


if __name__ == "__main__":
    # not the script's own folder: there `test`, `chat`, ... would hide modules of other packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.exit(main())

"""``xtuner convert universal CHECKPOINT TARGET``: a DeepSpeed checkpoint that any number of processes can resume."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from xtuner.errors import XTunerError

HELP = "a ZeRO-1 or ZeRO-2 checkpoint to DeepSpeed's universal format, which any number of processes can resume"

_SCRIPT = """
import runpy
import deepspeed
from xtuner.model.files.pickles import restricted_loading
with restricted_loading():
    runpy.run_module("deepspeed.checkpoint.ds_to_universal", run_name="__main__", alter_sys=True)
"""
"""DeepSpeed's own script, in a process in which no file can run code."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert universal``."""
    parser.add_argument("checkpoint", help="iter_*.pth folder of a run under ZeRO-1 or ZeRO-2")
    parser.add_argument("target", help="folder to write; then run xtuner train ... --resume TARGET")


def run(args: argparse.Namespace) -> int:
    """Converts by DeepSpeed's own script; returns the exit code."""
    from xtuner.engine.checkpoints.integrity import TRAINER_FILE, check_resumable_form
    from xtuner.log import get_logger
    from xtuner.model.files.checkpoints import save_file_atomic
    from xtuner.model.files.pickles import check_pickles, load_pickle, pickles_in

    source, target = Path(args.checkpoint), Path(args.target)
    if not source.is_dir():
        raise XTunerError(f"'{source}' is not a folder: only checkpoints of runs under DeepSpeed need this conversion.")
    check_resumable_form(source)
    if any(source.glob("zero_pp_rank_*model_states.pt")):
        # measured with DeepSpeed 0.19: weights three steps on were off by 2e-4, without a warning
        raise XTunerError(
            f"{source} is a ZeRO-3 checkpoint, whose optimizer DeepSpeed does not convert exactly. Resume it with as "
            f"many processes as wrote it, or start a new run from its weights: --cfg-options pretrained_pth={source}"
        )
    if target.exists():
        raise XTunerError(f"'{target}' exists: choose a new folder, nothing was overwritten.")
    trainer = load_pickle(source / TRAINER_FILE)["trainer"]
    check_pickles(pickles_in(source))

    # stages 1 and 2 leave out what the script looks for
    command = [sys.executable, "-c", _SCRIPT, "--inject_missing_state"]
    done = subprocess.run(
        [*command, "--input_folder", str(source), "--output_folder", str(target)], capture_output=True, text=True
    )
    if done.returncode:
        raise XTunerError(f"DeepSpeed could not convert {source}: {done.stderr.strip().splitlines()[-1]}")
    trainer.pop("files", None)
    # last: a folder with it is complete
    save_file_atomic({"trainer": trainer}, target / TRAINER_FILE)
    facts = {"steps": trainer["iter"], "samples per step": trainer["global_batch"]}
    get_logger().info(
        "%s: %s. Resume with --resume %s and keep the samples per step.", target, json.dumps(facts), target
    )
    return 0

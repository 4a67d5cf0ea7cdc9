"""``xtuner train CONFIG``: trains what a config describes, on one process or many."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.tools.support.arguments import add_cfg_options

LAUNCHERS = ("none", "pytorch", "slurm")

EXIT_INTERRUPTED = 75
"""Exit code after a signal: all is saved, ``--resume auto`` goes on (sysexits' "try again later")."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner train``."""
    parser.description = (
        "Train a model. With NPROC_PER_NODE > 1 (or NNODES > 1, with NODE_RANK, ADDR, PORT) in the "
        "environment, the command starts itself under torchrun. Exit code: 0 when trained, "
        f"{EXIT_INTERRUPTED} when a signal stopped the run after a save, 1 on an error."
    )
    parser.add_argument("config", help="name or path of a config; 'xtuner list-cfg' shows the shipped ones")
    parser.add_argument("--work-dir", help="folder for checkpoints and logs (default: work_dirs/<config name>)")
    parser.add_argument(
        "--deepspeed",
        metavar="NAME",
        help="deepspeed_zero{1,2,3}[_offload] or a JSON file (default: no DeepSpeed)",
    )
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, help="what started the processes (default: read from the environment)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from a checkpoint; 'auto' takes the newest, if any",
    )
    parser.add_argument(
        "--start-anew",
        action="store_true",
        help="move an earlier run in the folder aside (NAME.1, NAME.2, ...) and start from the beginning",
    )
    parser.add_argument("--seed", type=int, help="seed of all random numbers (default: the config's)")
    parser.add_argument(
        "--profile",
        nargs="?",
        type=int,
        const=3,
        default=0,
        metavar="STEPS",
        help="record a trace of this many steps (default: 3) in the run's folder",
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit code."""
    if args.start_anew and args.resume is not None:
        raise XTunerError("--resume continues an earlier run, --start-anew moves it aside: give one of them.")
    # 1. several processes asked for by environment variables: start them by torchrun
    from xtuner.launch import run_ranks, torchrun_command

    command = torchrun_command(_to_argv(args), os.environ) if args.launcher != "slurm" else None
    if command is not None:
        return run_ranks(command, os.environ)

    # 2. the config, with every mistake in it at once
    from xtuner.config import config_name, load_config, parse_overrides

    overrides = parse_overrides(args.cfg_options)
    if args.seed is not None:
        overrides["seed"] = args.seed
    cfg = load_config(args.config, overrides)
    name = config_name(cfg.filename)

    # 3. what it needs, before anything is built
    from xtuner.engine.preflight import preflight

    work_dir = Path(args.work_dir or Path("work_dirs") / name)
    preflight(cfg, name, args.deepspeed, args.resume, work_dir, args.start_anew)

    # 4. this process among the others, of which the first holds the folder
    from xtuner.engine.checkpoints.former import claimed
    from xtuner.engine.processes.environment import place_among
    from xtuner.engine.processes.peers import join_peers
    from xtuner.engine.processes.signals import second_signal_ends

    rank, world_size, _ = place_among(args.launcher)
    with second_signal_ends(), claimed(work_dir, args.start_anew, os.environ) if rank == 0 else nullcontext():
        peers = join_peers(rank, world_size, os.environ)
        with nullcontext() if peers is None else peers.naming_the_dead():
            code = _train(args, cfg, name, work_dir)
    if peers is not None:
        peers.leave()
    return code


def _train(args: argparse.Namespace, cfg: Any, name: str, work_dir: Path) -> int:
    """Trains in a folder that is ours; returns the exit code."""
    # 5. the data: one process prepares it, where that is to be done, and no other waits for it under a time limit
    from xtuner.config import dump_config
    from xtuner.engine.processes.environment import close_environment, setup_environment
    from xtuner.launch import leave_exit_code
    from xtuner.log import get_logger
    from xtuner.registry import build

    dataset = build(cfg.train_dataset)

    # 6. the processes meet
    environment = setup_environment(args.launcher, always_group=args.deepspeed is not None)
    if environment.rank == 0:
        dump_config(cfg.as_written, work_dir / f"{name}.py")
        dump_config(cfg, work_dir / f"{name}_resolved.py")

    # 7. model, optimizer, runner
    from xtuner.engine.assemble import assemble, finished_step
    from xtuner.tools.support.out_of_memory import explain_out_of_memory

    done = finished_step(cfg, work_dir, environment, args.resume, dataset) if args.resume else None
    if done is not None:
        get_logger().info("%s is finished (step %d): nothing to do", work_dir, done)
        close_environment()
        return 0
    with explain_out_of_memory(cfg, args.deepspeed, environment.world_size):
        runner = assemble(cfg, name, work_dir, environment, args.deepspeed, args.resume, dataset, args.profile)

        # 8. train
        runner.train()
    interrupted = runner.interrupted
    if interrupted:
        if environment.local_rank == 0:  # one on each machine, whose launcher may see no other's files
            leave_exit_code(EXIT_INTERRUPTED, os.environ)
        runner.collective.barrier()
    # it holds the process group, whose threads must end before the interpreter does
    del runner
    close_environment()
    return EXIT_INTERRUPTED if interrupted else 0


def _to_argv(args: argparse.Namespace) -> list[str]:
    """Writes the arguments out again, for a process that torchrun starts."""
    argv = ["train", args.config, "--launcher", "pytorch"]
    options: dict[str, Any] = {
        "--work-dir": args.work_dir,
        "--deepspeed": args.deepspeed,
        "--resume": args.resume,
        "--seed": args.seed,
        "--profile": args.profile or None,
    }
    for option, value in options.items():
        if value is not None:
            argv += [option, str(value)]
    argv += ["--start-anew"] if args.start_anew else []
    return argv + (["--cfg-options", *args.cfg_options] if args.cfg_options else [])

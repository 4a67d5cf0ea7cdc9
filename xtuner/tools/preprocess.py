"""``xtuner preprocess``: work on the data that is done once, before training."""

from __future__ import annotations

import argparse
from typing import Any

from xtuner.config import load_config, parse_overrides
from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.registry import resolve_type
from xtuner.tools.support.arguments import add_cfg_options

_CONFIG = "fuse_vicuna7b_clip_L_14_336_sft_padding"
"""Of which the settings are taken where only records are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the kinds of preparation as sub-commands."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    llava = kinds.add_parser(
        "llava",
        help="tokenise LLaVA records into a folder that training opens instantly",
        description="Tokenise the records of a config's train_dataset into a memory-mapped folder. Set "
        "offline_processed_text_folder to that folder to train from it.",
    )
    llava.add_argument("--config", required=True, help="path or name of the config whose train_dataset is prepared")
    llava.add_argument(
        "--out", required=True, help="folder to create; one that was made with the same settings is kept"
    )
    llava.add_argument("--num-proc", type=int, help="number of processes (default: depends on the file size)")
    add_cfg_options(llava)
    video = kinds.add_parser(
        "video",
        help="sample the frames of videos and keep them, so that training does not decode videos",
        description="Sample the frames of all videos that records name, as frame_sampling says, and keep them as "
        "pictures. Set frame_cache to that folder to train, check or browse with them. A run that was interrupted "
        "continues where it stopped.",
    )
    video.add_argument("--config", help="path or name of the config whose train_dataset and frame_sampling are meant")
    video.add_argument(
        "--data",
        metavar="DATA",
        help="records whose videos are meant instead: JSON, Parquet, Arrow, WebDataset or hf://owner/name",
    )
    video.add_argument("--image-folder", metavar="DIR", help="folder or archive of the videos that records name")
    video.add_argument("--out", required=True, metavar="DIR", help="folder to create or to complete")
    video.add_argument(
        "--format",
        choices=("jpeg", "png"),
        default="jpeg",
        help="jpeg (default), or png: bit for bit, several times the size",
    )
    video.add_argument("--quality", type=int, default=95, metavar="N", help="of jpeg, 1 to 100 (default: 95)")
    video.add_argument("--num-proc", type=int, metavar="N", help="number of processes (default: one a core)")
    add_cfg_options(video)
    boxes = kinds.add_parser(
        "boxes",
        help="find boxes in the pictures of a data set",
        description="Run a detector on every picture of a data set and write the box file that training "
        "reads. To use 8 GPUs, run torchrun --nproc_per_node 8 tools/generate_boxes.py with the same arguments. A run "
        "that was interrupted continues where it stopped.",
    )
    add_box_arguments(boxes)


def add_box_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner preprocess boxes``."""
    parser.add_argument(
        "--config", default="owlv2", help="config that defines a `detector` (default: owlv2); see configs/boxes"
    )
    parser.add_argument(
        "--image-folder",
        metavar="DIR",
        help="folder that picture paths are relative to, or archives of pictures; not needed where the data holds them",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="records whose pictures get boxes: JSON, Parquet, Arrow, WebDataset or hf://owner/name, as data_path "
        "takes them (default: every picture in the folder)",
    )
    parser.add_argument(
        "--video",
        action="store_true",
        help="sampled frames of the records' videos get boxes, too; without --data those of every video in the folder",
    )
    parser.add_argument(
        "--num-frames", type=int, metavar="N", help="frames of a video, as frame_sampling in training (default: 8)"
    )
    parser.add_argument("--fps", type=float, metavar="N", help="frames per second of a video instead")
    parser.add_argument("--max-frames", type=int, metavar="N", help="most frames with --fps (default: 64)")
    parser.add_argument("--out", required=True, metavar="FILE", help="path of the box file to write")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures per batch (default: 8)")
    parser.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="number of processes that read pictures (default: 2)"
    )
    parser.add_argument(
        "--draw", type=int, default=0, metavar="N", help="save the first N pictures with their boxes drawn"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="process only the first N pictures")
    parser.add_argument(
        "--launcher", help="what started the processes: none, pytorch or slurm (default: read from the environment)"
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Does the work of `args.kind`; returns the exit code."""
    if args.kind == "boxes":
        return generate_boxes(args)
    if args.kind == "video":
        keep_frames(args)
        return 0
    prepare_llava(args.config, args.out, args.num_proc, args.cfg_options)
    return 0


def generate_boxes(args: argparse.Namespace) -> int:
    """Lets the class that the config names find boxes; returns the exit code."""
    from xtuner.engine.processes.environment import Collective, close_environment, setup_environment
    from xtuner.registry import build

    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    if cfg.get("box_generation") is None:
        raise XTunerError(
            f"the config '{args.config}' has no box_generation: pass a config of configs/boxes, e.g. owlv2."
        )
    given = {"num_frames": args.num_frames, "fps": args.fps, "max_frames": args.max_frames}
    rule = {name: value for name, value in given.items() if value is not None}
    if rule and not args.video:
        raise XTunerError(f"{', '.join(rule)}: which frames of videos are taken is of use with --video; add it.")
    generation = build(
        cfg.box_generation,
        image_folder=args.image_folder,
        data_path=args.data,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        frame_sampling=rule if args.video else None,
    )
    environment = setup_environment(args.launcher)
    try:
        generation.run(args.out, environment.device, Collective(), args.draw, args.limit)
    finally:
        close_environment()
    return 0


def keep_frames(args: argparse.Namespace) -> None:
    """Lets the data set class that the config names keep the frames of its videos.

    Raises:
        XTunerError: neither a config nor records are named.
    """
    if args.config is None and args.data is None:
        raise XTunerError("no videos are named: pass --config CONFIG, or --data RECORDS (and --image-folder DIR).")
    given = {"data_path": args.data, "image_folder": args.image_folder}
    if args.data is not None and args.image_folder is None:
        given["image_folder"] = ""
    overrides = {name: value for name, value in given.items() if value is not None}
    cfg = load_config(args.config or _CONFIG, {**overrides, **parse_overrides(args.cfg_options)})
    dataset_class: Any = resolve_type(cfg.train_dataset["type"])
    dataset_class.keep_frames(cfg.train_dataset, args.out, args.format, args.quality, args.num_proc)
    get_logger().info("Ready: set frame_cache='%s' to train with these frames.", args.out)


def prepare_llava(config: str, out: str, num_proc: int | None, cfg_options: list[str]) -> None:
    """Lets the data set class that `config` names prepare itself in the folder `out`."""
    node = load_config(config, parse_overrides(cfg_options)).train_dataset
    dataset_class: Any = resolve_type(node["type"])
    dataset_class.prepare(node, out, num_proc)
    get_logger().info("Ready: set offline_processed_text_folder='%s' to train from it.", out)

"""``xtuner new NAME``: the configs of both stages for one's own data, a few commented lines each."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, perhaps, reason_of
from xtuner.tools.support.arguments import check_folder, refuse

HELP = "Write the configs of both stages for your own data into the current folder."

_STAGES = {
    "pretrain": "Stage 1 of {name}: the connecting parts learn from captions or conversations.",
    "sft": "Stage 2 of {name}: the language model learns too, from the checkpoint of stage 1.",
}
_LORA_RANK = 64
_LOOKED_AT = 100
"""Records whose pictures are looked for: a file may have millions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("name", help="name of the configs: NAME_pretrain.py and NAME_sft.py")
    add_model_arguments(parser, required=True)
    parser.add_argument("--lora", action="store_true", help="train adapters in stage 2 instead of the whole LLM")
    parser.add_argument("--dir", type=Path, default=Path(), help="folder to write to (default: the current one)")


def add_model_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """Adds what names a language model, encoders and data; with `required` the data must be given."""
    parser.add_argument("--llm", help="language model: a folder, or a name on the Hugging Face hub")
    parser.add_argument(
        "--data", required=required, help="records: a JSON or JSONL file (see `xtuner list-dataset-format`)"
    )
    parser.add_argument(
        "--images", required=required, help="folder of the pictures that the records name, or an archive"
    )
    parser.add_argument("--boxes", help="box file of the pictures; without it the model sees no objects in training")
    parser.add_argument(
        "--from",
        dest="base",
        metavar="MODEL",
        help="take the settings of a shipped model, e.g. vicuna7b or phi3 (default: the common settings)",
    )
    parser.add_argument("--template", help="prompt template (default: that of --from, else 'auto', made from the LLM)")
    parser.add_argument(
        "--low-res", metavar="PATH", help="low-resolution encoder (default: CLIP-L/14-336 from the hub)"
    )
    parser.add_argument("--high-res", metavar="PATH", help="high-resolution encoder, a folder (docs/encoders.md)")


def run(args: argparse.Namespace) -> int:
    """Writes both files and their paths; refuses to replace one."""
    from xtuner.config import load_config

    # 1. everything that is wrong with the arguments, at once
    _check(args)
    base = base_of(args.base)
    targets = {stage: args.dir / f"{args.name}_{stage}.py" for stage in _STAGES}

    # 2. the files, under other names until both load
    check_folder(args.dir, "--dir")
    args.dir.mkdir(parents=True, exist_ok=True)
    partial = {stage: target.with_name(f".{target.stem}.partial.py") for stage, target in targets.items()}
    try:
        for stage, file in partial.items():
            file.write_text(config_text(args, stage, base), encoding="utf-8")
            load_config(file)
        for stage, file in partial.items():
            file.replace(targets[stage])
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)
    sys.stdout.write("".join(f"{target}\n" for target in targets.values()))
    return 0


def config_text(args: argparse.Namespace, stage: str, base: str | None, stage_1: str | None = None) -> str:
    """Returns the source of one stage's config.

    Args:
        args: of the command.
        stage: ``pretrain`` or ``sft``.
        base: dotted module of the shipped config it reads, up to the stage's name (``{stage}`` in its place).
        stage_1: folder of the run of stage 1; None = where `xtuner train` puts it.
    """
    module = (base or "xtuner.configs._base_.{stage}").format(stage=stage)
    adapters = args.lora and stage == "sft"
    lines = [
        f'"""{_STAGES[stage].format(name=args.name)}"""',
        "",
        "from mmengine.config import read_base",
        *(["from peft import LoraConfig"] if adapters else []),
        "",
        "with read_base():",
        f"    from {module} import *",
        "",
    ]
    lines += _block("the language model, and how its conversations are written", _llm_settings(args, base))
    lines += _block(
        "encoders of the two resolutions",
        {
            "visual_encoder_name_or_path": _path(args.low_res),
            "visual_encoder_aux_path": _path(args.high_res),
        },
    )
    lines += _block(
        "your data",
        {
            "data_path": _path(args.data),
            "image_folder": _path(args.images),
            "box_json_path": _path(args.boxes) if args.boxes else "None",
        },
    )
    if stage == "sft":
        lines += _block(
            "the checkpoint of stage 1: `xtuner train` takes it by --cfg-options pretrained_pth=..., too",
            {"pretrained_pth": repr(f"{stage_1 or f'work_dirs/{args.name}_pretrain'}/last_checkpoint")},
        )
    if adapters:
        lora = f"dict(type=LoraConfig, r={_LORA_RANK}, lora_alpha={2 * _LORA_RANK}, lora_dropout=0.05)"
        lines += _block(
            "adapters instead of all weights: less memory, usually as good on little data", {"llm_lora": lora}
        )
    lines += ["# change what you like below: `xtuner check-cfg` lists every mistake, docs/configs.md every setting"]
    return "\n".join(lines) + "\n"


def _llm_settings(args: argparse.Namespace, base: str | None) -> dict[str, str | None]:
    own = args.template or (None if base and not args.llm else "auto")
    return {"llm_name_or_path": _path(args.llm), "prompt_template": repr(own) if own else None}


def _block(comment: str, settings: dict[str, str | None]) -> list[str]:
    given = [f"{name} = {value}" for name, value in settings.items() if value is not None]
    return [f"# {comment}", *given, ""] if given else []


def _path(text: str | None) -> str | None:
    """Source of a path, absolute where something is there, so that the config works from any folder."""
    if text is None:
        return None
    return repr(os.path.abspath(text) if Path(text).exists() or glob.glob(text) else text)


def _check(args: argparse.Namespace) -> None:
    problems = []
    if not re.fullmatch(r"\w[\w.-]*", args.name):
        problems.append(f"the name '{args.name}' cannot be a file's: use letters, digits, '_' and '-'.")
    targets = [args.dir / f"{args.name}_{stage}.py" for stage in _STAGES]
    if there := [str(target) for target in targets if target.exists()]:
        verb = "exists" if len(there) == 1 else "exist"
        refuse([f"{' and '.join(there)} {verb} and may hold your changes: choose another name or --dir."])
    refuse([*problems, *model_problems(args)])
    _look_for_pictures(args.data, args.images)


def model_problems(args: argparse.Namespace) -> list[str]:
    """Returns what is wrong with the arguments of `add_model_arguments`, one sentence each."""
    from xtuner.data.sources.locate import is_there
    from xtuner.data.text.templates import get_template

    problems = []
    given = {"--data": args.data, "--images": args.images, "--boxes": args.boxes}
    parts = {"--llm": args.llm, "--low-res": args.low_res, "--high-res": args.high_res}
    given |= {option: path for option, path in parts.items() if path is not None and _is_path(path)}
    is_file = [option for option, path in parts.items() if path is not None and Path(path).is_file()]
    problems += [f"{name} '{parts[name]}' is a file: name the model's folder." for name in is_file]
    absent = [option for option, path in given.items() if path is not None and not is_there(path)]
    problems += [f"{name} '{given[name]}' does not exist: give the path as seen from {Path.cwd()}." for name in absent]
    looks = {"--data": _look_at_data, "--images": _look_at_pictures, "--boxes": _look_at_boxes}
    for option, look in looks.items():
        if given[option] is not None and option not in absent:
            problems += complaint(lambda: look(given[option]), option)  # noqa: B023  called at once
    if args.llm is None and args.base is None:
        problems.append("no language model: give --llm (a folder or a hub name), or --from a shipped model.")
    if args.template not in (None, "auto"):
        problems += complaint(lambda: get_template(args.template), "--template")
    elif args.template is None and args.llm is not None and Path(args.llm).is_dir():
        problems += _template_problem(args.llm)
    return problems


def complaint(look: Callable[[], Any], option: str) -> list[str]:
    """Returns what `look` finds wrong with an option's value, in one sentence that names the option."""
    try:
        look()
    except XTunerError as error:
        return [f"{option}: {str(error).rstrip('.')}."]
    return []


def _is_path(text: str) -> bool:
    """True for what can be no name on the Hub, which is NAME or OWNER/NAME."""
    return text.startswith(("/", ".", "~")) or text.count("/") > 1


def _look_at_data(path: str) -> None:
    """Reads the first record only: a file may have millions."""
    from xtuner.data.sources import open_source
    from xtuner.data.sources.hub import HUB
    from xtuner.data.text.conversations import parse_record

    if path.startswith(HUB):
        return
    first = next(iter(open_source(path).records()), None)
    if first is None:
        raise XTunerError(f"'{path}' holds no record: expected some, as `xtuner list-dataset-format` shows.")
    if isinstance(first, str):
        advice = "" if "backslash" in first else "; expected records as `xtuner list-dataset-format` shows"
        raise XTunerError(f"{first.rstrip('.')}{advice}.")
    parse_record(first.value, first.index, videos=True)


def _look_at_pictures(path: str) -> None:
    from xtuner.data.sources import open_pictures

    open_pictures(path)


def _look_for_pictures(path: str, image_folder: str) -> None:
    """Refuses data of whose first records no picture is there."""
    from xtuner.data.sources import open_source
    from xtuner.data.sources.hub import HUB
    from xtuner.data.sources.places import read_place
    from xtuner.data.text.conversations import RecordError, parse_record
    from xtuner.finetune.split import OwnRecord, check_pictures

    if path.startswith(HUB):
        return
    records = []
    for one in islice(open_source(path).records(), _LOOKED_AT):
        # what cannot be read is for check-dataset
        with suppress(RecordError):
            records += (
                [] if isinstance(one, str) else [OwnRecord(one.value, parse_record(one.value, one.index, videos=True))]
            )
    if not any(read_place(name) for record in records for name in record.files):
        check_pictures(
            records, image_folder, "the records" if len(records) < _LOOKED_AT else f"the first {_LOOKED_AT} records"
        )


def _look_at_boxes(path: str) -> None:
    from xtuner.tools.support.families import family_offering

    family_offering("check_box_file").check_box_file(path)


def _template_problem(llm: str) -> list[str]:
    """Says where no template can be made from a language model's own chat template."""
    from xtuner.data.text.probing import NoTemplate, probe_template
    from xtuner.data.text.tokenizer import build_tokenizer
    from xtuner.log import warnings_only

    try:
        with warnings_only():
            probe_template(build_tokenizer(llm))
    except NoTemplate as error:
        return [
            f"--llm {llm}: {reason_of(error)}, so no prompt template can be made from it: name one with --template "
            "(docs/configs.md lists them)."
        ]
    except XTunerError as error:
        return [f"--llm: {error}"]
    return []


def base_of(model: str | None) -> str | None:
    """Returns the module of a shipped model's configs with ``{stage}`` in it.

    Raises:
        XTunerError: there is none for `model`.
    """
    if model is None:
        return None
    from xtuner.config import config_root, list_configs

    found = {}
    for name, path in list_configs().items():
        match = re.fullmatch(r"fuse_(.+?)_clip_L_14_336_pretrain_padding", name)
        if match:
            inner = ".".join(path.relative_to(config_root()).with_suffix("").parts)
            found[match[1]] = f"xtuner.configs.{inner.replace('_pretrain_', '_{stage}_')}"
    if model not in found:
        raise XTunerError(
            f"--from {model}: no such model{perhaps(model, found)}, expected one of {', '.join(sorted(found))}."
        )
    return found[model]

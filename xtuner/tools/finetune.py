"""``xtuner finetune``: from your own pictures and records to a model that answers, in one command."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, bytes_text, counted
from xtuner.tools.new import add_model_arguments, base_of, config_text, model_problems
from xtuner.tools.support.arguments import add_cfg_options, check_folder, refuse
from xtuner.tools.train import EXIT_INTERRUPTED

_BENCHMARK = "own_records"
_STEPS = 6
_LORA = {"type": "peft.LoraConfig", "r": 64, "lora_alpha": 128, "lora_dropout": 0.05}
_IDENTITY = ("configs", "llm", "base", "template", "low_res", "high_res", "data", "images", "boxes", "held_out", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.description = (
        "Fine-tune on your own records: check the data, train both stages, ask the model training and held-out "
        "records, export it. Stopped, the command goes on where it was when you give it again. Exit code: 0 when "
        f"done, {EXIT_INTERRUPTED} when a signal stopped a training after a save, 1 on an error."
    )
    parser.add_argument(
        "configs", nargs="*", metavar="CONFIG", help="instead of --llm and the like: configs of stage 1 and stage 2"
    )
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--lora", action="store_true", help="train adapters in stage 2 (default: where all weights do not fit)"
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the records not trained on (default: 0.1)",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the choice and of the training (default: 42)")
    parser.add_argument(
        "--ask", type=int, default=100, metavar="N", help="ask at most N records of each part (default: 100)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of everything (default: work_dirs/<data>)")
    parser.add_argument("--dry-run", action="store_true", help="write the configs, print the settings, run nothing")
    add_cfg_options(parser, "settings of both stages; written into their configs")


def run(args: argparse.Namespace) -> int:
    """Runs what is not finished; returns the exit code."""
    from xtuner.finetune.steps import StepFailed

    # 1. what is given, and the records
    work = _Work(args)
    check_folder(work.out, "--out")
    work.split()

    # 2. the configs, and whether there is room for what they describe
    work.write_configs()
    if args.dry_run:
        return 0

    # 3. the steps
    try:
        work.run_steps()
    except StepFailed as error:
        advice = "give" if error.code == EXIT_INTERRUPTED else "mend what it named above, then give"
        sys.stderr.write(f"xtuner finetune: {error}: {advice} the same command again to go on.\n")
        return error.code
    work.show_answers()
    return 0


class _Work:
    """One fine-tune in its folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        from xtuner.config import load_config, parse_overrides
        from xtuner.data.sources.locate import source_name
        from xtuner.launch import count_processes

        self.args = args
        self.overrides = parse_overrides(args.cfg_options)
        problems = _problems(args, self.overrides)
        refuse(problems)
        self.given = [load_config(path) for path in args.configs]
        self.images, self.boxes, data = args.images, args.boxes, args.data
        if self.given:
            last = self.given[-1]
            data, self.images = data or last.get("data_path"), self.images or last.get("image_folder")
            self.boxes = self.boxes or last.get("box_json_path")
        if not isinstance(data, str):
            raise XTunerError(f"data_path is {data!r}: finetune takes one file of records; name it with --data.")
        self.data = data
        self.out: Path = (args.out or Path("work_dirs") / source_name(data)).absolute()
        self.configs = {stage: self.out / f"{self.out.name}_{stage}.py" for stage in ("pretrain", "sft")}
        self.files = {name: self.out / "data" / f"{name}.jsonl" for name in ("training", "asked", "held_out")}
        self.processes = count_processes(os.environ)

    def split(self) -> None:
        """Reads the records, holds some out and writes all parts."""
        from xtuner.data.sources.locate import place_of
        from xtuner.data.sources.places import SCHEME, read_place
        from xtuner.finetune.split import check_pictures, read_own_records, split_records, write_records
        from xtuner.log import get_logger

        args = self.args
        columns = self.overrides.get("data_columns", self.given[-1].get("data_columns") if self.given else None)
        records = read_own_records(self.data, columns)
        if any(read_place(name) for record in records for name in record.files):
            # the pictures or videos stand in the data itself
            self.images = f"{SCHEME}{place_of(self.data)}"
        elif self.images is None:
            raise XTunerError(
                "--images is missing: name the folder that the records' picture and video paths start from."
            )
        check_pictures(records, str(self.images))
        self.records = split_records(records, args.held_out, args.seed)
        training, held_out = self.records.training, self.records.held_out
        chosen = random.Random(args.seed)
        places = sorted(chosen.sample(range(len(training)), min(args.ask, len(training))))
        write_records(training, self.files["training"])
        write_records([training[place] for place in places], self.files["asked"])
        write_records(
            sorted(chosen.sample(held_out, min(args.ask, len(held_out))), key=held_out.index), self.files["held_out"]
        )
        get_logger().info(
            "%s: %d records with an answer, %d to train on, %d held out (with their pictures, seed %d)",
            *(self.data, len(records), len(training), len(held_out), args.seed),
        )

    def write_configs(self) -> None:
        """Writes both configs, unless a former run of the same arguments did: they may hold the user's changes."""
        from xtuner.finetune.sizes import check_disk
        from xtuner.log import get_logger

        file = self.out / "arguments.json"
        wanted = {name: _plain(getattr(self.args, name)) for name in _IDENTITY} | {"cfg_options": self.args.cfg_options}
        former = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if former == wanted and all(path.exists() for path in self.configs.values()):
            get_logger().info("settings: those of %s", ", ".join(map(str, self.configs.values())))
            return
        if former is not None and (self.out / "stage_1").exists():
            other = ", ".join(name for name in wanted if former.get(name) != wanted[name])
            raise XTunerError(
                f"{self.out} holds a fine-tune with other arguments ({other}): give those again to go on with it, or "
                "another --out."
            )
        self._given_configs() if self.given else self._new_configs()
        if self.needed is not None:
            check_disk(self.out, self.needed)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)

    needed: float | None = None
    """Bytes that the run writes, where they were estimated."""

    def _given_configs(self) -> None:
        from xtuner.config import dump_config, load_config
        from xtuner.log import get_logger

        data = {"data_path": str(self.files["training"]), "image_folder": self.images, "box_json_path": self.boxes}
        for stage, path in zip(self.configs, self.args.configs, strict=True):
            own: dict[str, Any] = {**data, "seed": self.args.seed, **self.overrides}
            if stage == "sft":
                own["pretrained_pth"] = str(self.out / "stage_1" / "last_checkpoint")
                own["benchmarks"] = [self._benchmark(self.given[-1])]
            dump_config(load_config(path, own).as_written, self.configs[stage])
        get_logger().info("settings: those of %s; no other is chosen for you", ", ".join(self.args.configs))

    def _new_configs(self) -> None:
        """Writes the configs in the words of `xtuner new`, with settings for so many records under their reasons."""
        from xtuner.config import load_config
        from xtuner.finetune.recipe import STAGES, adapters_setting, choose_plan, choose_settings, settings_text
        from xtuner.finetune.sizes import Sizes, free_memory, longest, most_pictures
        from xtuner.registry import build

        # 1. the model, to know its sizes
        self.out.mkdir(parents=True, exist_ok=True)
        probe = self.out / f".{self.out.name}_probe.py"
        try:
            probe.write_text(self._text("sft", lora=False, lines=self._override_lines()), encoding="utf-8")
            cfg = load_config(probe)
            records = self.records.training + self.records.held_out
            talks = [one.conversation for one in records]
            tokens, self.answer_tokens = longest(talks, build(cfg.tokenizer))
            pictures = most_pictures(talks, cfg.get("frame_sampling"))
            # reads what the encoders' folders say, as the training does an hour later
            build(cfg.train_dataset["image_processor"])
            sizes = Sizes(probe, tokens, _LORA, pictures=pictures)
            plan = choose_plan(sizes.memory, free_memory(), self.processes, True if self.args.lora else None)
            self.needed = sizes.disk(plan.lora)
            benchmark = self._benchmark(cfg)
            llm_size = sizes.llm_size()
        finally:
            probe.unlink(missing_ok=True)
        if not plan.fits:
            sys.stderr.write(
                f"xtuner finetune: even one sample with adapters needs about {bytes_text(plan.needed)}, "
                f"{bytes_text(plan.free)} are free: take a smaller --llm, or see docs/cluster.md for ZeRO.\n"
            )

        # 2. each stage's settings
        for stage in STAGES:
            settings = choose_settings(stage, len(self.records.training), llm_size, plan, self.processes)
            settings = [one for one in settings if one.name not in self.overrides]
            if stage == "sft":
                settings = [adapters_setting(plan, self.args.lora), *settings]
            lines = [*settings_text(settings), f"seed = {self.args.seed}", "", *self._override_lines()]
            if stage == "sft":
                lines += ["# what the model is asked at the end", f"benchmarks = {[benchmark]!r}"]
            self.configs[stage].write_text(self._text(stage, plan.lora, lines), encoding="utf-8")
            load_config(self.configs[stage])
            _print_settings(stage, len(self.records.training), settings, self.configs[stage])

    def _text(self, stage: str, lora: bool, lines: Sequence[str]) -> str:
        values = {"name": self.out.name, "data": str(self.files["training"]), "images": self.images, "lora": lora}
        args = argparse.Namespace(**{**vars(self.args), **values})
        text = config_text(args, stage, base_of(self.args.base), str(self.out / "stage_1"))
        return text + "\n".join(lines) + "\n"

    def _override_lines(self) -> list[str]:
        given = [f"{name} = {value!r}" for name, value in self.overrides.items()]
        return ["# your --cfg-options", *given, ""] if given else []

    def _benchmark(self, cfg: Any) -> dict[str, Any]:
        """Returns the config node of the questions that the model is asked at the end."""
        from xtuner.finetune.sizes import longest
        from xtuner.registry import build
        from xtuner.tools.support.families import family_of_config

        if self.given:
            records = self.records.training + self.records.held_out
            _, self.answer_tokens = longest([one.conversation for one in records], build(cfg.tokenizer))
            build(cfg.train_dataset["image_processor"])
        kind = family_of_config(cfg).OwnRecords
        parts = {"training": self.files["asked"]}
        parts |= {"held-out": self.files["held_out"]} if self.records.held_out else {}
        return {
            "type": f"{kind.__module__}.{kind.__qualname__}",
            "name": _BENCHMARK,
            "data_file": [str(path) for path in parts.values()],
            "parts": tuple(parts),
            "image_folder": "${image_folder}",
            "box_json_path": "${box_json_path}",
            "max_new_tokens": self.answer_tokens,
            **({"frame_sampling": "${frame_sampling}"} if self._has_videos() and cfg.get("frame_sampling") else {}),
        }

    def _has_videos(self) -> bool:
        return any(one.conversation.videos for one in self.records.training + self.records.held_out)

    answer_tokens: int = 0

    def run_steps(self) -> None:
        """Runs check, preparing, both stages, evaluation and export."""
        from xtuner.data.sources.locate import place_of
        from xtuner.engine.checkpoints.checkpoint import CheckpointFolder
        from xtuner.finetune.steps import Steps

        steps = Steps(self.out / "steps", _STEPS)
        first, second = self.configs.values()
        data = [self.files["training"], self.files["held_out"], str(self.images), *self._box_marks()]

        def train(config: Path, folder: Path) -> Any:
            return lambda same: [
                *("train", config, "--work-dir", folder),
                *(("--resume", "auto") if same or not folder.exists() else ("--start-anew",)),
            ]

        # held-out records too
        everything = f"data_path={place_of(self.data)}"
        steps.run("check", data, lambda _: ("check-dataset", first, "--fast", "--cfg-options", everything))
        steps.run("prepare", [first], lambda _: ("log-dataset", first, "-n", "1"))
        steps.run("stage 1", [], train(first, self.out / "stage_1"))
        steps.run("stage 2", [second], train(second, self.out / "stage_2"))
        trained = CheckpointFolder(self.out / "stage_2").find("auto")
        if trained is None:
            raise XTunerError(f"{self.out / 'stage_2'} holds no checkpoint: remove {self.out / 'steps'} and run again.")
        steps.run(
            "answers",
            [self.files["asked"], self.files["held_out"], str(trained)],
            lambda _: (
                *("test", second, "--checkpoint", trained, "--work-dir", self.out / "answers"),
                *("--benchmarks", _BENCHMARK, "--report"),
            ),
        )
        steps.run("export", [], lambda _: ("convert", "pth_to_hf", second, trained, self.out / "model"))

    def _box_marks(self) -> list[str]:
        if not self.boxes or not Path(self.boxes).exists():
            return [str(self.boxes)]
        found = Path(self.boxes).stat()
        return [str(self.boxes), str(found.st_size), str(found.st_mtime_ns)]

    def show_answers(self) -> None:
        """Prints shares and answers, and where the rest is."""
        from rich.console import Console

        from xtuner.finetune.answers import answers_table, read_answers, shares_table

        folder = self.out / "answers" / _BENCHMARK
        metrics, rows = read_answers(folder)
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(answers_table(rows))
        console.print(shares_table(metrics, rows))
        lines = (
            f"all {len(rows)} answers: {folder / 'report.html'} (with pictures), {folder / 'answers.csv'}",
            f"the model: {self.out / 'model'}",
            f"ask it: xtuner chat {self.out / 'model'} {'--video VIDEO' if self._has_videos() else '--image PICTURE'}",
        )
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _problems(args: argparse.Namespace, overrides: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the arguments, one sentence each."""
    from xtuner.data.sources.locate import is_columnar

    problems = []
    if len(args.configs) not in (0, 2):
        problems.append(
            f"{counted(len(args.configs), 'configs')} given: expected two, of stage 1 and of stage 2, or none."
        )
    if args.configs:
        given = [f"--{name.replace('_', '-')}" for name in ("llm", "base", "template", "low_res", "high_res", "lora")]
        given = [name for name in given if getattr(args, name[2:].replace("-", "_"))]
        if given:
            problems.append(f"{', '.join(given)}: the configs say this; change it there, or leave the configs out.")
    else:
        own_pictures = args.data is not None and is_columnar(args.data)
        absent = [f"--{name}" for name in ("data", "images") if getattr(args, name) is None]
        absent = absent if not own_pictures else []
        if absent:
            problems.append(f"{' and '.join(absent)} missing: name your records and the folder of their pictures.")
        problems += model_problems(args)
        dotted = [name for name in overrides if not name.isidentifier()]
        if dotted:
            problems.append(
                f"--cfg-options {', '.join(dotted)}: only plain settings here; change others in the configs."
            )
    if args.ask < 1:
        problems.append(f"--ask is {args.ask}: expected at least 1 record.")
    return problems


def _print_settings(stage: str, records: int, settings: Sequence[Any], config: Path) -> None:
    title = "stage 1" if stage == "pretrain" else "stage 2"
    lines = [f"{title}, {records} records, settings in {config}:"]
    for one in settings:
        lines += [f"  {one.name} = {one.value!r}: {one.reason}", f"      change: {one.change}"]
    sys.stdout.write("\n".join(lines) + "\n")


def _plain(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list) else value

"""``xtuner test CONFIG --checkpoint X``: the config's benchmarks on a trained model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, counted
from xtuner.log import console, get_logger
from xtuner.tools.support.answering import check_backend, look_for_checkpoint, start_backend
from xtuner.tools.support.arguments import OWN, add_backend, add_base, add_cfg_options

EXIT_MISSING = 3
"""Exit code where benchmarks were skipped because their files are absent."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner test``."""
    parser.description = (
        "Evaluate a checkpoint, or a model behind an endpoint, on the config's benchmarks. An interrupted evaluation "
        "continues where it stopped. With NPROC_PER_NODE > 1 that many processes share the questions. Exit code: 0 "
        f"when done, {EXIT_MISSING} when benchmarks were skipped because their files are absent, 1 on an error."
    )
    parser.add_argument("config", nargs="?", help="name or path of a config; 'xtuner list-cfg' shows the shipped ones")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="weights to evaluate: a file, a DeepSpeed folder or a folder of shards"
    )
    add_backend(parser)
    _add_endpoint(parser)
    parser.add_argument("--benchmarks", metavar="A,B", help="run only these benchmarks of the config")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="ask the first N questions of each benchmark, no group cut in two"
    )
    parser.add_argument(
        "--work-dir", help="folder for the results, <work-dir>/<benchmark>/ (default: work_dirs/<config name>)"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="draw answers instead of taking the likeliest, once per seed, and show how much scores vary; results are "
        "in <work-dir>/seed_<N>/<benchmark>/ and <work-dir>/<benchmark>/seeds.json",
    )
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="of --seeds (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.9, metavar="P", help="of --seeds (default: 0.9)")
    parser.add_argument("--score-only", action="store_true", help="score the stored answers again, without a model")
    _add_judge(parser)
    parser.add_argument(
        "--report", action="store_true", help="write <benchmark>/report.html, which shows pictures and answers"
    )
    parser.add_argument(
        "--xlsx", action="store_true", help="write <benchmark>_predictions.xlsx in the format of VLMEvalKit"
    )
    parser.add_argument(
        "--train-images",
        nargs="+",
        metavar="FOLDER",
        help="count the questions whose picture stands in these folders of training pictures, byte for byte",
    )
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two folders of results and exit")
    parser.add_argument("--allow-missing", action="store_true", help="exit 0 even if benchmarks were skipped")
    parser.add_argument(
        "--check-files", action="store_true", help="report the benchmarks whose files are absent and exit"
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        help="what started the processes (default: read from the environment)",
    )
    add_base(parser)
    add_cfg_options(parser)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    """A model behind a server in place of a checkpoint."""
    parser.add_argument("--endpoint", metavar="URL", help="ask this OpenAI-compatible server instead of a checkpoint")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model at --endpoint (default: the only one there); NAME=OTHER where it answers as OTHER",
    )
    parser.add_argument(
        "--endpoint-boxes",
        choices=("auto", "send", "url", "omit"),
        default="auto",
        help="send boxes beside the pictures, as this project's server takes them (default: to that server only), or "
        "in their URLs, as vLLM with this package does",
    )
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="requests to --endpoint at a time")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    """Who scores free answers."""
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        help="let MODEL at OPENAI_BASE_URL judge free answers; put the key in OPENAI_API_KEY",
    )
    parser.add_argument(
        "--judge-price",
        type=float,
        metavar="DOLLARS",
        help="price of a million tokens, to estimate the cost before the judge starts",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    if args.compare:
        return show_comparison(*args.compare)
    if args.config is None:
        raise XTunerError("no config given: name one ('xtuner list-cfg' shows the shipped ones), or use --compare A B.")

    # 1. several processes asked for by environment variables: start them by torchrun
    look_for_checkpoint(args)
    from xtuner.launch import run_ranks, torchrun_command

    alone = args.check_files or args.score_only or args.endpoint or args.backend != OWN
    if args.launcher != "slurm" and not alone:
        command = torchrun_command(_to_argv(args), os.environ)
        if command is not None:
            return run_ranks(command, os.environ)

    # 2. the config's benchmarks, those asked for, those whose files are there
    from xtuner.config import load_config, parse_overrides
    from xtuner.evaluation.benchmarks import find_benchmarks

    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    benchmarks, missing = find_benchmarks(cfg.get("benchmarks") or (), args.benchmarks)
    for name, paths in missing.items():
        get_logger().warning("benchmark %s is skipped because files are absent: %s", name, ", ".join(paths))
    skipped = EXIT_MISSING if missing and not args.allow_missing else 0
    if args.check_files or not benchmarks:
        get_logger().info("benchmarks whose files are present: %s", ", ".join(b.name for b in benchmarks) or "none")
        return skipped
    _check(args)

    # 3. the answers, from the model or from an earlier run, with their scores
    from xtuner.config import config_name
    from xtuner.evaluation.judge import Judge
    from xtuner.registry import resolve_type

    work_dir = Path(args.work_dir or Path("work_dirs") / config_name(cfg.filename))
    judge = None if args.judge is None else Judge(args.judge, price=args.judge_price)
    kind: Any = resolve_type(cfg.evaluation["type"])
    if args.score_only:
        results = {one.name: kind.rescore(one, work_dir / one.name, judge) for one in benchmarks}
    else:
        results = _evaluate(cfg, args, benchmarks, work_dir, judge)

    # 4. for people and other tools; other ranks than the first have no results
    for benchmark in benchmarks if args.report and any(results.values()) else ():
        page = kind.report(benchmark, work_dir / benchmark.name, cfg.evaluation["image_processor"])
        get_logger().info("report: %s", page)
    for benchmark in benchmarks if args.xlsx and any(results.values()) else ():
        get_logger().info("predictions: %s", kind.spreadsheet(benchmark, work_dir / benchmark.name))
    for benchmark in benchmarks if args.train_images and any(results.values()) else ():
        found = kind.contamination(benchmark, work_dir / benchmark.name, args.train_images)["contamination"]
        get_logger().info(
            "%s: %d of %d pictures stand in the training data, %d questions; overall without them: %s",
            *(benchmark.name, found["num_pictures_in_training"], found["num_pictures"]),
            *(found["num_questions_in_training"], _percent(found["overall_without"])),
        )
    if any(results.values()):
        show(results, missing, f"{config_name(cfg.filename)}, {args.checkpoint or work_dir}")
    return skipped


def _check(args: argparse.Namespace) -> None:
    given = [name for name in ("checkpoint", "endpoint", "score_only") if getattr(args, name)]
    if not given:
        raise XTunerError(
            "no --checkpoint given: name the weights to evaluate, e.g. work_dirs/<config name>/iter_500.pth, or a "
            "server by --endpoint, or score an earlier run's answers again with --score-only."
        )
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise XTunerError(f"{options} are given: answers come from one of them, so leave the others out.")
    check_backend(args)
    if args.parallel < 1:
        raise XTunerError(f"--parallel is {args.parallel}: expected at least 1 request at a time.")
    if args.seeds and (args.score_only or args.report or args.xlsx or args.train_images):
        raise XTunerError(
            "--seeds writes one folder of results per seed: run --score-only, --report, --xlsx and --train-images on "
            "one of them, by --work-dir <work-dir>/seed_<N>."
        )
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        raise XTunerError(f"--seeds names a seed twice: {args.seeds}. Give each once.")
    if args.limit is not None and args.limit < 1:
        raise XTunerError(f"--limit is {args.limit}: expected at least 1 question.")


def _checkpoint_facts(cfg: Any, checkpoint: str) -> dict[str, Any]:
    """Returns what is recorded of a checkpoint and its training; tells where the config passed is not the run's own."""
    from xtuner.evaluation.benchmarks import checkpoint_facts
    from xtuner.log import get_logger
    from xtuner.tools.support.run_settings import training_facts

    facts = training_facts(cfg, checkpoint)
    differing = facts.get("differs_from_training")
    if differing:
        told = ", ".join(f"{key} ({both['here']} for {both['training']})" for key, both in differing.items())
        get_logger().info("the config passed differs from the training's own in %s; metrics.json tells both.", told)
    return {**checkpoint_facts(checkpoint), **facts}


def _evaluate(
    cfg: Any, args: argparse.Namespace, benchmarks: Sequence[Any], work_dir: Path, judge: Any
) -> dict[str, dict[str, Any]]:
    """Asks the model or the endpoint all questions; returns metrics by benchmark, on rank 0."""
    from xtuner.evaluation.benchmarks import run_facts

    runner, facts, close = _runner(cfg, args)

    def run_all(folder: Path) -> dict[str, dict[str, Any]]:
        return {
            one.name: runner.run(one, folder / one.name, {**run_facts(cfg, one.name), **facts}, args.limit, judge)
            for one in benchmarks
        }

    if args.seeds:
        results = {}
        by_seed = {}
        for seed in args.seeds:
            runner.sample(seed, args.temperature, args.top_p)
            by_seed[seed] = run_all(work_dir / f"seed_{seed}")
        show_seeds(by_seed, work_dir)
    else:
        results = run_all(work_dir)
    close()
    return results


def _runner(cfg: Any, args: argparse.Namespace) -> tuple[Any, dict[str, Any], Callable[[], None]]:
    """What asks the questions, the checkpoint that their answers depend on, and what to do at the end."""
    from xtuner.engine.processes.environment import Collective, close_environment, setup_environment
    from xtuner.registry import build

    if args.endpoint:
        return build(cfg.evaluation, **_endpoint(args)), {}, lambda: None
    if args.backend != OWN:
        engine = start_backend(args, cfg.get("precision") or "auto")
        return build(cfg.evaluation, engine=engine), _checkpoint_facts(cfg, args.checkpoint), engine.close
    from xtuner.tools.support.trained_model import build_trained

    environment = setup_environment(args.launcher)
    model = build_trained(cfg, args.checkpoint, environment.device, base=args.base)
    runner = build(cfg.evaluation, model=model, collective=Collective())
    return runner, _checkpoint_facts(cfg, args.checkpoint), close_environment


def _endpoint(args: argparse.Namespace) -> dict[str, Any]:
    """What a runner needs to ask an endpoint; the key comes from the environment and is written nowhere."""
    from xtuner.evaluation.endpoint import Endpoint, find_model, without_login

    key = os.environ.get("OPENAI_API_KEY")
    model, takes_boxes = find_model(args.endpoint, args.model, key)
    way, hint = args.endpoint_boxes, ""
    if way == "auto":
        way, hint = ("send", "") if takes_boxes else ("omit", " (--endpoint-boxes url sends them to vLLM)")
    get_logger().info(
        "asking %s at %s, %s boxes%s, %d requests at a time",
        *(model, without_login(args.endpoint), "without" if way == "omit" else "with", hint, args.parallel),
    )
    return {"endpoint": Endpoint(args.endpoint, model, key, parallel=args.parallel), "endpoint_boxes": way}


def show_seeds(by_seed: Mapping[int, Mapping[str, Mapping[str, Any]]], work_dir: Path) -> None:
    """Writes and prints how the scores of each benchmark vary over the seeds; nothing on ranks without results.

    Args:
        by_seed: what ``metrics.json`` holds, by seed and benchmark.
        work_dir: gets ``<benchmark>/seeds.json``.
    """
    from rich.table import Table

    from xtuner.evaluation.seeds import spread, write_spread

    table = Table("benchmark", "mean", "standard deviation", *(f"seed {seed}" for seed in by_seed))
    for name in next(iter(by_seed.values())):
        runs = {seed: results[name] for seed, results in by_seed.items()}
        if not all(runs.values()):
            continue
        found = spread(runs)
        write_spread(found, work_dir / name / "seeds.json")
        deviation = found["standard_deviation"]
        each = [_percent(score) for score in found["seeds"].values()]
        table.add_row(name, _percent(found["overall"]), "" if deviation is None else f"{deviation:.1%}", *each)
    if table.row_count:
        console.print(table)


def show_comparison(first: str, second: str) -> int:
    """Prints two runs side by side, and the questions that flipped; returns the exit code."""
    from rich.table import Table
    from rich.text import Text

    from xtuner.evaluation.comparison import compare, overall_test

    comparisons = compare(first, second)
    columns = ("benchmark", "A", "B", "shared questions", "B gained", "B lost", "hits B − A", "p")
    table = Table(*columns, title=f"A: {first}\nB: {second}")
    for one in comparisons:
        scores = [_percent(score) for score in one.scores]
        table.add_row(one.name, *scores, str(one.shared), str(one.gained), str(one.lost), *_tested(one.test))
    if len(comparisons) > 1:
        table.add_row("mean of benchmarks", *[""] * 5, *_tested(overall_test(comparisons)), style="bold")
    console.print(table)
    for one in comparisons:
        if not one.flips:
            continue
        flips = Table(
            "question",
            "prompt",
            "A",
            "B",
            "A hit",
            "B hit",
            title=f"{one.name}: {counted(len(one.flips), 'flips')}",
        )
        for flip in one.flips:
            words = [Text(str(text)) for text in (flip.id, flip.prompt, *flip.outputs)]
            flips.add_row(*words, *(f"{hit:.2g}" for hit in flip.hits))
        console.print(flips)
    return 0


def show(results: Mapping[str, Mapping[str, Any]], missing: Mapping[str, Sequence[str]], title: str) -> None:
    """Prints a table of the results."""
    from rich.table import Table

    table = Table("benchmark", "group", "score", "95 % interval", "questions", title=title)
    for name, metrics in results.items():
        sure = metrics.get("uncertainty", {})
        overall = (_percent(metrics["overall"]), _interval(sure.get("overall")))
        table.add_row(name, "", *overall, str(metrics["num_questions"]), style="bold")
        for axis, groups in metrics.get("groups", {}).items():
            for group, score in groups.items():
                interval = _interval(sure.get("groups", {}).get(axis, {}).get(group))
                table.add_row("", f"{axis}: {group}", _percent(score), interval)
    for name in missing:
        table.add_row(name, "", "skipped: files absent", style="dim")
    console.print(table)


def _percent(score: float | None) -> str:
    return "not scored" if score is None else f"{score:.1%}"


def _interval(found: Mapping[str, Any] | None) -> str:
    return "" if found is None or found["low"] is None else f"{found['low']:.1%} – {found['high']:.1%}"


def _tested(test: Any) -> tuple[str, str]:
    """The difference of a paired test with the reach of its 95 % interval, and its p value."""
    if test is None:
        return "", ""
    reach = "" if test.standard_error is None else f" ± {1.96 * test.standard_error:.1%}"
    return f"{test.difference:+.1%}{reach}", f"{test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001"


def _to_argv(args: argparse.Namespace) -> list[str]:
    """Writes the arguments out again, for a process that torchrun starts."""
    argv = ["test", args.config, "--launcher", "pytorch"]
    for option in ("checkpoint", "benchmarks", "limit", "work_dir", "judge", "judge_price", "base"):
        value = getattr(args, option)
        if value is not None:
            argv += [f"--{option.replace('_', '-')}", str(value)]
    if args.seeds:
        argv += ["--seeds", *map(str, args.seeds), "--temperature", str(args.temperature), "--top-p", str(args.top_p)]
    argv += ["--allow-missing"] if args.allow_missing else []
    argv += ["--report"] if args.report else []
    argv += ["--xlsx"] if args.xlsx else []
    argv += ["--train-images", *args.train_images] if args.train_images else []
    return argv + (["--cfg-options", *args.cfg_options] if args.cfg_options else [])

"""The paper's ablation in the tiny world: what objects, high resolution and the way of fusing are worth.

    python tools/tiny_world/ablation.py [--seeds 3] [--only low_res,objects,conv_gate] [--jobs 2]

Makes the world, then trains both stages of every variant with the shipped configs and commands, once per seed, and
evaluates it. Writes table and plot to --out. Runs that are finished are reused, one that was cut off is continued.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.table import Table  # noqa: E402

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.tiny_world.make import make_world  # noqa: E402
from tools.tiny_world.questions import KINDS  # noqa: E402

WORLD = Path("work_dirs/tiny_world")
"""Where the tiny configs read it."""
_CONNECTORS = ("projector", "object_encoder")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        title: What the table calls it.
        config: 'tiny' or 'tiny_llava': configs/tiny/<config>_pretrain.py and _sft.py.
        settings: ``--cfg-options`` of both stages and of the evaluation.
        trains_fusion: Whether there is a fusion to train.
        sft_settings: More ``--cfg-options`` of stage 2 and of the evaluation.
    """

    title: str
    config: str = "tiny"
    settings: tuple[str, ...] = ()
    trains_fusion: bool = True
    sft_settings: tuple[str, ...] = ()

    def options(self, stage: str) -> list[str]:
        """Returns the settings of 'pretrain' or 'sft'."""
        if self.trains_fusion or self.config != "tiny":
            return [*self.settings, *(self.sft_settings if stage == "sft" else ())]
        trained = (*_CONNECTORS, "llm") if stage == "sft" else _CONNECTORS
        return [*self.settings, f"trainable=[{','.join(trained)}]"]


def _fused_by(name: str, title: str) -> Variant:
    return Variant(title, settings=(f"model.fusion.type=mg_llava.model.fusion.{name}",))


VARIANTS = {
    "low_res": Variant("low resolution only", "tiny_llava"),
    "objects": Variant("+ objects", settings=("model.fusion=None",), trains_fusion=False),
    "conv_gate": Variant("+ objects + Conv-Gate"),
    "trained_high_res": Variant(
        "+ objects + Conv-Gate, high-resolution encoder trained in stage 2",
        sft_settings=(
            f"trainable=[fusion,{','.join(_CONNECTORS)},llm,high_res_encoder]",
            # a tenth of the rate of all else
            "lr={default:1e-3,high_res_encoder:1e-4}",
        ),
    ),
    "gated_concat": _fused_by("GatedConcatFusion", "+ objects + [low' ; g·high']"),
    "conv_concat": _fused_by("ConvConcatFusion", "+ objects + [low' ; high']"),
    "concat": _fused_by("ConcatFusion", "+ objects + [low ; high]"),
}
_WITHHELD = "conv_gate, boxes withheld"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _xtuner(arguments: Sequence[str], log: Path, threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "xtuner", *arguments], stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
    if done.returncode:
        raise SystemExit(f"xtuner {' '.join(arguments)} ended with exit code {done.returncode}: see {log}.")


def _evaluate(
    variant: Variant, checkpoint: str, folder: Path, options: Sequence[str], threads: int, limit: int | None
) -> dict[str, float]:
    """Returns the share of right answers per kind and overall; what was evaluated before is read again."""
    metrics = folder / "tiny_world" / "metrics.json"
    if not metrics.is_file():
        command = ["test", f"{variant.config}_sft", "--checkpoint", checkpoint, "--work-dir", str(folder)]
        options = [*variant.options("sft"), *options]
        command += [] if limit is None else ["--limit", str(limit)]
        _xtuner([*command, *(["--cfg-options", *options] if options else [])], folder.with_suffix(".log"), threads)
    found = json.loads(metrics.read_text(encoding="utf-8"))
    return {**found["groups"]["kind"], "overall": found["overall"]}


def run(
    name: str, seed: int, out: Path, threads: int, extra: Sequence[str] = (), limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Trains and evaluates one variant with one seed.

    Args:
        name: One of VARIANTS.
        seed: Seed of both stages.
        out: Folder of all runs; this one goes to <out>/<name>/seed<seed>.
        threads: Threads of each command.
        extra: More settings of both stages.
        limit: Only so many questions.

    Returns:
        Shares of right answers by row of the table: ``name``, and for 'conv_gate' also without boxes, if no `limit`
        asks for a short look.
    """
    variant, folder = VARIANTS[name], out / name / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    start: list[str] = []
    for stage in ("pretrain", "sft"):
        work_dir = folder / stage
        if not (work_dir / "finished").is_file():
            options = [*variant.options(stage), f"seed={seed}", *start, *extra]
            command = ["train", f"{variant.config}_{stage}", "--work-dir", str(work_dir), "--resume", "auto"]
            _xtuner([*command, "--cfg-options", *options], folder / f"{stage}.log", threads)
            (work_dir / "finished").touch()
        checkpoint = (work_dir / "last_checkpoint").read_text(encoding="utf-8").strip()
        start = [f"pretrained_pth={checkpoint}"]
    results = {name: _evaluate(variant, checkpoint, folder / "test", (), threads, limit)}
    if name == "conv_gate" and limit is None:
        without = folder / "test_without_boxes"
        results[_WITHHELD] = _evaluate(variant, checkpoint, without, ("box_json_path=None",), threads, limit)
    return results


def summarise(results: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns mean and standard deviation over the seeds by row and kind of question."""
    return {
        row: {
            kind: (
                statistics.mean(seed[kind] for seed in seeds),
                statistics.stdev(seed[kind] for seed in seeds) if len(seeds) > 1 else 0.0,
            )
            for kind in (*KINDS, "overall")
        }
        for row, seeds in results.items()
    }


def _title(row: str) -> str:
    return f"{VARIANTS['conv_gate'].title}, boxes withheld" if row == _WITHHELD else VARIANTS[row].title


def write_table(summary: dict[str, dict[str, tuple[float, float]]], file: Path, console: Console) -> None:
    """Prints the table and writes it as Markdown to ``file``."""
    columns = ["overall", *KINDS]
    table = Table("model", *columns, title="Right answers to held-out questions, %")
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, shares in summary.items():
        mean, spread = shares["overall"]
        cells = [f"{100 * mean:.1f} ± {100 * spread:.1f}", *(f"{100 * shares[kind][0]:.1f}" for kind in KINDS)]
        table.add_row(escape(_title(row)), *cells)
        lines.append(f"| {_title(row)} | {' | '.join(cells)} |")
    console.print(table)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot(summary: dict[str, dict[str, tuple[float, float]]], baseline: float, file: Path) -> None:
    """Draws the overall shares as bars with their spread over the seeds, beside what guessing gets."""
    rows = list(summary)[::-1]
    means = [100 * summary[row]["overall"][0] for row in rows]
    spreads = [100 * summary[row]["overall"][1] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7.5, 0.5 * len(rows) + 1.2), layout="constrained")
    axes.barh([_title(row) for row in rows], means, xerr=spreads, color="#4c78a8", capsize=3)
    for number, mean in enumerate(means):
        axes.text(1, number, f"{mean:.1f} %", va="center", color="white")
    axes.axvline(100 * baseline, color="#e45756", linestyle="--", label="always the commonest answer")
    axes.set(xlim=(0, 100), xlabel="right answers to held-out questions, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Parses the command line and runs the ablation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/ablation"))
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"some of {', '.join(VARIANTS)}")
    parser.add_argument("--jobs", type=int, default=_cores(), help="runs at a time")
    parser.add_argument("--cfg-options", nargs="*", default=[], help="more settings of both stages, e.g. max_iters=20")
    parser.add_argument("--limit", type=int, help="only so many questions")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}: expected some of {', '.join(VARIANTS)}")
    console = Console(stderr=True, width=150)
    manifest = make_world(WORLD, 0, 3000, console)
    threads = max(1, _cores() // arguments.jobs)
    tasks = [(name, seed) for seed in range(arguments.seeds) for name in names]
    results: dict[str, list[dict[str, float]]] = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = pool.map(lambda task: run(*task, arguments.out, threads, arguments.cfg_options, arguments.limit), tasks)
        for (_, seed), rows in zip(tasks, runs, strict=True):
            for row, shares in rows.items():
                results.setdefault(row, []).append(shares)
                console.print(f"{_title(row)}, seed {seed}: {shares['overall']:.1%}", markup=False)
    summary = summarise(results)
    (arguments.out / "results.json").write_text(json.dumps({"seeds": results}, indent=1) + "\n", encoding="utf-8")
    write_table(summary, arguments.out / "ablation.md", console)
    plot(summary, manifest["majority_baseline"]["overall"], arguments.out / "ablation.png")


if __name__ == "__main__":
    main()

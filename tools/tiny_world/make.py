"""Makes the tiny world: pictures, LLaVA and box JSON, test questions, and the parts of a tiny model.

    python tools/tiny_world/make.py --out work_dirs/tiny_world [--seed 0] [--scenes 3000]
    python tools/tiny_world/make.py --videos [--clips 1000]       adds clips in which shapes move, appear or change

The same seed gives the same data files everywhere. A folder left half-made by a killed run is made anew; a
finished one with the same settings is reused. Clips are encoded by libx264, so their bytes depend on its version.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.tiny_world.boxes import detect  # noqa: E402
from tools.tiny_world.clips import EVENTS, clip_boxes, clip_record, clip_tests, make_clip, save_clip  # noqa: E402
from tools.tiny_world.dice import Dice  # noqa: E402
from tools.tiny_world.drawing import save_picture  # noqa: E402
from tools.tiny_world.parts import PART_NAMES, SHIPPED, check_shipped, file_digest, make_part  # noqa: E402
from tools.tiny_world.questions import majority_baseline  # noqa: E402
from tools.tiny_world.records import pretrain_record, sft_records, test_questions  # noqa: E402
from tools.tiny_world.scenes import Scene, make_scene  # noqa: E402

WORLD_VERSION = 3
"""Raise it when the same seed gives other files than before: worlds made earlier are then made anew."""
_TEST_SHARE = 12
"""One test scene for so many training scenes."""
_TEST_CLIPS = 5
"""One test clip for so many training clips."""
_BOX_STREAM = 4
_MARKER, _MANIFEST = ".tiny_world", "manifest.json"
_PARTIAL_SUFFIX = ".part"


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(path.name + _PARTIAL_SUFFIX)
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _settings(seed: int, scenes: int, random_parts: bool) -> dict[str, Any]:
    parts: Any = "random"
    if not random_parts:
        parts = {str(path.relative_to(SHIPPED)): file_digest(path) for path in sorted(SHIPPED.rglob("*.safetensors"))}
    return {"version": WORLD_VERSION, "seed": seed, "scenes": scenes, "parts": parts}


def _scenes(seed: int, scenes: int) -> dict[str, list[Scene]]:
    """Returns train and test scenes; a test scene that equals a training scene in content is left out."""
    counts = {"train": scenes, "test": max(4, scenes // _TEST_SHARE)}
    made = {split: [make_scene(seed, split, n) for n in range(count)] for split, count in counts.items()}
    seen = {(scene.things, scene.letter) for scene in made["train"]}
    made["test"] = [scene for scene in made["test"] if (scene.things, scene.letter) not in seen]
    return made


def make_data(folder: Path, seed: int, scenes: int, console: Console) -> dict[str, float]:
    """Writes pictures, pretrain.json, sft.json, boxes.json and test.json below ``folder``.

    Args:
        folder: The image folder of the configs; emptied first.
        seed: The world's seed.
        scenes: Number of training scenes.
        console: Where progress goes.

    Returns:
        The majority-answer baseline of the test questions, per kind and overall.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    made = _scenes(seed, scenes)
    everything = [*made["train"], *made["test"]]
    with ProcessPoolExecutor() as processes:
        drawn = processes.map(save_picture, everything, repeat(folder), chunksize=50)
        for _ in track(drawn, description="drawing", total=len(everything), console=console):
            pass
    _write_json(folder / "pretrain.json", [pretrain_record(scene) for scene in made["train"]])
    _write_json(folder / "sft.json", sft_records(made["train"], seed))
    _write_json(folder / "boxes.json", [detect(s, Dice(*s.noise_keys, _BOX_STREAM)) for s in everything])
    questions = test_questions(made["test"], seed)
    _write_json(folder / "test.json", questions)
    return majority_baseline((question["kind"], question["answer"]) for question in questions)


def make_videos(out: Path, seed: int, clips: int, console: Console) -> dict[str, float]:
    """Writes clips, videos.json, videos_boxes.json and videos_test.json into a world; replaces what stood there.

    Args:
        out: The world's folder.
        seed: The world's seed.
        clips: Number of training clips.
        console: Where progress goes.

    Returns:
        The majority-answer baseline of the test questions, per kind and overall.
    """
    folder = out / "data"
    shutil.rmtree(folder / "videos", ignore_errors=True)
    (folder / "videos").mkdir(parents=True)
    train = [make_clip(seed, "train", number) for number in range(clips)]
    test = [make_clip(seed, "test", number) for number in range(max(len(EVENTS), clips // _TEST_CLIPS))]
    everything = [*train, *test]
    with ProcessPoolExecutor() as processes:
        filmed = processes.map(save_clip, everything, repeat(folder), chunksize=10)
        for _ in track(filmed, description="filming", total=len(everything), console=console):
            pass
    _write_json(folder / "videos.json", [clip_record(clip) for clip in train])
    _write_json(folder / "videos_boxes.json", [clip_boxes(clip) for clip in everything])
    questions = [question for clip in test for question in clip_tests(clip)]
    _write_json(folder / "videos_test.json", questions)
    return majority_baseline((question["kind"], question["answer"]) for question in questions)


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest if it stands, was made with these settings, and its files are unchanged."""
    path = out / _MANIFEST
    if not path.is_file():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest["settings"] != settings:
        return None
    whole = all((out / name).is_file() and file_digest(out / name) == sha for name, sha in manifest["files"].items())
    return manifest if whole else None


def make_world(out: Path, seed: int, scenes: int, console: Console, random_parts: bool = False) -> dict[str, Any]:
    """Makes the world below ``out`` unless a finished one with the same settings stands there.

    Args:
        out: The world's folder.
        seed: Seed of scenes and of random parts.
        scenes: Number of training scenes.
        console: Where progress goes.
        random_parts: Take LLM and encoders with random weights instead of the shipped pre-trained ones.

    Returns:
        The manifest: settings, files with their sha256, baseline.

    Raises:
        SystemExit: ``out`` holds something that is not a tiny world, or a shipped part is missing or old.
    """
    if not random_parts:
        check_shipped()
    settings = _settings(seed, scenes, random_parts)
    manifest = _finished(out, settings)
    if manifest:
        console.print(f"The tiny world in {out} stands already (seed {seed}, {scenes} scenes): reused.")
        return manifest
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise SystemExit(f"{out} is not empty and not a tiny world. Name another one with --out.")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    (out / _MANIFEST).unlink(missing_ok=True)
    baseline = make_data(out / "data", seed, scenes, console)
    for name in track(PART_NAMES, description="making parts", console=console):
        make_part(name, out / "parts" / name, seed if random_parts else None)
    files = sorted(path for folder in ("data", "parts") for path in (out / folder).rglob("*") if path.is_file())
    manifest = {
        "settings": settings,
        "majority_baseline": baseline,
        "files": {path.relative_to(out).as_posix(): file_digest(path) for path in files},
    }
    # Written last: a folder without it was left by a killed run.
    _write_json(out / _MANIFEST, manifest)
    return manifest


def _report(baseline: dict[str, float], console: Console) -> None:
    table = Table("kind of question", "always the commonest answer", title="What guessing gets")
    for kind, share in baseline.items():
        table.add_row(kind, f"{share:.1%}")
    console.print(table)


def _report_world(manifest: dict[str, Any], console: Console) -> None:
    _report(manifest["majority_baseline"], console)
    origin = "random" if manifest["settings"]["parts"] == "random" else "pre-trained"
    console.print(f"Parts: {origin}. Files: {len(manifest['files'])}.")


def main() -> None:
    """Parses the command line and makes the world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/tiny_world"), help="folder of the world")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world")
    parser.add_argument("--scenes", type=int, default=3000, help="number of training scenes")
    parser.add_argument("--videos", action="store_true", help="add clips in which shapes move, appear or change")
    parser.add_argument("--clips", type=int, default=1000, help="number of training clips")
    parser.add_argument("--parts", choices=("pretrained", "random"), default="pretrained", help="LLM and encoders")
    arguments = parser.parse_args()
    if arguments.seed < 0 or arguments.scenes < 1 or arguments.clips < 1:
        parser.error("--seed must be 0 or more, --scenes and --clips 1 or more")
    console = Console(stderr=True)
    manifest = make_world(arguments.out, arguments.seed, arguments.scenes, console, arguments.parts == "random")
    _report_world(manifest, console)
    if arguments.videos:
        _report(make_videos(arguments.out, arguments.seed, arguments.clips, console), console)


if __name__ == "__main__":
    main()

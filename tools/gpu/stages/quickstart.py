"""The quickstart on the device: tiny world, both stages, evaluation, conversion and a question."""

from __future__ import annotations

import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from tools.gpu.setting import Setting, Unmet
from tools.gpu.stages import Rows

ROOT = Path(__file__).resolve().parents[3]


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    if setting.tiny:
        return [("stage 1 of the tiny world, two steps", partial(two_steps, setting))]
    return [("script/quickstart.sh, 60 steps a stage", partial(quickstart, setting))]


def two_steps(setting: Setting) -> dict[str, Any]:
    """`xtuner train` in this process, on a world of a few scenes with random parts."""
    from rich.console import Console

    from tools.tiny_world.make import make_world
    from xtuner.cli import main

    folder = setting.scratch("world")
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        make_world(folder / "world", 0, 20, Console(file=log), random_parts=True)
    parts, data = folder / "world" / "parts", folder / "world" / "data"
    options = [
        f"llm_name_or_path={parts}/llm",
        f"visual_encoder_name_or_path={parts}/clip",
        f"visual_encoder_aux_path={parts}/convnext",
        f"data_path={data}/pretrain.json",
        f"image_folder={data}",
        f"box_json_path={data}/boxes.json",
        "max_iters=2",
        "batch_size=2",
    ]
    config = str(ROOT / "configs/tiny/tiny_pretrain.py")
    code = main(["train", config, "--work-dir", str(folder / "run"), "--cfg-options", *options])
    if code:
        raise Unmet(f"xtuner train ended with code {code}", {})
    return {"checkpoint": (folder / "run" / "last_checkpoint").read_text().strip().rpartition("/")[2]}


def quickstart(setting: Setting) -> dict[str, Any]:
    """The script as users run it, with the Python that runs this, in few steps."""
    out = setting.folder / "quickstart"
    environ = {**os.environ, "VENV": "none", "OUT": str(out)}
    began = time.perf_counter()
    done = subprocess.run(
        ["bash", "script/quickstart.sh", "max_iters=60"], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    (setting.folder / "quickstart.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Unmet(f"script/quickstart.sh ended with code {done.returncode}: {last[:200]}", {})
    answer = next(line for line in done.stdout.splitlines() if line.startswith("Answer:"))
    return {"whole, s": time.perf_counter() - began, "answer": answer.removeprefix("Answer:").strip()}

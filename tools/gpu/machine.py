"""What the check needs of the machine: packages, here or from wheels, and a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MADE_FOR = "made_for.json"

MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "timm": "timm",
    "peft": "peft",
    "accelerate": "accelerate",
    "rich": "rich",
    "pyarrow": "pyarrow",
    "mmengine": "mmengine",
    "addict": "addict",
    "termcolor": "termcolor",
    "yapf": "yapf",
    "deepspeed": "deepspeed",
    "hjson": "hjson",
    "pydantic": "pydantic",
    "open_clip": "open_clip_torch",
    "datasets": "datasets",
}
"""Module: the package that brings it."""

_LOOK = """
import json, sys, importlib.util
missing = [name for name in json.loads(sys.argv[1]) if importlib.util.find_spec(name) is None]
found = {"missing": missing, "python": "%d.%d" % sys.version_info[:2]}
if "torch" not in missing:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.cuda.is_available()}
    found["card"] = torch.cuda.get_device_name() if found["cuda"] else None
print(json.dumps(found))
"""


class BadInput(Exception):
    """What the user can mend, in one sentence."""


def prepare_packages(wheels: Path | None, out: Path, device: str) -> dict[str, str]:
    """Unpacks wheels below `out` where there are some, and returns the environment of the workers.

    Raises:
        BadInput: the folder holds no wheels, or pip refuses them.
    """
    packages, programs = out / "packages", out / "bin"
    if wheels is not None:
        if not list(wheels.glob("*.whl")):
            raise BadInput(f"--wheels {wheels} holds no *.whl: make the folder by 'bash tools/gpu/wheels.sh {wheels}'.")
        _install(sorted(wheels.glob("*.whl")), packages)
    programs.mkdir(exist_ok=True)
    for name, arguments in (("python", ""), ("xtuner", " -m xtuner")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{programs}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), *([str(packages)] if packages.is_dir() else []), os.environ.get("PYTHONPATH", "")]
        ).rstrip(os.pathsep),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "XTUNER_CACHE": str(out / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor"),
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    if device == "cpu":
        environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environ


def _install(files: list[Path], packages: Path) -> None:
    done = packages / ".installed"
    names = "\n".join(file.name for file in files)
    if done.is_file() and done.read_text() == names:
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--upgrade",
    ]
    ended = subprocess.run([*command, "--target", str(packages), *map(str, files)], capture_output=True, text=True)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["nothing said"])[0]
        raise BadInput(f"pip does not install the wheels of {files[0].parent}: {said}")
    done.write_text(names)


def check_machine(device: str, wheels: Path | None, environ: dict[str, str]) -> dict[str, Any]:
    """Looks at the machine as workers see it; returns device, card, Python and torch for the report.

    Raises:
        BadInput: a package or the GPU is missing, or Python or torch are others than the wheels were made for.
    """
    ended = subprocess.run(
        [sys.executable, "-c", _LOOK, json.dumps(list(MODULES))], capture_output=True, text=True, env=environ, cwd=ROOT
    )
    if ended.returncode:
        raise BadInput(f"torch cannot be imported: {ended.stderr.strip().splitlines()[-1]}")
    found = json.loads(ended.stdout.splitlines()[-1])
    if wheels is not None and (wheels / MADE_FOR).is_file():
        _check_versions(found, json.loads((wheels / MADE_FOR).read_text(encoding="utf-8")), wheels)
    if found["missing"]:
        names = ", ".join(MODULES[name] for name in found["missing"])
        where = f"{wheels} does not bring" if wheels is not None else "this Python does not have"
        raise BadInput(f"{where} {names}: make a folder by 'bash tools/gpu/wheels.sh DIR' and give --wheels DIR.")
    if device == "cuda" and not found["cuda"]:
        raise BadInput(f"torch {found['torch']} finds no GPU: run on one, or give --device cpu --tiny.")
    return {"device": device, "card": found["card"] or "CPU", "python": found["python"], "torch": found["torch"]}


def _check_versions(found: dict[str, Any], made_for: dict[str, str], wheels: Path) -> None:
    for name in ("python", "torch"):
        version = ".".join(str(found.get(name)).split("+")[0].split(".")[:2])
        if version != made_for[name]:
            raise BadInput(
                f"{name} is {version}, and the wheels of {wheels} are for {made_for[name]}: make them for it by "
                f"'{name.upper()}={version} bash tools/gpu/wheels.sh {wheels}'."
            )

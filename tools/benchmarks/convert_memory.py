"""Peak memory of `xtuner convert pth_to_hf`: `python tools/benchmarks/convert_memory.py`.

Makes a model of a given size with random weights and a checkpoint of it in the forms asked for, converts each in a
process of its own, and prints that process's peak above that of converting a model of no size, relative to the model.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.tiny_assistant import tiny_model_node  # noqa: E402
from tests.zero_checkpoint import save_zero_checkpoint  # noqa: E402
from xtuner.registry import build  # noqa: E402

CONFIG = "fuse_phi3_clip_L_14_336_sft_padding"
LORA_CONFIG = "with_lora.py"
HIDDEN = 2048


def make(folder: Path, layers: int, forms: list[str]) -> tuple[list[str], dict[str, Path], int]:
    """Writes parts and checkpoints; returns the settings, the checkpoints by form, and the model's bytes."""
    size = {"hidden_size": HIDDEN, "intermediate_size": 5504, "num_hidden_layers": layers} if layers else {}
    node = tiny_model_node(folder, **size, dtype=torch.bfloat16)
    model = build(node, trainable=("fusion", "projector", "object_encoder", "llm"))
    # in several files, as published models are; the one of float32 would be read before them
    (folder / "llm" / "model.safetensors").unlink()
    model.llm.to(torch.bfloat16).save_pretrained(folder / "llm", max_shard_size="150MB")
    state = model.state_dict()
    checkpoints = {}
    for form in forms:
        checkpoints[form] = folder / f"{form}.pth"
        if form == "lora":
            node["llm_lora"] = {"type": LoraConfig, "r": 8}
            adapted = build(node, trainable=("fusion", "projector", "object_encoder"))
            torch.save({"state_dict": adapted.state_dict()}, checkpoints[form])
            (folder / LORA_CONFIG).write_text(
                "from mmengine.config import read_base\nfrom peft import LoraConfig\n\n"
                f"with read_base():\n    from .configs.phi3.{CONFIG} import *\n\n"
                "llm_lora = dict(type=LoraConfig, r=8)\ntrainable = ('fusion', 'projector', 'object_encoder')\n"
            )
            shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
        elif form == "file":
            torch.save({"state_dict": state}, checkpoints[form])
        else:
            save_zero_checkpoint(state, checkpoints[form], int(form[-1]))
    settings = {
        "llm_name_or_path": folder / "llm",
        "visual_encoder_name_or_path": folder / "clip",
        "visual_encoder_aux_path": folder / "convnext",
        "image_size_aux": 64,
        "prompt_template": "vicuna",
    }
    total = sum(value.numel() * value.element_size() for value in model.full_state_dict().values())
    return [f"{key}={value}" for key, value in settings.items()], checkpoints, total


def peak(settings: list[str], checkpoint: Path, out: Path) -> float:
    """Returns the most memory in MB that one conversion held."""
    config = str(checkpoint.with_name(LORA_CONFIG)) if checkpoint.stem == "lora" else CONFIG
    command = [sys.executable, "-m", "xtuner", "convert", "pth_to_hf", config, str(checkpoint), str(out)]
    process = subprocess.Popen([*command, "--cfg-options", *settings], cwd=ROOT)
    # not ru_maxrss: that begins with what this process, which made the model, held when it started the other
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the conversion failed: {process.returncode}")
    return most / 1e3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8, help="of the language model, 101 MB each (default: 8)")
    parser.add_argument("--forms", nargs="+", default=["file", "zero3"], choices=("file", "zero2", "zero3", "lora"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        settings, checkpoints, _ = make(root / "small", 0, args.forms)
        base = {form: peak(settings, path, root / "out") for form, path in checkpoints.items()}
        settings, checkpoints, total = make(root / "large", args.layers, args.forms)
        for form, path in checkpoints.items():
            extra = peak(settings, path, root / "out") - base[form]
            share = extra / total * 1e6
            print(f"{form}: {extra:.0f} MB above {base[form]:.0f} MB; the model has {total / 1e6:.0f} MB: {share:.2f}x")


if __name__ == "__main__":
    main()

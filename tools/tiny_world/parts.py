"""The tiny world's LLM, CLIP and ConvNeXt in the on-disk formats of the real ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tools.tiny_world.tokenizer import build_tokenizer
from xtuner.model.files.quiet import quiet_transformers

PART_NAMES = ("llm", "clip", "convnext")
PARTS_VERSION = 1
"""Raise it when scenes, words or part sizes change such that shipped parts no longer fit."""
SHIPPED = Path(__file__).parent / "pretrained"
"""Pre-trained parts, one folder per name, weights in float16."""
_NOTE = "training.json"
_TRAINED_BY = {
    "llm": "pretrain_llm.py",
    "clip": "pretrain_towers.py clip",
    "convnext": "pretrain_towers.py convnext",
}

LOW_RES_SIZE, LOW_RES_PATCH = 84, 14
HIGH_RES_SIZE = 192
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def make_llm(folder: Path) -> None:
    """Writes a 1 M parameter Llama with its tokenizer as ``save_pretrained`` does."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        # Wider than the usual 0.02: else the head's logits are so small that a frozen random LLM stays near the
        # uniform guess, whatever the first stage trains (measured loss after 60 steps: 5.9 against 3.8).
        initializer_range=0.08,
    )
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_clip(folder: Path) -> None:
    """Writes a CLIPVisionModel of 84 px and patch 14 (a 6 x 6 grid) with its preprocessor_config.json."""
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=LOW_RES_SIZE,
        patch_size=LOW_RES_PATCH,
        projection_dim=32,
        hidden_act="quick_gelu",
    )
    with quiet_transformers():
        CLIPVisionModel(config).save_pretrained(folder)
    preprocessor = {
        "crop_size": LOW_RES_SIZE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "size": LOW_RES_SIZE,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def make_convnext(folder: Path) -> None:
    """Writes an open_clip folder with timm's smallest ConvNeXt but one (32 to 128 channels) at 192 px."""
    model_config = {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_convnext2",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": HIGH_RES_SIZE,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
    }
    config = {
        "model_cfg": model_config,
        "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = open_clip.CLIP(**model_config)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


@contextmanager
def ship_part(name: str, out: Path, arguments: dict[str, Any]) -> Iterator[tuple[Path, dict[str, float]]]:
    """A folder to train a part in; once trained it replaces ``out``, weights in half precision, with a note.

    Args:
        name: One of PART_NAMES.
        out: Where the part goes.
        arguments: Command-line arguments of the script, for the note ``training.json``.

    Yields:
        The folder to write the part to, and a dictionary to put its figures in.
    """
    partial = out.with_name(out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    figures: dict[str, float] = {}
    yield partial, figures
    _convert_weights(partial, torch.float16)
    kept = {key: value for key, value in arguments.items() if key != "out"}
    note = {
        "version": PARTS_VERSION,
        "command": f"python tools/tiny_world/{_TRAINED_BY[name]}",
        "arguments": kept,
        "figures": figures,
        "sha256": {path.name: file_digest(path) for path in sorted(partial.glob("*.safetensors"))},
    }
    (partial / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_shipped() -> None:
    """Checks that all pre-trained parts are there, whole, and made for this version of the world.

    Raises:
        SystemExit: naming every part that is not, and the command that makes it.
    """
    problems = []
    for name in PART_NAMES:
        fault = _fault(SHIPPED / name)
        if fault:
            problems.append(f"{SHIPPED / name}: {fault}; make it: python tools/tiny_world/{_TRAINED_BY[name]}")
    if problems:
        raise SystemExit("\n".join([*problems, "Or take untrained parts: --parts random."]))


def _fault(folder: Path) -> str:
    """Returns what is wrong with a shipped part, '' if nothing."""
    note_file = folder / _NOTE
    if not note_file.is_file():
        return "the pre-trained part is missing"
    note = json.loads(note_file.read_text(encoding="utf-8"))
    if note["version"] != PARTS_VERSION:
        return f"made for version {note['version']} of the world's parts, this is version {PARTS_VERSION}"
    for weights, digest in note["sha256"].items():
        if not (folder / weights).is_file():
            return f"{weights} is missing"
        if file_digest(folder / weights) != digest:
            return f"{weights} is not the file that its {_NOTE} describes"
    return ""


def _convert_weights(folder: Path, dtype: torch.dtype) -> None:
    for file in folder.glob("*.safetensors"):
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})


_MAKERS = {"llm": make_llm, "clip": make_clip, "convnext": make_convnext}


def make_part(name: str, folder: Path, seed: int | None) -> None:
    """Makes one part in float32: the shipped pre-trained one, or one of random weights.

    Args:
        name: One of PART_NAMES.
        folder: Where the part goes; what stands there is replaced.
        seed: Seed of random weights; None takes the shipped part, which `check_shipped` has found whole.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if seed is None:
        shutil.copytree(SHIPPED / name, folder)
        _convert_weights(folder, torch.float32)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + PART_NAMES.index(name))
        _MAKERS[name](folder)

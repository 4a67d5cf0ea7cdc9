"""Tiny random LLaVA folders: transformers' own, those of the Hub, and those of LLaVA's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from tests.tiny_assistant import tiny_tokenizer
from tests.tiny_parts import tiny_clip_folder, tiny_llm

IMAGE_ID = 127
ROWS = 128


def tiny_configs(**text: Any) -> dict[str, Any]:
    """Configs of language model and CLIP as transformers' LLaVA takes them."""
    values = dict(
        vocab_size=ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    return {
        "text_config": LlamaConfig(**{**values, **text}),
        "vision_config": vision,
        "image_token_index": IMAGE_ID,
        "image_seq_length": 4,
    }


def tiny_llava(folder: Path, next_version: bool = False, **text: Any) -> Any:
    """A LLaVA 1.5 (or 1.6), saved by transformers itself with its tokenizer; returns the model."""
    torch.manual_seed(11)
    if next_version:
        config = LlavaNextConfig(**tiny_configs(**text), image_grid_pinpoints=[[28, 56], [56, 28]])
        model: Any = LlavaNextForConditionalGeneration(config)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**tiny_configs(**text)))
    with torch.no_grad():
        for parameter in model.parameters():
            # biases and norms start as constants, which would hide an exchange
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.eval().save_pretrained(folder)
    tiny_tokenizer(folder)
    return model


def rewrite(folder: Path, change: Any) -> None:
    """Saves a folder's weights under other names: `change` maps name to name, or to None."""
    state = load_file(folder / "model.safetensors")
    save_file({new: value for name, value in state.items() if (new := change(name))}, folder / "model.safetensors")


def edit(folder: Path, **values: Any) -> None:
    """Changes values of a folder's config.json; a dotted key reaches into a part."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        *above, last = key.split("__")
        node = config
        for name in above:
            node = node[name]
        node[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def own_code_folder(parent: Path, source: Path, with_tower: bool = True, **values: Any) -> Path:
    """The folder `source`, of transformers, as LLaVA's own code saves it: names of its own, one flat config.json."""
    folder = parent / "own"
    folder.mkdir()
    tower = tiny_clip_folder(parent)
    config = json.loads((source / "config.json").read_text())
    state = load_file(source / "model.safetensors")
    names = {
        "language_model.": "",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    }
    renamed = {}
    for name, value in state.items():
        old = next(old for old in names if name.startswith(old))
        if with_tower or old != "vision_tower.":
            renamed[names[old] + name.removeprefix(old).removeprefix("vision_model.")] = value
    torch.save(renamed, folder / "pytorch_model.bin")
    if not with_tower:
        clip = {n.removeprefix("vision_tower."): v for n, v in state.items() if n.startswith("vision_tower.")}
        save_file(clip, tower / "model.safetensors")
    own = {
        **config["text_config"],
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "rope_theta": 10000.0,
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 24,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        **values,
    }
    (folder / "config.json").write_text(json.dumps(own))
    tiny_tokenizer(folder)
    return folder


def adapter_folder(parent: Path, own: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A LLaVA of adapters as LLaVA's own code saves it; returns it, its base and the merged language model."""
    folder, base = parent / "lora", parent / "vicuna"
    tiny_llm().save_pretrained(base)
    tiny_tokenizer(base)
    torch.manual_seed(12)
    adapted: Any = get_peft_model(tiny_llm(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    state = torch.load(own / "pytorch_model.bin", weights_only=True)
    beside = {f"base_model.model.{name}": value for name, value in state.items() if "mm_projector" in name}
    torch.save(beside, folder / "non_lora_trainables.bin")
    (folder / "config.json").write_text((own / "config.json").read_text())
    return folder, base, adapted.merge_and_unload().state_dict()

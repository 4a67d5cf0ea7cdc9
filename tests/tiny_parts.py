"""Factories of tiny random parts in the on-disk formats of the real ones: low 28 px / 14, high 64 px / 32,
both 2 × 2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.model.projector import MLPProjector

VOCAB = 128
HIGH_SIZE = 64
LOW_SIZE = 28
NUM_IMAGE_TOKENS = 4


def tiny_llm(hidden_size: int = 32, **config: Any) -> LlamaForCausalLM:
    """A Llama of two layers with a vocabulary of 128."""
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCAB,
        "hidden_size": hidden_size,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config,
    }
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def tiny_llm_folder(parent: Path, hidden_size: int = 32, **config: Any) -> Path:
    """`tiny_llm` as transformers saves it."""
    folder = parent / "llm"
    tiny_llm(hidden_size, **config).save_pretrained(folder)
    return folder


def tiny_clip(image_size: int = LOW_SIZE) -> CLIPVisionModel:
    """A CLIP vision model of three layers, width 24."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=14,
    )
    return CLIPVisionModel(config).eval()


def tiny_clip_folder(parent: Path, image_size: int = LOW_SIZE) -> Path:
    """`tiny_clip` as transformers saves it, with its preprocessor config."""
    folder = parent / "clip"
    tiny_clip(image_size).save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": image_size, "width": image_size},
        "size": {"shortest_edge": image_size},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def tiny_convnext_folder(parent: Path, weights: str = "open_clip_model.safetensors") -> Path:
    """timm's ``test_convnext`` in open_clip's folder format; `weights` is a .safetensors or .bin name."""
    folder = parent / "convnext"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2)
    trunk = timm.create_model("test_convnext", pretrained=False, num_classes=0)
    vision = {
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "mlp",
        "timm_drop_path": 0.1,
        "image_size": 64,
    }
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"width": 8}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    state["logit_scale"] = torch.zeros(())
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


def tiny_model(folder: Path, hidden_size: int = 32, low_res_only: bool = False, **arguments: Any) -> MGLLaVA:
    """A whole model whose fusion adds something, so that every part shows in the output.

    Args:
        folder: its parts are written there.
        hidden_size: of the language model.
        low_res_only: the LLaVA-1.5 baseline.
        arguments: of `MGLLaVA`, instead of these.
    """
    torch.manual_seed(3)
    high: dict[str, Any] = {}
    if not low_res_only:
        convnext = {
            "type": HighResEncoder,
            "path": str(tiny_convnext_folder(folder)),
            "image_size": HIGH_SIZE,
        }
        high = {
            "high_res_encoder": convnext,
            "fusion": {"type": ConvGateFusion},
            "object_encoder": {"type": ObjectEncoder},
        }
    values = {
        "llm": tiny_llm(hidden_size),
        "low_res_encoder": {"type": LowResEncoder, "name_or_path": str(tiny_clip_folder(folder))},
        "projector": {"type": MLPProjector},
        "activation_checkpointing": False,
        **high,
        **arguments,
    }
    model = MGLLaVA(**values)
    if isinstance(model.fusion, ConvGateFusion):
        for conv in (model.fusion.low_proj, model.fusion.high_proj):
            nn.init.normal_(conv.weight, std=0.1)
    return model.eval()


def tiny_batch(
    lengths: tuple[int, ...] = (12,),
    pictures: tuple[int, ...] = (1,),
    boxes: int = 3,
    size: int = HIGH_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """A collated batch: per sample its text length and its number of pictures; picture k has ``boxes + k``
    boxes.
    """
    generator = torch.Generator().manual_seed(seed)
    length, count = max(lengths), sum(pictures)
    input_ids = torch.zeros((len(lengths), length), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    mask = torch.arange(length) < torch.tensor(lengths).unsqueeze(1)
    for row, (tokens, images) in enumerate(zip(lengths, pictures, strict=True)):
        input_ids[row, :tokens] = torch.randint(3, VOCAB, (tokens,), generator=generator)
        labels[row, tokens // 2 + 1 : tokens] = input_ids[row, tokens // 2 + 1 : tokens]
        input_ids[row, 1 : 1 + images] = IMAGE_TOKEN_INDEX
    corners = [torch.rand(boxes + k, 2, 2, generator=generator).sort(dim=1).values * size for k in range(count)]
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": mask,
        "pixel_values": torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        "boxes": [corner.flatten(1) for corner in corners],
        "sample_ids": [str(row) for row in range(len(lengths))],
    }

"""Exported folders of every language model family, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mg_llava.hf import save_pretrained
from mg_llava.inference.assistant import Assistant
from mg_llava.pictures.preprocess import ImageProcessor
from tests.tiny_assistant import randomize, tiny_model_node, tiny_tokenizer
from tests.tiny_parts import HIGH_SIZE, VOCAB
from xtuner.registry import build

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # with small weights a model with tied embeddings says its last token again, whatever it is asked
    "initializer_range": 0.3,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "phi3, fused weights": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "llama, frames pooled": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "baseline without high resolution": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}


def export(root: Path, family: str) -> Path:
    """A folder of the family with random weights."""
    low_res_only = family.startswith("baseline")
    node = tiny_model_node(root / "parts", low_res_only, frame_side=2 if family.endswith("frames pooled") else 1)
    torch.manual_seed(5)
    FAMILIES[family]().save_pretrained(root / "parts" / "llm")
    model = build(node).eval()
    size = HIGH_SIZE if not low_res_only else model.vision.image_size
    clip = str(root / "parts" / "clip")
    processor = ImageProcessor(clip, image_size=size, frame_pooling=node["frame_pooling"])
    assistant = randomize(Assistant(model, tiny_tokenizer(root / "parts" / "llm"), processor, "vicuna"))
    return save_pretrained(assistant, node, root / "hf")

"""The tiny world's LLM, CLIP and ConvNeXt with random weights, in the on-disk formats of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tools.tiny_world.tokenizer import build_tokenizer
from xtuner.model.files.quiet import quiet_transformers

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


MAKERS = {"llm": make_llm, "clip": make_clip, "convnext": make_convnext}

"""A whole tiny model with tokenizer, image processor and template, as evaluation, chat and export use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mg_llava.boxes.selection import BoxSelection
from mg_llava.inference.assistant import Assistant
from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from mg_llava.pictures.pooling import FramePooling
from mg_llava.pictures.preprocess import ImageProcessor
from tests.tiny_parts import HIGH_SIZE, VOCAB, tiny_clip_folder, tiny_convnext_folder, tiny_llm_folder
from xtuner.model.llm import build_llm
from xtuner.model.projector import MLPProjector
from xtuner.registry import build

WORDS = ["USER:", "ASSISTANT:", "red", "blue", "dog", "cat", "yes", "no", "Is", "it", "what", "A", "B", "C", "D"]


def tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Whole words split at spaces, 128 ids: pad 0, bos 1, eos 2, unk 3, the `WORDS`, and fillers; saved to `folder`."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*special, *WORDS]
    words += [f"w{number}" for number in range(VOCAB - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return fast


def tiny_model_node(folder: Path, low_res_only: bool = False, frame_side: int = 1, **llm_config: Any) -> dict[str, Any]:
    """The config node of a tiny model, as a resolved config has it; its parts are written below `folder`."""
    llm = tiny_llm_folder(folder, **llm_config)
    tiny_tokenizer(llm)

    def node(kind: type | Any, **arguments: Any) -> dict[str, Any]:
        return {"type": f"{kind.__module__}.{kind.__qualname__}", **arguments}

    high: dict[str, Any] = {}
    if not low_res_only:
        high = {
            "high_res_encoder": node(HighResEncoder, path=str(tiny_convnext_folder(folder)), image_size=HIGH_SIZE),
            "fusion": node(ConvGateFusion),
            "object_encoder": node(ObjectEncoder),
        }
    return node(
        MGLLaVA,
        llm=node(build_llm, name_or_path=str(llm)),
        low_res_encoder=node(LowResEncoder, name_or_path=str(tiny_clip_folder(folder))),
        projector=node(MLPProjector),
        activation_checkpointing=False,
        frame_pooling=node(FramePooling, side=frame_side),
        **high,
    )


def tiny_assistant(
    folder: Path, low_res_only: bool = False, frame_side: int = 1, **llm_config: Any
) -> tuple[Assistant, dict[str, Any]]:
    """A tiny assistant and the node of its model; `frame_side` is that of `FramePooling`."""
    node = tiny_model_node(folder, low_res_only, frame_side, **llm_config)
    size = HIGH_SIZE if not low_res_only else 28
    assistant = Assistant(
        model=build(node).eval(),
        tokenizer=tiny_tokenizer(folder / "llm"),
        image_processor=ImageProcessor(str(folder / "clip"), image_size=size, frame_pooling=node["frame_pooling"]),
        template="vicuna",
        boxes=BoxSelection(limit_num=5),
    )
    return assistant, node


def randomize(assistant: Assistant) -> Assistant:
    """Random numbers in all trained parts, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(7)
    for part in ("fusion", "projector", "object_encoder"):
        module = getattr(assistant.model, part)
        for parameter in module.parameters() if module is not None else ():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1
    return assistant


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def box_record(image: str) -> dict[str, Any]:
    """Two boxes of different classes."""
    return {"image": image, "boxes": [[2, 3, 20, 25], [10, 5, 38, 28]], "labels": ["dog", "cat"], "scores": [0.9, 0.4]}

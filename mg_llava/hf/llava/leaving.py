"""An exported low-resolution baseline to a folder of transformers' LLaVA-1.5."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaImageProcessor, LlavaProcessor

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.llava.names import to_transformers
from mg_llava.hf.processing import MGLLaVAProcessor
from xtuner.errors import ProblemsError, XTunerError
from xtuner.model.files.shards import ShardWriter
from xtuner.model.files.weight_files import Weight, open_weights
from xtuner.model.files.writing import disk_errors
from xtuner.model.projector import MLPProjector
from xtuner.registry import resolve_type

_ONLY_HERE = ("high_res_encoder", "fusion", "object_encoder")
_LAYER = -2
_LAYER_NAME = re.compile(r"(.*\.encoder\.layers\.)(\d+)(\..*)")
_EMBEDDINGS = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


def to_llava(folder: str | Path, target: str | Path) -> Path:
    """Writes an exported model without high resolution and objects as transformers' LLaVA.

    The one layer of CLIP that LLaVA holds and never reads is a copy of the layer below it: here it is not kept. Where
    the language model has no row for the id of ``<image>``, rows are added: the mean of the others, which is never an
    answer.

    Args:
        folder: as `save_pretrained` wrote it.
        target: new or empty folder.

    Raises:
        XTunerError: the model has parts that LLaVA has no place for, or the target holds something.
    """
    folder, target = Path(folder), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise XTunerError(f"'{target}' exists and is not empty: choose a new folder, nothing was overwritten.")
    config = MGLLaVAConfig.from_pretrained(folder)
    config.check(str(folder))
    _check_parts(folder, config)
    processor = MGLLaVAProcessor.from_pretrained(folder)
    weights = open_weights(folder)
    rows = max(weights[_EMBEDDINGS[0]].shape[0], config.image_token_id + 1)
    vision: Any = config.vision_config
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    with disk_errors(target):
        try:
            writer = ShardWriter(temporary, sum(path.stat().st_size for path in folder.glob("*.safetensors")))
            for name, tensor in _tensors(weights, rows, vision.num_hidden_layers):
                writer.add(to_transformers(name), tensor)
            writer.finish()
            _processor(processor, config).save_pretrained(temporary)
            if (folder / "generation_config.json").is_file():
                shutil.copyfile(folder / "generation_config.json", temporary / "generation_config.json")
            _config(config, rows).save_pretrained(temporary)
            if target.is_dir():
                target.rmdir()
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check_parts(folder: Path, config: MGLLaVAConfig) -> None:
    problems = [
        f"it has a {part}, for which LLaVA has no place: export a low-resolution model (configs llava_*)"
        for part in _ONLY_HERE
        if config.parts.get(part) is not None
    ]
    low, projector = config.parts["low_res_encoder"], config.parts["projector"]
    family = getattr(config.vision_config, "model_type", "timm")
    if family != "clip_vision_model" or (low.get("select_layer") or _LAYER) != _LAYER or low.get("image_size"):
        problems.append(f"its low_res_encoder is {family} with {low}: expected CLIP's hidden state {_LAYER}")
    if resolve_type(projector["type"]) is not MLPProjector or projector.get("depth", 2) != 2:
        problems.append(f"its projector is {projector}: expected an MLPProjector of depth 2")
    if problems:
        raise ProblemsError(f"'{folder}' as LLaVA", problems)


def _tensors(weights: dict[str, Weight], rows: int, layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    last = layers + 1 + _LAYER
    for name, weight in weights.items():
        tensor = weight.load()
        if name in _EMBEDDINGS and len(tensor) < rows:
            mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.expand(rows - len(tensor), -1)])
        yield name, tensor
        layer = _LAYER_NAME.fullmatch(name) if name.startswith("low_res_encoder.") else None
        if layer is not None and int(layer[2]) == last - 1:
            for unread in range(last, layers):
                yield f"{layer[1]}{unread}{layer[3]}", tensor.clone()


def _config(config: MGLLaVAConfig, rows: int) -> LlavaConfig:
    text: Any = copy.deepcopy(config.text_config)
    text.vocab_size = rows
    return LlavaConfig(
        text_config=text,
        vision_config=config.vision_config,
        image_token_index=config.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=_LAYER,
        image_seq_length=config.num_image_tokens,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        architectures=["LlavaForConditionalGeneration"],
        dtype=config.dtype,
    )


def _processor(processor: MGLLaVAProcessor, config: MGLLaVAConfig) -> LlavaProcessor:
    """LLaVA's processor with the same ids; it pads to a square where this one does."""
    vision: Any = config.vision_config
    side = {"height": vision.image_size, "width": vision.image_size}
    own: Any = processor
    pictures = LlavaImageProcessor(
        do_pad=own.image_processor.pad_to_square,
        size={"shortest_edge": vision.image_size},
        crop_size=side,
        image_mean=config.pixels["mean"],
        image_std=config.pixels["std"],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=own.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=own.chat_template,
    )

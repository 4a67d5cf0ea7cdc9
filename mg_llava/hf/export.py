"""Writing a self-contained folder: all parts of a model with what belongs to it, weight by weight.

Layout: ``config.json`` (the config of each part), ``model*.safetensors`` (weights of all parts, frozen encoders too),
``generation_config.json``, the tokenizer's files with ``chat_template.jinja``, ``processor_config.json`` and
``preprocessor_config.json``, and ``README.md``, the model card. Nothing in it names a path that it was trained from.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mg_llava.hf.card import model_card
from mg_llava.hf.configuration import FORMAT_VERSION, MODEL_TYPE, MGLLaVAConfig, check_types
from mg_llava.hf.modeling import MGLLaVAForConditionalGeneration
from mg_llava.hf.parts import FRAME_POOLING, PART_NAMES
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.hf.streaming import CheckpointWeights, tied_names
from mg_llava.model.checkpoint_names import to_published_names
from xtuner.constants import IMAGE_TOKEN
from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.model.files.shards import ShardWriter
from xtuner.model.files.writing import disk_errors

if TYPE_CHECKING:
    from mg_llava.inference.assistant import Assistant
    from mg_llava.model.mg_llava import MGLLaVA
    from mg_llava.pictures.normalize import PixelNormalizer

_PATH_ARGUMENTS = {"low_res_encoder": "name_or_path", "high_res_encoder": "path"}
"""The argument of each part that names where it is read from."""
_MAX_NEW_TOKENS = 512


def save_pretrained(
    assistant: Assistant,
    model_node: Mapping[str, Any],
    folder: str | Path,
    facts: Mapping[str, Any] | None = None,
    weights: Iterable[tuple[str, torch.Tensor]] | None = None,
    max_shard_bytes: int | None = None,
) -> Path:
    """Writes a self-contained folder; a cut-off run leaves no half of it.

    Args:
        assistant: model, tokenizer, image processor, template and box selection to save.
        model_node: the resolved config node that the model was built from.
        folder: target; an earlier export there is replaced.
        facts: kept in config.json under ``source`` and told by the model card.
        weights: the model's weights by name, one after the other, where `assistant.model` holds only their shapes.
        max_shard_bytes: largest file of weights; see `ShardWriter`.

    Raises:
        XTunerError: the target holds something else than an export, the model has a part of a foreign package, or the
            disk is full or cannot be written.
    """
    folder = Path(folder)
    check_target(folder)
    with disk_errors(folder):
        return _write_folder(assistant, model_node, folder, facts or {}, weights, max_shard_bytes)


def _write_folder(
    assistant: Assistant,
    model_node: Mapping[str, Any],
    folder: Path,
    facts: Mapping[str, Any],
    weights: Iterable[tuple[str, torch.Tensor]] | None,
    max_shard_bytes: int | None,
) -> Path:
    processor = make_processor(assistant)
    config = make_config(assistant, model_node, processor, facts)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        total = sum(p.numel() * p.element_size() for p in assistant.model.full_state_dict().values())
        writer = ShardWriter(temporary, total, max_shard_bytes)
        skipped = tied_names(assistant.model)
        for name, tensor in weights or assistant.model.full_state_dict().items():
            # of tied weights transformers ties the others to the input embedding
            if name not in skipped:
                writer.add(name, tensor)
        writer.finish()
        processor.save_pretrained(temporary)
        assistant.generation_config(_MAX_NEW_TOKENS).save_pretrained(temporary)
        card = model_card(config, assistant, writer.total_bytes)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        # last: a folder with config.json is complete
        config.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def save_checkpoint(
    assistant: Assistant,
    model_node: Mapping[str, Any],
    folder: str | Path,
    checkpoint: str | Path,
    facts: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> Path:
    """Writes a self-contained folder of a checkpoint's weights; of the assistant's model only the shape is used.

    Args:
        assistant, model_node, folder, facts: see `save_pretrained`.
        checkpoint, dtype, base: see `CheckpointWeights`.
    """
    if dtype is not None:
        assistant.model.to(dtype)
    weights = CheckpointWeights(assistant.model, model_node, checkpoint, dtype, base)
    return save_pretrained(assistant, model_node, folder, facts, weights)


def published_weights(
    assistant: Assistant,
    model_node: Mapping[str, Any],
    checkpoint: str | Path,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a checkpoint's trained parts under the published names; arguments as of `save_checkpoint`."""
    weights = CheckpointWeights(assistant.model, model_node, checkpoint, dtype, base)
    for part in weights.trained_parts:
        for name, tensor in weights.part(part):
            yield from to_published_names({name: tensor}).items()


def check_target(folder: Path) -> None:
    """Refuses to replace anything but an earlier export.

    Raises:
        XTunerError: the folder holds something else.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and model_type(folder) != MODEL_TYPE:
        raise XTunerError(f"'{folder}' exists and is not an earlier export: name a new folder, nothing is overwritten.")


def model_type(folder: Path) -> str | None:
    """Returns ``model_type`` of a folder's config.json, None where there is none."""
    try:
        return read_json(folder / "config.json", dict).get("model_type")
    except XTunerError:
        return None


def make_processor(assistant: Assistant) -> MGLLaVAProcessor:
    """Returns the assistant's processor; its tokenizer is a copy with the token ``<image>``."""
    tokenizer = copy.deepcopy(assistant.tokenizer)
    tokenizer.padding_side = "left"
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return MGLLaVAProcessor(
        image_processor=assistant.image_processor,
        tokenizer=tokenizer,
        prompt_template=assistant.template,
        boxes=assistant.boxes,
        num_image_tokens=assistant.model.vision.num_image_tokens,
        with_objects=assistant.model.vision.with_objects,
        special_tokens_in_text=assistant.special_tokens_in_text,
        pixels=_normalizer(assistant.model).settings(),
        num_frame_tokens=assistant.model.vision.image_tokens.frame,
    )


def _normalizer(model: MGLLaVA) -> PixelNormalizer:
    # a model of shapes alone was made without its encoders' statistics; one of an exported folder has no other source
    if model.low_res_encoder.config.source:
        return model.vision.make_normalizer()
    return model.data_preprocessor.normalizer


def make_config(
    assistant: Assistant, model_node: Mapping[str, Any], processor: MGLLaVAProcessor, facts: Mapping[str, Any]
) -> MGLLaVAConfig:
    """Returns the config that describes the assistant's model without any path."""
    import transformers

    from xtuner import __version__

    model = assistant.model
    dtypes = {name: _dtype_name(part) for name, part in model.parts().items()}
    config = MGLLaVAConfig(
        text_config=copy.deepcopy(model.llm.config),
        vision_config=copy.deepcopy(model.low_res_encoder.exported_config()),
        high_res_config=None if model.high_res_encoder is None else model.high_res_encoder.exported_config(),
        parts=part_nodes(model_node),
        part_dtypes=dtypes,
        pixels=dict(processor.pixels),
        image_token_id=processor.image_token_id,
        num_image_tokens=processor.num_image_tokens,
        stop_token_ids=assistant.stop_ids(),
        format_version=FORMAT_VERSION,
        source={
            **facts,
            "versions": {"xtuner": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        },
        architectures=[MGLLaVAForConditionalGeneration.__name__],
        dtype=dtypes["llm"],
        tie_word_embeddings=bool(getattr(model.llm.config, "tie_word_embeddings", False)),
    )
    parts: tuple[Any, Any] = config.text_config, config.vision_config
    for part in parts:
        if not isinstance(part, dict):
            part._name_or_path = ""
    return config


def part_nodes(model_node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's node with its parts only, and these without paths.

    Raises:
        XTunerError: a part is of a class that is not ours.
    """
    node = json.loads(json.dumps({name: model_node.get(name) for name in ("type", *PART_NAMES, FRAME_POOLING)}))
    check_types(node)
    for part, argument in _PATH_ARGUMENTS.items():
        if node[part] is not None:
            node[part].pop(argument, None)
    node["llm"] = {"type": node["llm"]["type"]}
    return {**node, "activation_checkpointing": False, "compile": False, "fused_loss": False}


def _dtype_name(part: torch.nn.Module) -> str:
    return str(next(p.dtype for p in part.parameters() if p.is_floating_point())).removeprefix("torch.")

"""Self-contained folders: a trained model with all that belongs to it, written by convert, read by chat and evaluation.

Layout: ``config.json`` (model type, parts, template, image processor), ``model*.safetensors`` (weights of all parts,
frozen encoders too), ``buffers.safetensors`` (tables that modules compute and state dicts leave out), the tokenizer's
files, and a folder with the architecture of each part that has one: ``llm``, ``low_res_encoder``,
``high_res_encoder``. The parts are built again by the classes that trained them, without the paths that they were
trained from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, GenerationConfig, ImageProcessingMixin, PretrainedConfig

from mg_llava.assistant import Assistant
from mg_llava.boxes import BoxSelection
from mg_llava.preprocess import ImageProcessor
from xtuner.data.templates import PromptTemplate
from xtuner.data.tokenizer import build_tokenizer
from xtuner.errors import XTunerError
from xtuner.model.meta import meta_init
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mg_llava.model import MGLLaVA

MODEL_TYPE = "mg_llava"
"""``model_type`` of the folder's config.json; also the package whose module `hf` reads the folder."""
FORMAT_VERSION = 1
_PATH_ARGUMENTS = {"llm": "name_or_path", "low_res_encoder": "name_or_path", "high_res_encoder": "path"}
"""The argument of each part that names where it is read from."""
_TRUSTED_PACKAGES = ("mg_llava", "xtuner")


class MGLLaVAConfig(PretrainedConfig):
    """config.json of an exported folder, so that transformers knows the type beside the tokenizer's files."""

    model_type = MODEL_TYPE


AutoConfig.register(MODEL_TYPE, MGLLaVAConfig, exist_ok=True)


def save_pretrained(
    assistant: Assistant, model_node: Mapping[str, Any], folder: str | Path, facts: Mapping[str, Any] | None = None
) -> Path:
    """Writes a self-contained folder; a cut-off run leaves no half of it.

    Args:
        assistant: model, tokenizer, image processor, template and box selection to save.
        model_node: the resolved config node that the model was built from.
        folder: target; an earlier export there is replaced.
        facts: kept in config.json under ``source``.

    Raises:
        XTunerError: the target holds something else than an export, or the model has a part of a foreign package.
    """
    folder = Path(folder)
    _check_target(folder)
    node = _relative_node(model_node)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _save_architectures(assistant, model_node, temporary)
        _save_weights(assistant.model, temporary)
        assistant.tokenizer.save_pretrained(temporary)
        config = _config(assistant, node, facts or {})
        # last: a folder with config.json is complete
        (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_target(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and _model_type(folder) != MODEL_TYPE:
        raise XTunerError(f"'{folder}' exists and is no earlier export: name a new folder, nothing is overwritten.")


def _model_type(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, json.JSONDecodeError, AttributeError):
        return None


def _relative_node(model_node: Mapping[str, Any]) -> dict[str, Any]:
    """The model's node with paths inside the folder, and without what only training needs."""
    _check_types(model_node)
    node = json.loads(json.dumps(model_node))
    for part, argument in _PATH_ARGUMENTS.items():
        if node.get(part) is not None:
            node[part][argument] = part
    training = {"activation_checkpointing": False, "compile": False, "fused_loss": False, "pretrained_pth": None}
    return {**node, "trainable": [], **training}


def _check_types(node: Any) -> None:
    """Refuses classes of other packages: a folder from elsewhere must not decide which code runs."""
    if isinstance(node, Mapping):
        kind = node.get("type", MODEL_TYPE)
        if not isinstance(kind, str) or kind.split(".")[0] not in _TRUSTED_PACKAGES:
            raise XTunerError(
                f"a part of the model is of type {kind!r}: exported folders may only name classes of "
                f"{' and '.join(_TRUSTED_PACKAGES)}, so that loading one runs no other code."
            )
        for value in node.values():
            _check_types(value)


def _save_architectures(assistant: Assistant, model_node: Mapping[str, Any], folder: Path) -> None:
    model = assistant.model
    model.llm.config.save_pretrained(folder / "llm")
    if model.llm.generation_config is not None:
        model.llm.generation_config.save_pretrained(folder / "llm")
    low = folder / "low_res_encoder"
    model.low_res_encoder.clip.config.save_pretrained(low)
    pixels, _ = ImageProcessingMixin.get_image_processor_dict(assistant.image_processor.name_or_path)
    (low / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1) + "\n", encoding="utf-8")
    if model.high_res_encoder is not None:
        source = Path(model_node["high_res_encoder"]["path"]) / "open_clip_config.json"
        target = folder / "high_res_encoder" / "open_clip_config.json"
        target.parent.mkdir()
        shutil.copyfile(source, target)


def _save_weights(model: MGLLaVA, folder: Path) -> None:
    state = model.full_state_dict()
    # of tied weights the input embedding's name is kept, which is where transformers ties the others to
    embedding = model.llm.get_input_embeddings().weight
    tied = [name for name, tensor in state.items() if tensor.data_ptr() == embedding.data_ptr()]
    own = f"llm.{_name_of(model.llm, embedding)}"
    save_torch_state_dict(state, folder, shared_tensors_to_discard=[name for name in tied if name != own])
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in _computed_buffers(model)}
    save_file(buffers, folder / "buffers.safetensors")


def _name_of(module: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, value in module.named_parameters() if value is parameter)


def _computed_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that no state dict holds: rotary frequencies, positions, pixel levels."""
    for prefix, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers[name]
            if buffer is not None:
                yield f"{prefix}.{name}", buffer


def _config(assistant: Assistant, node: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    import transformers

    from xtuner import __version__

    processor = assistant.image_processor
    return {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "model": node,
        "prompt_template": asdict(assistant.template),
        "image_processor": {
            "image_size": processor.image_size,
            "pad_to_square": processor.pad_to_square,
            "apply_exif_orientation": processor.apply_exif_orientation,
        },
        "boxes": asdict(assistant.boxes),
        "versions": {"xtuner": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "source": dict(facts),
    }


def load_pretrained(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[MGLLaVA, PreTrainedTokenizerBase, ImageProcessor, PromptTemplate]:
    """Returns model (in eval mode), tokenizer, image processor and prompt template of a folder.

    Args:
        folder: as `save_pretrained` writes it.
        device: where the model computes.
        dtype: number format of all weights; None = as saved.

    Raises:
        XTunerError: the folder is no such folder, is incomplete, or of a later version.
    """
    assistant = load_assistant(folder, device, dtype)
    return assistant.model, assistant.tokenizer, assistant.image_processor, assistant.template


def load_assistant(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Assistant:
    """Like `load_pretrained`, but ready to answer, with the box selection too."""
    folder = Path(folder)
    config = _read_config(folder)
    model = _load_model(folder, config["model"])
    for parameter in model.parameters():
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return Assistant(
        model=model.to(device).eval(),
        tokenizer=build_tokenizer(str(folder)),
        image_processor=ImageProcessor(str(folder / "low_res_encoder"), **config["image_processor"]),
        template=PromptTemplate(**config["prompt_template"]),
        boxes=BoxSelection(**config["boxes"]),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if _model_type(folder) != MODEL_TYPE:
        raise XTunerError(
            f"'{folder}' is no exported {MODEL_TYPE} model: expected a folder whose config.json has "
            f'"model_type": "{MODEL_TYPE}", as `xtuner convert pth_to_hf` writes it.'
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format_version") != FORMAT_VERSION:
        raise XTunerError(
            f"'{folder}' is of format version {config.get('format_version')}, expected {FORMAT_VERSION}: convert the "
            "checkpoint again with this version of the program."
        )
    _check_types(config["model"])
    return config


def _load_model(folder: Path, node: dict[str, Any]) -> MGLLaVA:
    """Builds the model's shape without memory, then takes the tensors of the files as its weights."""
    for part, argument in _PATH_ARGUMENTS.items():
        if node.get(part) is not None:
            node[part][argument] = str(folder / part)
    with meta_init():
        model: MGLLaVA = build(node)
    for file in _weight_files(folder):
        # copies: tensors mapped from a file start at odd addresses, where CPU kernels round differently
        state = {name: tensor.clone() for name, tensor in load_file(file).items()}
        nn.Module.load_state_dict(model, state, strict=False, assign=True)
    # tied weights are saved once
    model.llm.tie_weights()
    for name, buffer in load_file(folder / "buffers.safetensors").items():
        module_name, _, buffer_name = name.rpartition(".")
        model.get_submodule(module_name)._buffers[buffer_name] = buffer.clone()
    if (folder / "llm" / "generation_config.json").is_file():
        model.llm.generation_config = GenerationConfig.from_pretrained(folder / "llm")
    absent = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if absent:
        raise XTunerError(
            f"'{folder}' lacks {len(absent)} weights of its model, {absent[0]} for one: copy or convert it again."
        )
    return model


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise XTunerError(f"'{folder}' lacks the file {name}: copy or convert it again, completely.")
    return [folder / name for name in names]

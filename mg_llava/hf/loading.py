"""Reading an exported folder back as an assistant that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mg_llava.hf.configuration import MODEL_TYPE
from mg_llava.hf.export import model_type
from mg_llava.hf.modeling import MGLLaVAForConditionalGeneration
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.hf.quantization import check_readable
from mg_llava.inference.assistant import Assistant
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.data.text.templates import PromptTemplate
from xtuner.errors import XTunerError, reason_of
from xtuner.model.files.pickles import pickles_in, restricted_loading
from xtuner.model.files.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mg_llava.model.mg_llava import MGLLaVA


def load_pretrained(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[MGLLaVA, PreTrainedTokenizerBase, ImageProcessor, PromptTemplate]:
    """Returns model (in eval mode), tokenizer, image processor and prompt template of a folder.

    Args:
        folder: as `save_pretrained` writes it.
        device: where the model computes.
        dtype: number format of all weights; None = as saved.

    Raises:
        XTunerError: the folder is no such folder, is incomplete, or of another version.
    """
    assistant = load_assistant(folder, device, dtype)
    return assistant.model, assistant.tokenizer, assistant.image_processor, assistant.template


def load_model(folder: str | Path, **kwargs: Any) -> Any:
    """Returns the model of a folder as transformers knows it.

    Args:
        folder: as `save_pretrained` writes it.
        kwargs: of ``from_pretrained``: dtype, quantization_config, device_map.

    Raises:
        XTunerError: the folder is no such folder, is incomplete, or of another version.
    """
    folder = Path(folder)
    check_exported(folder)
    check_readable(folder, kwargs.get("quantization_config"))
    try:
        with restricted_loading(pickles_in(folder)), quiet_transformers():
            return MGLLaVAForConditionalGeneration.from_pretrained(str(folder), **kwargs)
    except OSError as error:
        raise XTunerError(
            f"'{folder}' cannot be read: {reason_of(error)}; "
            "copy the whole folder again, or convert the checkpoint again."
        ) from error


def check_exported(folder: Path) -> None:
    """Refuses what is no exported folder, those of the original layout among them.

    Raises:
        XTunerError: the folder has no config.json of this package's models.
    """
    if model_type(folder) != MODEL_TYPE:
        raise XTunerError(
            f"'{folder}' is not an exported {MODEL_TYPE} model: expected a folder whose config.json has "
            f'"model_type": "{MODEL_TYPE}", as `xtuner convert pth_to_hf` writes it.'
        )


def load_assistant(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, **kwargs: Any
) -> Assistant:
    """Like `load_pretrained`, but ready to answer, with the box selection too.

    Args:
        folder, device, dtype: see `load_pretrained`.
        kwargs: of ``from_pretrained``: quantization_config, device_map (which then says where the model computes).
    """
    model = load_model(folder, dtype=dtype or "auto", **kwargs)
    if "device_map" not in kwargs and "quantization_config" not in kwargs:
        model.to(device)
    processor = MGLLaVAProcessor.from_pretrained(str(folder))
    return Assistant(
        model=model.core.eval(),
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        template=processor.prompt_template,
        boxes=processor.boxes,
        special_tokens_in_text=processor.special_tokens_in_text,
    )

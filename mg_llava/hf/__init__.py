"""Self-contained folders and transformers' classes: what convert writes and chat, servers and plain transformers
read.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.export import published_weights, save_checkpoint, save_pretrained
from mg_llava.hf.loading import check_exported, load_assistant, load_model, load_pretrained
from mg_llava.hf.modeling import MGLLaVAForConditionalGeneration
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.model.checkpoint_names import to_published_names

__all__ = [
    "MGLLaVAConfig",
    "MGLLaVAForConditionalGeneration",
    "MGLLaVAProcessor",
    "check_exported",
    "load_assistant",
    "load_model",
    "load_pretrained",
    "published_weights",
    "save_checkpoint",
    "save_pretrained",
    "to_published_names",
]

AutoConfig.register(MGLLaVAConfig.model_type, MGLLaVAConfig, exist_ok=True)
AutoModelForImageTextToText.register(MGLLaVAConfig, MGLLaVAForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MGLLaVAConfig, MGLLaVAProcessor, exist_ok=True)

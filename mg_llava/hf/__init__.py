"""Self-contained folders and transformers' classes: what convert writes and chat, servers and plain transformers
read.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mg_llava.checkpoint_names import to_published_names
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.export import save_pretrained
from mg_llava.hf.loading import load_assistant, load_model, load_pretrained
from mg_llava.hf.modeling import MGLLaVAForConditionalGeneration
from mg_llava.hf.processing import MGLLaVAProcessor

__all__ = [
    "MGLLaVAConfig",
    "MGLLaVAForConditionalGeneration",
    "MGLLaVAProcessor",
    "load_assistant",
    "load_model",
    "load_pretrained",
    "save_pretrained",
    "to_published_names",
]

AutoConfig.register(MGLLaVAConfig.model_type, MGLLaVAConfig, exist_ok=True)
AutoModelForImageTextToText.register(MGLLaVAConfig, MGLLaVAForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MGLLaVAConfig, MGLLaVAProcessor, exist_ok=True)

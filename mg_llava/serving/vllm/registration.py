"""What vLLM calls in each of its processes (entry point group ``vllm.general_plugins``).

That it is imported is enough for transformers to know the folders' ``model_type``.
"""

from __future__ import annotations

import logging

from mg_llava.serving.vllm.names import ARCHITECTURE, MODE
from mg_llava.serving.vllm.versions import check_version
from xtuner.errors import XTunerError

_ROOM = "mg_llava.serving.vllm"


def register() -> None:
    """Tells vLLM of the model, its configuration, its tokenizer and its pictures; may be called several times.

    Of another version than the known ones it says so and leaves vLLM as it is, so that other models run.
    """
    try:
        check_version()
    except XTunerError as error:
        logging.getLogger("vllm").warning("Models of mg_llava are not registered: %s", error)
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from mg_llava.serving.vllm.defaults import FolderDefaults

    if ARCHITECTURE in ModelRegistry.get_supported_archs():
        return
    ModelRegistry.register_model(ARCHITECTURE, f"{_ROOM}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = FolderDefaults
    TokenizerRegistry.register(MODE, f"{_ROOM}.tokenizer", "FolderTokenizer")
    RENDERER_REGISTRY.register(MODE, "vllm.renderers.hf", "HfRenderer")

"""Asking a model: prompts, answers, conversations, and which boxes mattered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "assistant": ["Assistant"],
        "prompts": ["Prompt", "PromptMaker"],
        "prompt_cache": ["PromptCache"],
        "messages": ["read_messages"],
        "chat": ["ChatSession"],
        "explain": ["Influence", "explain_answer", "explain_boxes"],
    },
)

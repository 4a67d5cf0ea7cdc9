"""Names under which vLLM's registries know this package."""

ARCHITECTURE = "MGLLaVAForConditionalGeneration"
"""In ``architectures`` of an exported folder's config.json."""
MODE = "mg_llava"
"""Of the tokenizer, its renderer and the media connector."""

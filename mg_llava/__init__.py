"""MG-LLaVA (arXiv 2406.17770): a vision-language model with low resolution, high resolution and object tokens.

Importing it registers the exported model with transformers: ``AutoModelForImageTextToText.from_pretrained(folder)``.
The names below load when they are first used.
"""

import xtuner  # noqa: F401, I001  first: refuses a Python that the rest cannot be read by

import lazy_loader

import mg_llava.hf  # noqa: F401  registers the classes

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "boxes": ["BoxSelection"],
        "data": ["MGLLaVADataset"],
        "model": ["ConvGateFusion", "MGLLaVA", "pool_boxes"],
    },
)

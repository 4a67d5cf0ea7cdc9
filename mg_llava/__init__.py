"""MG-LLaVA (arXiv 2406.17770): a vision-language model with low resolution, high resolution and object tokens.

Importing it registers the exported model with transformers: ``AutoModelForImageTextToText.from_pretrained(folder)``.
"""

import mg_llava.hf  # noqa: F401  registers the classes

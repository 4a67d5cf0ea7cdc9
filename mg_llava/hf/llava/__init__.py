"""Published LLaVA models to this framework's parts, and baselines trained here back to transformers' LLaVA.

``layouts`` reads what a folder is, ``names`` holds its weights' names, ``starting`` writes the parts and ``leaving`` a
folder of transformers' LLaVA.
"""

from mg_llava.hf.llava.leaving import to_llava
from mg_llava.hf.llava.starting import from_llava

__all__ = ["from_llava", "to_llava"]

"""Stage 1 of MG-LLaVA with Phi-3-mini-3.8B."""

from mmengine.config import read_base

with read_base():
    from .._base_.pretrain import *

llm_name_or_path = "microsoft/Phi-3-mini-4k-instruct"
prompt_template = "phi3_chat"

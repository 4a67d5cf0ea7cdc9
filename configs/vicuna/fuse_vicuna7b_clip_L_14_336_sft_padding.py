"""Stage 2 of MG-LLaVA with Vicuna-1.5-7B."""

from mmengine.config import read_base

with read_base():
    from .._base_.sft import *

llm_name_or_path = "lmsys/vicuna-7b-v1.5"
prompt_template = "vicuna"

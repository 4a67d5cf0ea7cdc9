"""Stage 2 of MG-LLaVA with Vicuna-1.5-13B."""

from mmengine.config import read_base

with read_base():
    from .._base_.sft import *

llm_name_or_path = "lmsys/vicuna-13b-v1.5"
prompt_template = "vicuna"
batch_size = 8
accumulative_counts = 2  # 8 x 2 x 8 GPUs = 128

"""Stage 2 of MG-LLaVA with Llama-3-8B."""

from mmengine.config import read_base

with read_base():
    from .._base_.sft import *

llm_name_or_path = "meta-llama/Meta-Llama-3-8B-Instruct"
prompt_template = "llama3_chat"
batch_size = 4
accumulative_counts = 2
lr = 1e-5

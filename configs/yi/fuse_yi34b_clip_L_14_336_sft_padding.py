"""Stage 2 of MG-LLaVA with Yi-1.5-34B."""

from mmengine.config import read_base

with read_base():
    from .._base_.sft import *

llm_name_or_path = "01-ai/Yi-1.5-34B-Chat"
prompt_template = "chatml"
batch_size = 4
deepspeed = "deepspeed_zero3"

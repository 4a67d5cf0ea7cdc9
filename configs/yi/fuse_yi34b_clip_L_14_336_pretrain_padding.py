"""Stage 1 of MG-LLaVA with Yi-1.5-34B."""

from mmengine.config import read_base

with read_base():
    from .._base_.pretrain import *

llm_name_or_path = "01-ai/Yi-1.5-34B-Chat"
prompt_template = "chatml"
batch_size = 16
lr = 2e-3
deepspeed = "deepspeed_zero3"

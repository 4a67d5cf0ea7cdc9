"""Stage 2 with the same parts; the high-resolution encoder is trained too, at a tenth of the rate of all else."""

from mmengine.config import read_base

with read_base():
    from .._base_.sft import *

llm_name_or_path = "Qwen/Qwen3-8B"
prompt_template = "qwen_chat"
visual_encoder_name_or_path = "google/siglip2-so400m-patch14-384"
visual_encoder_aux_path = "facebook/dinov3-convnext-large-pretrain-lvd1689m"
image_size_aux = 27 * 32
trainable = ("fusion", "projector", "object_encoder", "llm", "high_res_encoder")
lr = dict(default=1e-5, high_res_encoder=1e-6)
batch_size = 8
accumulative_counts = 2

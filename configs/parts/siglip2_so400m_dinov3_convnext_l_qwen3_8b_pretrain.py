"""Stage 1 with SigLIP 2 (27 x 27 tokens), DINOv3's ConvNeXt-L at the size that has this grid, and Qwen3-8B."""

from mmengine.config import read_base

with read_base():
    from .._base_.pretrain import *

llm_name_or_path = "Qwen/Qwen3-8B"
prompt_template = "qwen_chat"
visual_encoder_name_or_path = "google/siglip2-so400m-patch14-384"
visual_encoder_aux_path = "facebook/dinov3-convnext-large-pretrain-lvd1689m"
image_size_aux = 27 * 32

"""Stage 2 with CLIP-L, open_clip's ConvNeXt-XXL and Vicuna-1.5-7B."""

from mmengine.config import read_base

with read_base():
    from ..vicuna.fuse_vicuna7b_clip_L_14_336_sft_padding import *

visual_encoder_aux_path = "checkpoints/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"

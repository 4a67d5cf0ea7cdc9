"""Videos on MG-LLaVA with Vicuna-1.5-7B, after stage 2."""

from mmengine.config import read_base

with read_base():
    from .fuse_vicuna7b_clip_L_14_336_sft_padding import *
    from .._base_.video import *  # isort: skip

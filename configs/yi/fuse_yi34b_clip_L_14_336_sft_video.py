"""Videos on MG-LLaVA with Yi-1.5-34B, after stage 2."""

from mmengine.config import read_base

with read_base():
    from .fuse_yi34b_clip_L_14_336_sft_padding import *
    from .._base_.video import *  # isort: skip

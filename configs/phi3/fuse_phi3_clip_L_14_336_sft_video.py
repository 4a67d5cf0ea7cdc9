"""Videos on MG-LLaVA with Phi-3-mini-3.8B, after stage 2."""

from mmengine.config import read_base

with read_base():
    from .fuse_phi3_clip_L_14_336_sft_padding import *
    from .._base_.video import *  # isort: skip

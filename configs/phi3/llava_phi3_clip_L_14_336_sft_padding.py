"""Stage 2 of the low-resolution baseline with Phi-3-mini-3.8B."""

from mmengine.config import read_base

with read_base():
    from .fuse_phi3_clip_L_14_336_sft_padding import *
    from .._base_.llava_sft import *  # isort: skip

"""Stage 1 of the low-resolution baseline with Phi-3-mini-3.8B."""

from mmengine.config import read_base

with read_base():
    from .fuse_phi3_clip_L_14_336_pretrain_padding import *
    from .._base_.llava import *  # isort: skip

"""Stage 2 of the low-resolution baseline with Yi-1.5-34B."""

from mmengine.config import read_base

with read_base():
    from .fuse_yi34b_clip_L_14_336_sft_padding import *
    from .._base_.llava_sft import *  # isort: skip

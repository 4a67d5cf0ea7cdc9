"""Stage 2 of the low-resolution baseline in the tiny world."""

from mmengine.config import read_base

with read_base():
    from .tiny_sft import *
    from .._base_.llava_sft import *  # isort: skip

image_size_aux = 84

"""The low-resolution baseline in stage 2: the language model is trained too. Import it after a stage."""

from mmengine.config import read_base

with read_base():
    from .llava import *

trainable = ("projector", "llm")

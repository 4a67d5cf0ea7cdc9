"""Training: runner, loop, optimizer, schedule, hooks and the DeepSpeed strategy."""

import os

import torch

# mmengine's runners import DeepSpeed, which warns on every machine without a GPU unless it is told
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

"""Training: ``runner`` runs what ``assemble`` built; steps, strategies, checkpoints, processes and hooks have rooms."""

import os

import lazy_loader
import torch

# mmengine's runners import DeepSpeed, which warns on every machine without a GPU unless it is told
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"steps.settings": ["RuntimeSettings"]})

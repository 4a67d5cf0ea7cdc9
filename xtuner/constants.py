"""Numbers and strings that text, vision and model code agree on."""

from __future__ import annotations

IGNORE_INDEX = -100
"""Label of a position without loss (torch's cross entropy skips it)."""

IMAGE_TOKEN = "<image>"
"""Place of a picture in a conversation's text."""

VIDEO_TOKEN = "<video>"
"""Place of a video in a conversation's text; its frames stand there, each as a picture."""

IMAGE_TOKEN_INDEX = -200
"""Place of a picture in ``input_ids``; never a row of the embedding table."""

FRAME_TOKEN_INDEX = -201
"""Likewise of a frame of a video: a picture that may take fewer tokens."""

VIDEO_TOKEN_INDEX = -202
"""Place of a video whose frames are not known yet; no model reads it."""

PICTURE_INDICES = (IMAGE_TOKEN_INDEX, FRAME_TOKEN_INDEX)
"""Places of pictures of both kinds."""

RESTRICT_TORCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable by which torch lets no ``torch.load`` of a process, and of those that it starts, run code of a file."""

VISUALIZERS = ("tensorboard", "wandb", "mlflow", "aim", "clearml", "neptune", "dvclive", "trackio")
"""Where scalars may go beside the text log; each is also the name of its package and its module."""

HOTTEST = 2
"""Highest temperature of answers, as OpenAI's protocol has it."""

NEEDED_MODULES = frozenset(
    {
        "PIL", "accelerate", "av", "datasets", "deepspeed", "filelock", "httpcore", "lazy_loader", "matplotlib",
        "mmengine", "numpy", "open_clip", "openai", "openpyxl", "packaging", "pandas", "peft", "psutil", "pyarrow",
        "rich", "safetensors", "scipy", "sentencepiece", "setuptools", "tensorboard", "timm", "torch", "torchvision",
        "transformers",
    }
)  # fmt: skip
"""What requirements/runtime.txt installs, as it is imported."""

"""What every detector has in common."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from mg_llava.boxes.selection import PictureBoxes, clip_boxes, no_boxes
from xtuner.errors import XTunerError, reason_of
from xtuner.model.files.pickles import pickles_in, restricted_loading
from xtuner.model.files.quiet import quiet_transformers
from xtuner.model.llm import resolve_dtype

_VOCABULARY = "everyday_objects.txt"
_UNREADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError)
"""What loading raises for files that are absent, cut off, or of another shape."""
_EXTREME = 4
"""Longer side over shorter side."""
_MOST_ABSENT = 0.1
"""Largest share of a model's weights that its checkpoint may lack."""


class Detector(Protocol):
    """Finds boxes in pictures."""

    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        """Returns one `PictureBoxes` per picture, xyxy in pixels of that picture, best score first.

        Args:
            pictures: RGB, of any sizes.
            keys: the pictures' paths relative to the image folder, for detectors that look something up.
        """


class NoDetector:
    """Finds nothing."""

    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        """See `Detector`."""
        return [no_boxes() for _ in pictures]


def read_vocabulary(path: str | None) -> list[str]:
    """Returns the names of a vocabulary file (one a line; empty lines and those with # left out), doubles once.

    Args:
        path: the file; None = the shipped list of everyday objects, whose head names its sources.

    Raises:
        XTunerError: there is no such file, or it holds no name.
    """
    try:
        if path is None:
            text = resources.files("mg_llava").joinpath("detectors").joinpath(_VOCABULARY).read_text(encoding="utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise XTunerError(
            f"the vocabulary '{path}' cannot be read ({error}): expected a text file with one name per line."
        ) from error
    lines = (line.strip() for line in text.splitlines())
    names = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise XTunerError(f"the vocabulary '{path}' holds no names: write what to look for, one name per line.")
    return names


def load(kind: Any, path: str, **arguments: Any) -> Any:
    """Calls ``kind.from_pretrained(path)``.

    Raises:
        XTunerError: the detector's checkpoint is absent or cannot be read.
    """
    try:
        with restricted_loading(pickles_in(path)), quiet_transformers():
            return kind.from_pretrained(path, **arguments)
    except _UNREADABLE as error:
        raise XTunerError(
            f"the detector's checkpoint '{path}' cannot be read: {reason_of(error)}; download it and name its folder "
            f"(detector_path)."
        ) from error


def load_model(kind: Any, path: str, dtype: str, device: torch.device | str | None) -> Any:
    """Returns a detector's model in eval mode on its device; see `load`.

    Raises:
        XTunerError: the checkpoint is absent, cannot be read, or is one of another model.
    """
    model, info = load(kind, path, dtype=resolve_dtype(dtype), output_loading_info=True)
    total = len(model.state_dict())
    absent = len(info["missing_keys"])
    # a few may be of parts that are not used: transformers lists those; with more the boxes would be noise
    if absent > _MOST_ABSENT * total:
        raise XTunerError(
            f"the detector's checkpoint '{path}' lacks {absent} of the {total} weights of {type(model).__name__}: it "
            "belongs to another kind of model: name the folder of a detector of this kind (detector_path)."
        )
    return model.to(device or "cpu").eval()


def in_float32(outputs: Any) -> Any:
    """Returns a model's outputs with numbers in half precision as float32: post-processing would round pixels, and its
    non-maximum suppression does not take bfloat16.
    """
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            outputs[name] = value.float()
    return outputs


def to_picture_boxes(
    boxes: Any, labels: Sequence[str], scores: Any, size: tuple[int, int], max_boxes: int | None = None
) -> PictureBoxes:
    """Returns what a detector found in a picture: cut at its edges, best first; boxes without area are left out.

    Args:
        boxes: (N, 4) xyxy in pixels, tensor or array.
        labels: N names.
        scores: (N,), tensor or array.
        size: (width, height) of the picture.
        max_boxes: most that are kept.
    """
    numbers = np.asarray(torch.as_tensor(boxes).float().cpu(), np.float32).reshape(-1, 4)
    surety = np.asarray(torch.as_tensor(scores).float().cpu(), np.float32).reshape(-1)
    inside, kept = clip_boxes(numbers, *size)
    found = PictureBoxes(numbers, tuple(labels), surety).take(kept)._replace(boxes=inside)
    found = found.take((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    found = found.take(np.argsort(-found.scores, kind="stable"))
    return found if max_boxes is None else found.take(np.arange(min(max_boxes, len(found.boxes))))


def without_extremes(pictures: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Returns the pictures, those of extreme shape shrunk until their longer side has `side` pixels.

    A detector that pads to a square would make one of side x side pixels of the longer side. Boxes found in a shrunk
    picture are fractions of it, so they hold for the whole one.
    """
    return [_shrunk(picture, side) for picture in pictures]


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    longer, shorter = max(picture.size), min(picture.size)
    if longer <= side or longer <= _EXTREME * shorter:
        return picture
    width, height = (max(1, round(length * side / longer)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def sizes_of(pictures: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """Returns (height, width) of each picture, as transformers' post-processing takes them."""
    return [(picture.height, picture.width) for picture in pictures]

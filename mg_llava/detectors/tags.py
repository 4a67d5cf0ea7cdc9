"""What to look for in a picture: tags by RAM++, or from a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.model.files.pickles import restricted_loading


class TagFile:
    """Tags from a file: a JSON object, picture (path relative to the image folder) → list of names.

    Args:
        path: the file.
        device: not used.

    Raises:
        XTunerError: it cannot be read or has another form.
    """

    def __init__(self, path: str, device: torch.device | str | None = None) -> None:
        content = read_json(path, dict, "Write an object of picture → list of names.")
        if not all(isinstance(tags, list) for tags in content.values()):
            raise XTunerError(f"the tag file '{path}' is not a JSON object of picture → list of names.")
        self.path = path
        self.tags: dict[str, list[str]] = {key: [str(tag) for tag in tags] for key, tags in content.items()}

    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[list[str]]:
        """Returns the names for each picture; none where the file does not know it.

        Raises:
            XTunerError: pictures without a path.
        """
        if keys is None:
            raise XTunerError(f"the tags of '{self.path}' are looked up by a picture's path, which is unknown here.")
        return [self.tags.get(key, []) for key in keys]


class RamTagger:
    """RAM++ (arXiv 2310.15200), with which the published boxes were made.

    Args:
        path: its checkpoint, ram_plus_swin_large_14m.pth.
        image_size: side of its pictures in pixels.
        device: where it computes.

    Raises:
        XTunerError: the package or the checkpoint is absent.
    """

    def __init__(self, path: str, image_size: int = 384, device: torch.device | str | None = None) -> None:
        if importlib.util.find_spec("ram") is None:
            raise XTunerError(
                "RAM++ needs the package 'ram' of github.com/xinyu1205/recognize-anything, which is not on PyPI and "
                "wants older libraries: install it in an environment of its own, write its tags to a JSON file "
                "(picture → names) there, and use TagFile here; or use a vocabulary instead of tags."
            )
        if not Path(path).is_file():
            raise XTunerError(f"the checkpoint of RAM++ '{path}' does not exist: download ram_plus_swin_large_14m.pth.")
        from ram import get_transform, inference_ram
        from ram.models import ram_plus

        self._infer: Any = inference_ram
        self._transform = get_transform(image_size=image_size)
        self.device = device or "cpu"
        with restricted_loading([Path(path)]):
            self.model = ram_plus(pretrained=path, image_size=image_size, vit="swin_l").eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[list[str]]:
        """Returns the tags of each picture."""
        found = []
        for picture in pictures:
            pixels = self._transform(picture).unsqueeze(0).to(self.device)
            tags, *_ = self._infer(pixels, self.model)
            found.append([tag.strip() for tag in tags.split("|") if tag.strip()])
        return found

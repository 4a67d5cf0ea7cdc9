"""Whether a folder's weights are quantised on disk, and what it takes to read them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from xtuner.errors import XTunerError
from xtuner.json_values import read_json

_LIBRARY = "compressed_tensors"
_EXTRA = "run \"pip install 'mg-llava-xtuner[quantize]'\" (from a clone: pip install -e '.[quantize]')"


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """Returns ``quantization_config`` of an exported folder's config.json; None where its weights are whole.

    Raises:
        XTunerError: config.json cannot be read.
    """
    return read_json(folder / "config.json", dict).get("quantization_config") or None


def check_library(purpose: str) -> None:
    """Checks that what reads and writes quantised weights is installed.

    Args:
        purpose: what needs it.

    Raises:
        XTunerError: it is not.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise XTunerError(f"{purpose} needs the package compressed-tensors: {_EXTRA}.")


def check_readable(folder: Path, asked: Any = None) -> None:
    """Refuses a quantised folder that cannot be read here, or that would be quantised once more.

    Args:
        folder: exported.
        asked: how its weights are to be quantised when they are loaded; None = not at all.

    Raises:
        XTunerError: the library is absent, or the folder is quantised already.
    """
    if quantization_of(folder) is None:
        return
    if asked is not None:
        raise XTunerError(
            f"'{folder}' is quantised already: leave --quantization out, or pass the folder that it was made from."
        )
    check_library(f"reading the quantised weights of '{folder}'")


def unpack(model: nn.Module) -> None:
    """Puts whole weights in the place of packed ones, rounded as they are; does nothing for other models.

    The library does so when the model's own ``forward`` is first called, but the training model calls its language
    model directly.

    Args:
        model: as transformers has loaded it.
    """
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is not None:
        compressor.decompress_model(model)

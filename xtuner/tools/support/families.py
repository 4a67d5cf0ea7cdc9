"""Model families, as the commands see them: which package reads an exported folder or makes a config's model."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from xtuner.cli import PLUGIN_GROUP
from xtuner.errors import XTunerError
from xtuner.json_values import read_json


def is_exported(folder: Path) -> bool:
    """True for a folder whose ``model_type`` names an installed package that reads it."""
    kind = _model_type(folder)
    known = isinstance(kind, str) and kind.isidentifier() and importlib.util.find_spec(kind) is not None
    return known and importlib.util.find_spec(f"{kind}.family") is not None


def is_quantized(folder: Path) -> bool:
    """True for an exported folder whose weights are quantised on disk, so that only its family reads them."""
    if not (folder / "config.json").is_file() or not is_exported(folder):
        return False
    return bool(read_json(folder / "config.json", dict).get("quantization_config"))


def family_of(folder: Path) -> Any:
    """Returns the module ``family`` of the installed package that the folder's ``model_type`` names.

    Raises:
        XTunerError: it is an adapter, has no readable config.json, or no package is installed for it.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise XTunerError(
                f"'{folder}' holds an adapter without its base model: run `xtuner convert merge BASE {folder} "
                "NEW_FOLDER` and pass the new folder."
            )
        raise XTunerError(f"the folder '{folder}' has no config.json: pass one that `xtuner convert pth_to_hf` wrote.")
    if not is_exported(folder):
        raise XTunerError(
            f"'{folder}' is a model of type {_model_type(folder)!r}, for which no package is installed: pass a "
            "folder that `xtuner convert pth_to_hf` wrote."
        )
    return importlib.import_module(f"{_model_type(folder)}.family")


def family_of_config(cfg: Any) -> Any:
    """Returns the module ``family`` of the package that the model of a resolved config comes from."""
    return importlib.import_module(f"{cfg.model.type.split('.')[0]}.family")


def family_offering(name: str) -> Any:
    """Returns the module ``family`` of an installed package with commands of its own (plug-ins) that offers `name`.

    Raises:
        XTunerError: there is none.
    """
    points = importlib.metadata.entry_points(group=PLUGIN_GROUP)
    for package in sorted({point.module.split(".")[0] for point in points}):
        if importlib.util.find_spec(f"{package}.family") is not None:
            family = importlib.import_module(f"{package}.family")
            if hasattr(family, name):
                return family
    raise XTunerError(f"no installed package offers {name}: install the project with `pip install -e .`.")


def family_of_object(found: Any) -> Any:
    """Returns the module ``family`` of the package that an object's class comes from."""
    return importlib.import_module(f"{type(found).__module__.split('.')[0]}.family")


def _model_type(folder: Path) -> Any:
    return read_json(folder / "config.json", dict, "convert the checkpoint again.").get("model_type")

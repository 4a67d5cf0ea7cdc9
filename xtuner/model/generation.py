"""What a language model's own folder asks of generation: kept for the record, and kept from acting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file

from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.log import get_logger

_FILE = "generation_config.json"
_NO_WISHES = ("transformers_version", "_from_model_config")


def read_generation(name_or_path: str) -> dict[str, Any]:
    """Returns what a model's ``generation_config.json`` asks for.

    Nothing comes of an absent file, of one that is no JSON object (reported), and of one that transformers made from
    the defaults in config.json.

    Args:
        name_or_path: folder, or a hub name.
    """
    found = cached_file(
        name_or_path,
        _FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return {}
    try:
        asked = read_json(found)
    except XTunerError as error:
        get_logger().warning("generation settings are not used: %s", error)
        return {}
    if not isinstance(asked, dict) or asked.get("_from_model_config"):
        return {}
    return {name: value for name, value in asked.items() if name not in _NO_WISHES}


def take_generation(llm: PreTrainedModel) -> dict[str, Any]:
    """Gives a language model transformers' neutral settings of generation, and returns what its folder asked for.

    Transformers would fill whatever a caller leaves open with the folder's penalties, beams and stop strings, so that
    the same weights would answer differently beside another file.

    Args:
        llm: of `build_llm`, which keeps what `read_generation` found under ``asked_generation``; of any other only the
            settings are replaced.
    """
    llm.generation_config = GenerationConfig()
    return dict(getattr(llm, "asked_generation", {}))


def end_ids(asked: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids that end an answer by what `take_generation` returned."""
    found = asked.get("eos_token_id")
    ids = found if isinstance(found, (list, tuple)) else [found]
    return tuple(token for token in ids if isinstance(token, int))

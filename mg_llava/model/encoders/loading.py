"""Weights of encoders from the folders of transformers and timm; what is absent is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mg_llava.pictures.encoder_config import EncoderConfig
from xtuner.errors import XTunerError, counted, reason_of
from xtuner.model.files.pickles import pickles_in, restricted_loading
from xtuner.model.files.quiet import quiet_transformers
from xtuner.model.files.weight_files import read_state_dict
from xtuner.model.meta import in_meta_init

_AFTER_FEATURES = ("norm.", "fc_norm.", "head.")
"""Beginnings of names of timm's weights behind the last feature map; which there are depends on the pooling."""
_WRAPPER = "timm_model."
_TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def build_transformers(
    class_name: str,
    config: EncoderConfig,
    role: str,
    unread: tuple[str, ...] = (),
    key_mapping: dict[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """Builds a model of transformers with a folder's weights; under `meta_init` its shape alone.

    Args:
        class_name: of the model in transformers.
        config: of the folder.
        role: ``low-resolution`` or ``high-resolution``, for messages.
        unread: beginnings of names of weights that may be absent, since nothing reads them or they start as constants.
        key_mapping: of ``from_pretrained``: pattern in a weight's name to what stands for it.
        arguments: values of the model's config, instead of the folder's.

    Raises:
        XTunerError: the installed transformers has no such class, or weights cannot be read or are absent.
    """
    import transformers

    model_class = getattr(transformers, class_name, None)
    if model_class is None or isinstance(config.values, dict):
        raise XTunerError(
            f"{config.described}: the installed transformers {transformers.__version__} has no {class_name}, "
            "which reads it: install a newer one."
        )
    if in_meta_init():
        for name, value in arguments.items():
            setattr(config.values, name, value)
        return model_class(config.values)
    try:
        with restricted_loading(pickles_in(config.source)), quiet_transformers():
            model, info = model_class.from_pretrained(
                config.source,
                output_loading_info=True,
                **arguments,
                **({"key_mapping": key_mapping} if key_mapping else {}),
            )
    except OSError as error:
        raise XTunerError(
            f"the weights of the {role} encoder '{config.source}' cannot be read: {reason_of(error)}."
        ) from error
    # transformers fills what is absent with random numbers and only warns
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key and not key.startswith(unread))
    if missing:
        raise XTunerError(
            f"'{config.source}' lacks {counted(len(missing), 'weights')} of a {class_name}, e.g. {missing[0]}: "
            "give a complete checkpoint."
        )
    return model


def read_timm_weights(config: EncoderConfig) -> dict[str, torch.Tensor]:
    """Reads the weights of a folder as timm or the Hub saves it.

    Raises:
        XTunerError: there are none.
    """
    from transformers.utils import cached_file

    for name in _TIMM_WEIGHTS:
        try:
            file = cached_file(config.source, name, _raise_exceptions_for_missing_entries=False)
        except OSError:
            file = None
        if file is not None:
            state = read_state_dict(Path(file))
            # transformers' wrapper of timm's models saves them one level down
            return {key.removeprefix(_WRAPPER): value for key, value in state.items()}
    raise XTunerError(
        f"'{config.source}' holds no weights: expected one of {', '.join(_TIMM_WEIGHTS)} beside config.json; download "
        "the whole folder."
    )


def check_timm_weights(model: nn.Module, state: dict[str, torch.Tensor], config: EncoderConfig) -> None:
    """Checks that a folder's weights hold all of `model`; what they have beyond it, such as a head, is left aside.

    Raises:
        XTunerError: weights are absent or of another shape.
    """
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(_AFTER_FEATURES)}
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if wrong:
        raise XTunerError(
            f"'{config.source}' does not fit its config.json: {len(wrong)} of the {counted(len(wanted), 'weights')} of "
            f"{config.get('architecture')} are absent or of another shape, e.g. {wrong[0]}."
        )


def load_timm(model: nn.Module, config: EncoderConfig) -> None:
    """Loads a folder's weights into `model`; see `check_timm_weights`."""
    state = read_timm_weights(config)
    check_timm_weights(model, state, config)
    model.load_state_dict({key: state[key] for key in model.state_dict() if key in state})

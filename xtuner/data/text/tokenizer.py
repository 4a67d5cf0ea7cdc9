"""Loading tokenizers, with the padding and special tokens that training and generation need."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal, get_args

from xtuner.data.text.tokenizer_files import TokenizerMismatch, TokenizerSource, load_tokenizer
from xtuner.errors import XTunerError, reason_of
from xtuner.log import get_logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_tokenizer(
    name_or_path: str, padding_side: Literal["right", "left"] = "right", source: TokenizerSource = "auto"
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; one without a padding token pads with unk, else with eos.

    Its ids are compared with those of the files that it comes from.

    Args:
        name_or_path: a folder with the tokenizer's files, or a name on the Hugging Face hub.
        padding_side: "right" for training, "left" where batches are generated.
        source: the file that counts where tokenizer.json and tokenizer.model disagree; "auto" = tokenizer.json, with
            a warning.

    Raises:
        XTunerError: it cannot be read, gives other ids than its tokenizer.model, or has no eos token.
    """
    if source not in get_args(TokenizerSource):
        raise XTunerError(f"tokenizer_source={source!r}: expected one of {', '.join(get_args(TokenizerSource))}.")
    try:
        tokenizer = load_tokenizer(name_or_path, padding_side, source, _warn_once)
    except TokenizerMismatch:
        raise
    # transformers raises OSError, ValueError, KeyError, ImportError and others for unreadable files
    except Exception as error:
        raise XTunerError(
            f"the tokenizer '{name_or_path}' cannot be read: {reason_of(error)}; expected a folder with "
            "tokenizer.json or tokenizer.model and tokenizer_config.json, or a hub name that this machine "
            "can reach; check llm_name_or_path."
        ) from error
    if tokenizer.eos_token_id is None:
        raise XTunerError(
            f"the tokenizer '{name_or_path}' has no eos token, so answers would never end: "
            "set 'eos_token' in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.unk_token_id is None else tokenizer.unk_token
        _tell_once(f"The tokenizer '{name_or_path}' has no padding token: padding with {tokenizer.pad_token!r}.")
    if tokenizer.bos_token_id is None:
        _tell_once(f"The tokenizer '{name_or_path}' has no bos token: texts start without one.")
    return tokenizer


@functools.cache
def _tell_once(message: str) -> None:
    get_logger().info(message)


@functools.cache
def _warn_once(message: str) -> None:
    get_logger().warning(message)

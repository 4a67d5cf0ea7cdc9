"""What a prepared data set was made from and with: compared before it is used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xtuner.data.text.specials import Policy
from xtuner.data.text.templates import PromptTemplate
from xtuner.data.text.tokenizer_files import backend_ids, probe_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 4
"""Raised whenever the same settings would give other ids, labels or columns."""

_NOT_COMPARED = frozenset({"data.path", "tokenizer.name", "prompt_template.name", "prompt_template.stop_words"})
_UNKNOWN = "unknown"


def text_settings(
    data: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    max_length: int,
    special_tokens_in_text: Policy = "split",
) -> dict[str, Any]:
    """Describes everything that the ids and labels depend on, as JSON can hold it.

    Args:
        data: `RecordSource.identity` of the records; None where only the prepared folder is at hand: their content
            is not compared.
        tokenizer: compared by what it does, not by its name.
        template: words around the turns.
        max_length: ids beyond it are cut off.
        special_tokens_in_text: what becomes of special tokens that a text holds.
    """
    return {
        "version": FORMAT_VERSION,
        "data": {"path": None, "size": _UNKNOWN, "digest": _UNKNOWN} if data is None else dict(data),
        "tokenizer": {
            "name": str(tokenizer.name_or_path),
            "digest": _tokenizer_digest(tokenizer),
            # what this version of the library makes of it
            "probes": probe_digest(backend_ids(tokenizer)),
        },
        "prompt_template": _template_settings(template),
        "max_length": max_length,
        "special_tokens_in_text": special_tokens_in_text,
    }


def _template_settings(template: PromptTemplate) -> dict[str, Any]:
    fields = {**dataclasses.asdict(template), "stop_words": list(template.stop_words)}
    if not template.default_system:
        # as in folders from before there was one
        del fields["default_system"]
    return fields


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that name the settings; paths and names do not count."""
    compared = {key: value for key, value in _flat(settings).items() if key not in _NOT_COMPARED}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def differences(prepared: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns one sentence per setting in which the two differ."""
    before, now = _flat(prepared), _flat(wanted)
    return [
        f"{key}: prepared with {before.get(key)!r}, now {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if key not in _NOT_COMPARED and before.get(key) != now.get(key) and now.get(key) != _UNKNOWN
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # set by the last call that padded or truncated; no part of what the tokenizer is
        backend.update(padding=None, truncation=None)
    else:
        backend = sorted(tokenizer.get_vocab().items())
    content = json.dumps([backend, tokenizer.bos_token_id, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

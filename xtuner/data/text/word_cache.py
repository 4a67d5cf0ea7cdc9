"""Exact ids of texts from the ids of their words.

Byte-pair tokenizers never join across certain spaces, so a text's ids are those of its parts one after the other. Words
repeat, so most parts are looked up instead of computed. Whether that holds is read from the tokenizer itself; for any
other tokenizer there is no `WordCache`.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_WORDS = 400_000
"""Some 100 MB of a process; then it starts anew."""

_SPACE = "\u2581"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_SPLITS = (LLAMA3_PATTERN, LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"))
"""Patterns of Llama 3 and Qwen 2: in both, as in GPT-2's, a match can hold a space only at its start, unless white
space stands before it."""


def pack(ids: Iterable[int]) -> bytes:
    """Returns ids as 32-bit numbers one after the other: joined in one copy, lists of objects take much longer."""
    return array("i", ids).tobytes()


def unpack(packed: bytes) -> list[int]:
    """Returns the ids that `pack` was given."""
    return array("i", packed).tolist()


_RARE_SPACE = re.compile(r"[\t\r\x0b\x0c\x1c-\x1f]").search


class WordCache:
    """Encodes texts by their words.

    A text is cut before every single space between two characters that are no white space (nor U+2581), but not
    after an added token. The first part is encoded on its own, each other one as the continuation of a letter.

    Args:
        backend: of a tokenizer for which `cuts_at_spaces` is true.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._context = backend.encode("a", add_special_tokens=False).ids
        self._firsts: dict[str, bytes] = {}
        self._others: dict[str, bytes] = {}
        self._added = tuple(token.content for token in backend.get_added_tokens_decoder().values())
        self._has_added = re.compile("|".join(map(re.escape, self._added)) or r"(?!)").search

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Returns the ids of each text as `pack` has them, without special tokens added."""
        cut = [self._parts(text) for text in texts]
        if len(self._firsts) + len(self._others) > _MOST_WORDS:
            self._firsts, self._others = {}, {}
        self._learn({parts[0] for parts in cut}, {part for parts in cut for part in parts[1:]})
        firsts, other, join = self._firsts, self._others.__getitem__, b"".join
        return [firsts[parts[0]] + join(map(other, parts[1:])) for parts in cut]

    def _parts(self, text: str) -> list[str]:
        """Cuts `text` at its safe spaces, which the parts no longer hold."""
        words = text.split(" ")
        # the common case, told apart without looking at each word; a space at either end gives an empty word
        paired = "  " in text or (
            not text.isprintable() and (" \n" in text or "\n " in text or _RARE_SPACE(text) is not None)
        )
        if words[0] and words[-1] and text.isascii() and not paired and not self._has_added(text):
            return words
        parts = [words[0]]
        for before, word in zip(words, words[1:], strict=False):
            # what follows an added token begins anew for the tokenizer
            safe = before and word and not _is_space(before[-1]) and not _is_space(word[0])
            if safe and not before.endswith(self._added):
                parts.append(word)
            else:
                parts[-1] += f" {word}"
        return parts

    def _learn(self, firsts: Iterable[str], others: Iterable[str]) -> None:
        new_firsts = [part for part in firsts if part not in self._firsts]
        new_others = [part for part in others if part not in self._others]
        encoded = self._backend.encode_batch_fast(
            [*new_firsts, *(f"a {part}" for part in new_others)], add_special_tokens=False
        )
        for part, encoding in zip(new_firsts, encoded, strict=False):
            self._firsts[part] = pack(encoding.ids)
        for part, encoding in zip(new_others, encoded[len(new_firsts) :], strict=True):
            self._others[part] = pack(encoding.ids[len(self._context) :])


def cuts_at_spaces(backend: Tokenizer) -> bool:
    """Says whether a tokenizer's ids are those of the parts that `WordCache` cuts.

    True for two families. Byte-level BPE after the pattern of GPT-2, Llama 3 or Qwen 2: its words are cut there anyhow.
    BPE over whole texts in which a space is a letter of its own (Llama 2, Vicuna, Phi-3, Yi): where no entry of the
    vocabulary holds that letter after another one, no merge can cross it.
    """
    content: dict[str, Any] = json.loads(backend.to_str())
    model = content["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return False
    added = [token["content"] for token in content["added_tokens"]]
    if any(" " in token or _SPACE in token for token in added):
        return False
    if any(token["single_word"] or token["lstrip"] for token in content["added_tokens"]):
        return False
    normalizers, steps = (
        flat_steps(content["normalizer"], "normalizers"),
        flat_steps(content["pre_tokenizer"], "pretokenizers"),
    )
    if _is_byte_level(steps):
        return all(step["type"] in ("NFC", "NFKC") for step in normalizers)
    prepends = [{"type": "Prepend", "prepend": _SPACE}]
    replaces = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    if steps and all(map(_is_unsplit_metaspace, steps)):
        # what transformers, or `tokenizer_files`, makes of a sentencepiece file
        return normalizers in ([], replaces) and not _crosses_spaces(model["vocab"])
    if steps or normalizers not in (replaces, prepends + replaces):
        return False
    return not _crosses_spaces(model["vocab"])


def _crosses_spaces(vocab: Iterable[str]) -> bool:
    # a run of spaces may be one entry; a space after anything else may not
    return any(_SPACE in token.lstrip(_SPACE) for token in vocab)


def _is_space(character: str) -> bool:
    # tokenizers that write a space as U+2581 cannot tell the two apart
    return character.isspace() or character == _SPACE


def flat_steps(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or pre-tokenizer of tokenizer.json; `key` holds those of a sequence."""
    if node is None:
        return []
    return list(node[key]) if node["type"] == "Sequence" else [node]


def _is_unsplit_metaspace(step: dict[str, Any]) -> bool:
    return step["type"] == "Metaspace" and step["replacement"] in (_SPACE, " ") and not step["split"]


def _is_byte_level(steps: Sequence[dict[str, Any]]) -> bool:
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if len(steps) == 1:
        return bool(steps[0]["use_regex"])
    split = steps[0]
    return (
        len(steps) == 2
        and split["type"] == "Split"
        and split["pattern"].get("Regex") in _SPLITS
        and split["behavior"] == "Isolated"
        and not split["invert"]
        and not steps[1]["use_regex"]
    )

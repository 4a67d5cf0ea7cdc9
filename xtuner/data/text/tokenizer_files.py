"""Tokenizers from the files that a model was published with, compared with these files.

transformers rebuilds many tokenizers from their vocabulary and the pattern of their class. What it makes of Vicuna's
``tokenizer.model`` or of Phi-3's ``tokenizer.json`` gives other ids for runs of spaces than the files themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from xtuner.data.text.word_cache import flat_steps
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import PreTrainedTokenizerBase

TokenizerSource: TypeAlias = Literal["auto", "tokenizer.json", "tokenizer.model"]
"""Which file to believe; "auto" = tokenizer.json where there is one."""

JSON_FILE, MODEL_FILE = "tokenizer.json", "tokenizer.model"
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_SPACE = "\u2581"
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+").fullmatch


PROBES = (
    "a two",
    "a  two",
    "a   two",
    "a    two     three      four",
    " one",
    "  one",
    "   one",
    "a     b      c       d        e         f",
    "a          b           c            d              e                 f",
    " ",
    "  ",
    "     ",
    "one ",
    "one  ",
    "def f(x):\n    return x\n\n\n        # deep",
    "if (a) {\n\tb = 1;\n\t\tc = 2;\n}",
    "| a  |  b |\n|----|----|\n| 1  | 22 |",
    "\t",
    "\t\tx",
    "x\ty",
    " \t x",
    "\n",
    "\n\n",
    "\n x",
    "x\n  y",
    "a\r\nb",
    "\u00a0x\u00a0\u00a0y",
    "\u3000全角",
    "汉字和English混排",
    "日本語のテキスト、カタカナ。",
    "한국어 텍스트",
    "Привет,  мир!",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "é à ü ß ñ Å",
    "e\u0301 u\u0308",
    "😀",
    "👨‍👩‍👧 family  👍🏽",
    "🇩🇪 flag",
    "\U00010348 \U0001d54f",
    "\u200b\ufeff",
    "0123456789",
    "3.14159 1,000,000 -42",
    "2024-01-31 12:45:00",
    "[0.12, 0.345, 0.6, 0.99]",
    "\u2581",
    "a\u2581b",
    "a \u2581 b",
    "\u2581\u2581x",
    "it's don't we'LL",
    'A "quoted" word, (and) [brackets] {braces} <tags>.',
    "https://example.org/a_b?c=d&e=%20#f",
    "CamelCase snake_case SHOUTING",
    "x=1;y+=2**3//4%5",
    "….—–“”‘’",
    "USER: What is in the picture? ASSISTANT:",
)
"""Runs of spaces, tabs, newlines, CJK, emoji, digits, what needs byte fallback, and ``\\u2581``."""


@dataclass(frozen=True)
class Difference:
    """A text that two ways tokenise differently, and the ids of both."""

    text: str
    ids: list[int]
    other_ids: list[int]


def differences(
    encode: Callable[[str], list[int]], other: Callable[[str], list[int]], without: Iterable[str] = ()
) -> list[Difference]:
    """Compares two ways on `PROBES`.

    Args:
        encode, other: a text to its ids, without special tokens added.
        without: added tokens that only one side knows; a text that holds one is not compared.
    """
    skipped = [token for token in without if token]
    texts = [text for text in PROBES if not any(token in text for token in skipped)]
    return [Difference(text, a, b) for text in texts if (a := encode(text)) != (b := other(text))]


def probe_digest(encode: Callable[[str], list[int]]) -> str:
    """Returns 16 hexadecimal digits that name the ids of all `PROBES`."""
    content = json.dumps([encode(text) for text in PROBES])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class TokenizerMismatch(XTunerError):
    """A tokenizer that is not what its file says, or not there in the form that is asked for."""


def load_tokenizer(
    name_or_path: str, padding_side: str, source: TokenizerSource, warn: Callable[[str], None]
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer whose ids are those of its file.

    Args:
        name_or_path: a folder, or a name on the Hugging Face hub.
        padding_side: "right" or "left".
        source: which file counts.
        warn: is told where both files are there and disagree.

    Raises:
        TokenizerMismatch: the file is not there, or its ids cannot be reproduced.
        Exception: whatever transformers raises for files that it cannot read.
    """
    json_file, model_file = _find(name_or_path, JSON_FILE), _find(name_or_path, MODEL_FILE)
    pieces = None if model_file is None else _read_sentencepiece(model_file)
    if source == "auto":
        source = JSON_FILE if json_file or pieces is None else MODEL_FILE  # type: ignore[assignment]
    elif (json_file if source == JSON_FILE else pieces) is None:
        raise TokenizerMismatch(
            f"the tokenizer '{name_or_path}' has no {source} that can be read, but tokenizer_source asks for it: "
            "add the file, or set tokenizer_source='auto'."
        )
    if source == MODEL_FILE:
        assert model_file is not None and pieces is not None
        tokenizer = _from_sentencepiece(name_or_path, model_file, padding_side)
        if found := _against(tokenizer, pieces):
            raise TokenizerMismatch(
                f"the tokenizer '{name_or_path}' is rebuilt from its tokenizer.model, but "
                f"{_told(found, 'sentencepiece')}, so the model would read ids that it was not trained with: add the "
                "model's tokenizer.json to the folder, or use another version of transformers."
            )
        return tokenizer
    if json_file is None and model_file is not None and not _is_tiktoken(model_file):
        # transformers makes an empty vocabulary of an empty file
        raise TokenizerMismatch(
            f"the tokenizer '{name_or_path}' cannot be read: its tokenizer.model "
            f"({os.path.getsize(model_file):,} bytes) "
            "is neither a sentencepiece file nor a list of tiktoken's, as where a download has stopped: download it "
            "again, or add the model's tokenizer.json."
        )
    tokenizer = _from_json(name_or_path, json_file, padding_side)
    if pieces is not None and json_file is not None and (found := _against(tokenizer, pieces)):
        warn(
            f"The tokenizer '{name_or_path}' has two files that disagree: {_told(found, 'tokenizer.model')}. "
            "tokenizer.json is used; set tokenizer_source='tokenizer.model' if the model was trained with the other."
        )
    return tokenizer


def backend_ids(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Returns what makes the ids of a text, without special tokens added."""
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _told(found: list[Difference], other: str) -> str:
    first = found[0]
    return (
        f"{len(found)} of {len(PROBES)} probe texts get other ids than from {other}, first {first.text!r}: {first.ids} "
        f"instead of {first.other_ids}"
    )


def _find(name_or_path: str, file_name: str) -> str | None:
    """Path of a file of the folder, or of the hub's cache."""
    from transformers.utils import cached_file

    if os.path.isdir(name_or_path):
        path = os.path.join(name_or_path, file_name)
        return path if os.path.isfile(path) else None
    try:
        return cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        # the name itself cannot be reached: AutoTokenizer says so, with its reason
        return None


def _read_sentencepiece(path: str) -> SentencePieceProcessor | None:
    """The file's processor; None where it is of another kind, e.g. Llama 3's tiktoken file of the same name."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError):
        return None


def _is_tiktoken(path: str) -> bool:
    """Tells whether each of the first lines is a token in base64 and its rank, as Llama 3's file has it."""
    with open(path, "rb") as file:
        lines = list(islice(file, 10))
    return bool(lines) and all(_TIKTOKEN_LINE(line.rstrip()) for line in lines)


def _against(tokenizer: PreTrainedTokenizerBase, pieces: SentencePieceProcessor) -> list[Difference]:
    known = {pieces.id_to_piece(number) for number in range(pieces.get_piece_size())}
    return differences(backend_ids(tokenizer), pieces.encode, set(tokenizer.get_added_vocab()) - known)


def _from_json(name_or_path: str, json_file: str | None, padding_side: str) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side=padding_side, trust_remote_code=False)
    if json_file is None:
        names = dict.fromkeys(tokenizer.vocab_files_names.values())
        if not any(_find(name_or_path, name) for name in names):
            # transformers makes an empty vocabulary of nothing
            raise XTunerError(f"none of its files is there: {', '.join(names)}")
        return tokenizer
    file = Tokenizer.from_file(json_file)
    file.no_padding()
    file.no_truncation()
    added = set(tokenizer.get_added_vocab()) ^ {token.content for token in file.get_added_tokens_decoder().values()}
    if differences(backend_ids(tokenizer), lambda text: file.encode(text, add_special_tokens=False).ids, added):
        # the class rebuilds the tokenizer by a pattern of its own: this one takes the file as it is
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, padding_side=padding_side)
    return tokenizer


def _from_sentencepiece(name_or_path: str, model_file: str, padding_side: str) -> PreTrainedTokenizerBase:
    """By transformers' generic class, which orders merges by their scores; Llama's orders them by the vocabulary."""
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        # without tokenizer.json, which it would prefer
        shutil.copy(model_file, os.path.join(folder, MODEL_FILE))
        for file_name in _BESIDE:
            if path := _find(name_or_path, file_name):
                shutil.copy(path, folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side=padding_side)
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = name_or_path
    tokenizer.vocab_file = tokenizer.init_kwargs["vocab_file"] = model_file
    _prefix_always(tokenizer)
    return tokenizer


def _prefix_always(tokenizer: PreTrainedTokenizerBase) -> None:
    """Puts sentencepiece's leading space before texts that begin with a space as well.

    With ``legacy`` it stands after every added token, else at the start of the text only.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    content: dict[str, Any] = json.loads(backend.to_str())
    first, *rest = flat_steps(content["pre_tokenizer"], "pretokenizers") or [{"type": None}]
    kinds = {form["type"] for form in flat_steps(content["normalizer"], "normalizers")}
    if first["type"] != "Metaspace" or first["split"] or kinds - {"Replace"}:
        # of another form, e.g. with a table of characters: the comparison tells whether it is right
        return
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if first["prepend_scheme"] == "first":
        # no space is left after `replace`, so the first step always puts one before the text
        forms = [replace]
        steps = [{**first, "replacement": " "}, {**first, "prepend_scheme": "never"}, *rest]
    elif first["prepend_scheme"] == "always" and not rest:
        # the form of Llama 2's published tokenizer.json
        forms, steps = [{"type": "Prepend", "prepend": _SPACE}, replace], []
    else:
        return
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    shell = {
        **content,
        "model": empty,
        "added_tokens": [],
        "post_processor": None,
        "normalizer": {"type": "Sequence", "normalizers": forms},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
    }
    made = Tokenizer.from_str(json.dumps(shell))
    backend.normalizer, backend.pre_tokenizer = made.normalizer, made.pre_tokenizer

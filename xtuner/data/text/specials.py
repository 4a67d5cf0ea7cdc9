"""Text is text: only the template writes special tokens, whatever users and data wrote."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import PromptTemplate
from xtuner.errors import SampleError, XTunerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Policy: TypeAlias = Literal["split", "keep", "refuse"]
"""What becomes of a special token that stands in the text of users and data (setting ``special_tokens_in_text``):
``split`` tokenises it as the text it is, ``keep`` lets it become the token, ``refuse`` is an error."""
POLICIES: tuple[Policy, ...] = ("split", "keep", "refuse")

_is_byte = re.compile(r"<0x[0-9A-F]{2}>").fullmatch
_PRIVATE_USE = 0xF0000
_STAND_IN_LENGTH = 8


def check_policy(policy: str) -> Policy:
    """Returns `policy`.

    Raises:
        XTunerError: it is none of `POLICIES`.
    """
    for known in POLICIES:
        if policy == known:
            return known
    raise XTunerError(f"special_tokens_in_text={policy!r}: expected one of {', '.join(POLICIES)}.")


class SpecialTokens:
    """The special tokens of a tokenizer under a template, and texts tokenised as if those were ordinary words.

    Special are the tokens that the tokenizer marks so, the template's own markers, and ``<image>``. Other added tokens
    (``<think>``) stay whole wherever they stand. Single characters and the tokens of bytes (``<0x0A>``), of which other
    text is made, are never special.

    Args:
        tokenizer: any.
        template: words around the turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> None:
        added = tokenizer.added_tokens_decoder.values()
        marked = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        words = {word for word in (*marked, *template.markers, IMAGE_TOKEN) if len(word) > 1 and not _is_byte(word)}
        self.words = tuple(sorted(words, key=lambda word: (-len(word), word)))
        self._tokenizer = tokenizer
        self._pattern = re.compile("|".join(map(re.escape, self.words)))
        self._backends: dict[bool, tuple[Tokenizer, dict[str, str]]] = {}

    @property
    def search(self) -> Callable[[str], Any]:
        """Tells whether a text holds a special token."""
        return self._pattern.search

    def in_words(self, words: Sequence[str]) -> list[str]:
        """Returns the special tokens that stand in, or reach into, what the template did not write.

        Args:
            words: the template's and others' by turns, as in `Piece.words`.
        """
        ends = list(accumulate(map(len, words)))
        found = []
        for match in self._pattern.finditer("".join(words)):
            # the template's words are those with an even number
            inside = any(
                ends[number] - len(words[number]) <= match.start() and match.end() <= ends[number]
                for number in range(0, len(words), 2)
            )
            if not inside:
                found.append(match.group())
        return found

    def encode(self, pieces: Sequence[Sequence[str]], keep: bool = False) -> list[list[int]]:
        """Returns the ids of each piece; only the template's words give special tokens.

        Args:
            pieces: the template's words and others' by turns.
            keep: others' words may give them as well, all but ``<image>``.
        """
        if not self._tokenizer.is_fast:
            return [self._encode_slowly(words, keep) for words in pieces]
        backend, stand_ins = self._backend(keep)
        pattern = re.compile("|".join(map(re.escape, sorted(stand_ins, key=len, reverse=True))) or r"(?!)")

        def own(text: str) -> str:
            return pattern.sub(lambda match: stand_ins[match.group()], text)

        texts = ["".join(word if number % 2 else own(word) for number, word in enumerate(words)) for words in pieces]
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _backend(self, keep: bool) -> tuple[Tokenizer, dict[str, str]]:
        """The tokenizer with its special tokens under names that nobody can write, and these names."""
        if keep not in self._backends:
            content = json.loads(self._tokenizer.backend_tokenizer.to_str())
            hidden = {IMAGE_TOKEN} if keep else set(self.words)
            names = {word: _stand_in() for word in hidden}
            _rename(content, names)
            backend = Tokenizer.from_str(json.dumps(content))
            known = {word: name for word, name in names.items() if backend.token_to_id(name) is not None}
            for word, name in known.items():
                wanted = [self._tokenizer.convert_tokens_to_ids(word)]
                if backend.encode(name, add_special_tokens=False).ids != wanted:
                    raise XTunerError(
                        f"this tokenizer cannot tell a special token {word!r} in a text from its own: set "
                        "special_tokens_in_text='keep' or 'refuse'."
                    )
            self._backends[keep] = backend, known
        return self._backends[keep]

    def _encode_slowly(self, words: Sequence[str], keep: bool) -> list[int]:
        """Word by word; tokenizers in Python cannot be told who wrote what."""
        ids: list[int] = []
        for number, word in enumerate(words):
            if not word:
                continue
            as_text = bool(number % 2) and not (keep and IMAGE_TOKEN not in word)
            ids += self._tokenizer(word, add_special_tokens=False, split_special_tokens=as_text, verbose=False)[
                "input_ids"
            ]
        return ids


def special_tokens(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> SpecialTokens:
    """Returns the `SpecialTokens` of both; made once."""
    by_markers = _made.setdefault(tokenizer, {})
    # a token may be added to a tokenizer at any time
    key = (template.markers, len(tokenizer))
    if key not in by_markers:
        by_markers[key] = SpecialTokens(tokenizer, template)
    return by_markers[key]


_made: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, SpecialTokens]] = WeakKeyDictionary()


def refusal(words: Sequence[str]) -> SampleError:
    """Returns the error of the policy ``refuse``."""
    shown = ", ".join(dict.fromkeys(words))
    return SampleError(
        "special token in text",
        f"the text holds {shown}, which only the prompt template may write (special_tokens_in_text='refuse'): take it "
        "out, or set special_tokens_in_text='split' to have it read as text.",
    )


def _stand_in() -> str:
    """A name that is drawn anew in each process, so that no text can hold it."""
    return "".join(chr(_PRIVATE_USE + secrets.randbelow(0xFFFE)) for _ in range(_STAND_IN_LENGTH))


def _rename(content: dict[str, Any], names: dict[str, str]) -> None:
    """Gives tokens other names in a tokenizer's JSON; nothing of its model then makes them of letters."""
    content.update(post_processor=None, padding=None, truncation=None)
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model.get("vocab"), list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, names)]


def _touches(merge: Any, names: dict[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names

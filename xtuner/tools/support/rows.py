"""The text of a row of token ids, token by token: what commands show of a sample."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN, PICTURE_INDICES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PICTURE, WITH_LOSS = "picture", "with-loss"
STYLES = {PICTURE: "bold magenta", WITH_LOSS: "bold green", "": ""}
_UNFINISHED = "\ufffd"
_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class Cell:
    """One token of a row.

    Attributes:
        id: in the vocabulary; one of `PICTURE_INDICES` = the place of a picture.
        text: what it adds to the decoded row; "" where a later token ends the character that it begins.
        piece: as the vocabulary writes it.
        kind: `PICTURE`, `WITH_LOSS` or "".
    """

    id: int
    text: str
    piece: str
    kind: str

    @property
    def shown(self) -> str:
        """Its text with white space and invisible characters made visible; its piece where it has no text."""
        return "".join(_VISIBLE.get(one) or (one if one.isprintable() else _escaped(one)) for one in self.text) or (
            self.piece
        )


def read_row(input_ids: Sequence[int], labels: Sequence[int] | None, tokenizer: PreTrainedTokenizerBase) -> list[Cell]:
    """Returns the tokens of a row; their texts one after the other are the decoded row, special tokens included.

    Args:
        input_ids: T token ids.
        labels: T ids, `IGNORE_INDEX` where there is no loss; None = no loss anywhere.
        tokenizer: the ids' own.
    """
    kinds = [
        PICTURE if token in PICTURE_INDICES else WITH_LOSS if label != IGNORE_INDEX else ""
        for token, label in zip(input_ids, labels or [IGNORE_INDEX] * len(input_ids), strict=True)
    ]
    texts = _texts(input_ids, kinds, tokenizer)
    pieces = [IMAGE_TOKEN if kind == PICTURE else "" for kind in kinds]
    places = [number for number, kind in enumerate(kinds) if kind != PICTURE]
    found = tokenizer.convert_ids_to_tokens([int(input_ids[number]) for number in places])
    for number, piece in zip(places, found, strict=True):
        pieces[number] = str(piece)
    return [Cell(int(one), *rest) for one, *rest in zip(input_ids, texts, pieces, kinds, strict=True)]


def _texts(input_ids: Sequence[int], kinds: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to what stands before it: some decoders drop a space at the start, none elsewhere."""

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False))

    texts = [""] * len(input_ids)
    # the tokens of the last whole character, and those of one that is not yet whole
    before: list[int] = []
    told = ""
    open_ids: list[int] = []
    for number, (token, kind) in enumerate(zip(input_ids, kinds, strict=True)):
        if kind == PICTURE:
            texts[number] = IMAGE_TOKEN
            continue
        open_ids.append(int(token))
        text = decode(before + open_ids)
        # pieces of another kind are tokenised on their own, so no character goes on there
        is_last = number + 1 == len(kinds) or kinds[number + 1] != kind
        if text.endswith(_UNFINISHED) and not is_last:
            continue
        alone = decode(open_ids)
        texts[number] = text[len(told) :] if text.startswith(told) else alone
        before, told, open_ids = open_ids, alone, []
    return texts


def styled(cells: Sequence[Cell]) -> Text:
    """Returns the decoded row; what carries loss, and places of pictures, are coloured."""
    text = Text()
    for kind, group in groupby(cells, key=lambda cell: cell.kind):
        text.append("".join(cell.text for cell in group), STYLES[kind])
    return text


def as_html(cells: Sequence[Cell]) -> str:
    """Returns the decoded row as HTML with the classes ``with-loss`` and ``picture``."""
    runs = [
        (kind, html.escape("".join(cell.text for cell in group)))
        for kind, group in groupby(cells, key=lambda cell: cell.kind)
    ]
    return "".join(f'<span class="{kind}">{words}</span>' if kind else words for kind, words in runs)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()

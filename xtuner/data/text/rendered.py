"""A rendered conversation back to the pieces that are tokenised: what servers hand to a processor."""

from __future__ import annotations

import re

from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import Piece, PieceKind, PromptTemplate

BOUNDARY = "\u2063"
"""Invisible separator between a question and its answer, rendered where the template has no words there (``plain``)."""

VIDEO_PLACE = "\ue8a1\uf3d7\ue5a9"
"""Place of a video: private characters, which no text holds, since there ``<video>`` is text."""
_PLACES = re.compile(f"({re.escape(IMAGE_TOKEN)}|{VIDEO_PLACE})")


def cut_rendered(text: str, template: PromptTemplate, bos: str | None, eos: str | None) -> list[Piece]:
    """Returns the pieces of `text` as `PromptTemplate.render` makes them.

    Args:
        text: a conversation rendered with `template`, special tokens written out; any other text counts as a question.
            Bos is put first where it is not there.
        template: words around the turns.
        bos: the tokenizer's bos token; None = it has none.
        eos: the tokenizer's eos token.
    """
    end = template.answer_suffix or eos or ""
    pieces: list[Piece] = []
    after_eos = True
    while text or not pieces:
        if after_eos:
            pieces.append(Piece(PieceKind.BOS))
            text = text.removeprefix(bos or "")
        question, text = _cut_question(text, template, end)
        pieces += _with_pictures(question)
        answer, found, text = text.partition(end) if end else (text, "", "")
        after_eos = bool(found) and not template.answer_suffix
        pieces.append(Piece(PieceKind.TEXT, answer if after_eos else answer + found))
        if after_eos:
            pieces.append(Piece(PieceKind.EOS))
        if found and template.sep and text.startswith(template.sep):
            pieces.append(Piece(PieceKind.TEXT, template.sep))
            text = text[len(template.sep) :]
    return [piece for piece in pieces if piece.kind is not PieceKind.TEXT or piece.text]


def _cut_question(text: str, template: PromptTemplate, end: str) -> tuple[str, str]:
    """The first question, with its system prompt and the template's words around both, and the rest."""
    before, after = template.around_input
    if after and text.endswith(after) and not (end and end in text.removesuffix(after)):
        # the last question: nothing is answered, whatever it says
        return text, ""
    before_system, after_system = template.around_system
    head = ""
    if before_system and text.startswith(before_system):
        system, found, rest = text.partition(after_system + before)
        if found and not (end and end in system.removeprefix(before_system)):
            head, text = system + found, rest
    if not head and text.startswith(before):
        head, text = before, text[len(before) :]
    question, found, rest = text.partition(after or BOUNDARY)
    return head + question + (found if after else ""), rest


def _with_pictures(text: str) -> list[Piece]:
    kinds = {IMAGE_TOKEN: PieceKind.IMAGE, VIDEO_PLACE: PieceKind.VIDEO}
    return [Piece(kinds[part]) if part in kinds else Piece(PieceKind.TEXT, part) for part in _PLACES.split(text)]

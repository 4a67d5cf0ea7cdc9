"""Prompt templates: how turns become the pieces of text that are tokenised.

Training, chat and evaluation call the same `PromptTemplate.render`, so a prompt is always the beginning of
what was trained.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xtuner.constants import IMAGE_TOKEN
from xtuner.errors import XTunerError, nearest
from xtuner.registry import build, is_node


class PieceKind(enum.Enum):
    """What stands at one place of a rendered conversation."""

    TEXT = "text"
    """Tokenised on its own, without special tokens added."""
    IMAGE = "image"
    """Place of one picture: `IMAGE_TOKEN_INDEX`."""
    BOS = "bos"
    """The tokenizer's bos token, where it has one and the text that follows does not begin with it."""
    EOS = "eos"
    """The tokenizer's eos token."""


@dataclass(frozen=True)
class Piece:
    """One piece of a rendered conversation; `supervised` pieces carry loss."""

    kind: PieceKind
    text: str = ""
    supervised: bool = False


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        input: the user's text, pictures as ``<image>``.
        output: the assistant's text; None only in the last turn of a prompt to be answered.
        system: system prompt that stands before this turn, or "".
    """

    input: str
    output: str | None = None
    system: str = ""


@dataclass(frozen=True)
class PromptTemplate:
    """Words around the turns of a conversation.

    A turn is rendered as ``[bos] system input | answer suffix-or-eos | sep``: bos stands first and again
    after every eos, the answer and what ends it carry loss, the separator does not.

    Args:
        name: for messages and fingerprints.
        input: text before the answer, with ``{input}`` where the user's words stand.
        answer_suffix: text that ends the answer, with loss, in place of the tokenizer's eos; "" = end with
            eos.
        sep: text after a finished turn, without loss.
        system: text before a turn that has a system prompt, with ``{system}``.
        stop_words: texts at which generation stops, besides eos.
    """

    name: str
    input: str
    answer_suffix: str = ""
    sep: str = ""
    system: str = "{system}\n"
    stop_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_words", tuple(self.stop_words))
        if self.input.count("{input}") != 1 or self.system.count("{system}") != 1:
            raise XTunerError(
                f"prompt template '{self.name}': 'input' must hold {{input}} once, 'system' {{system}} once; "
                f"found input={self.input!r}, system={self.system!r}."
            )

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> list[Piece]:
        """Returns the pieces of a conversation, in order.

        Args:
            turns: at least one.
            add_generation_prompt: the last turn is still to be answered (its `output` is None): end where
                the answer starts.

        Raises:
            XTunerError: an answer is missing, or given where it is to be generated.
        """
        if not turns:
            raise XTunerError("a conversation without turns cannot be rendered: pass at least one question.")
        pieces: list[Piece] = []
        after_eos = True
        for number, turn in enumerate(turns):
            open_turn = add_generation_prompt and number == len(turns) - 1
            if (turn.output is None) != open_turn:
                found = "has no answer" if turn.output is None else "is already answered"
                raise XTunerError(
                    f"turn {number + 1} of {len(turns)} {found}: only the last turn of a prompt may lack one."
                )
            if after_eos:
                pieces.append(Piece(PieceKind.BOS))
            pieces += _split_pictures(self._before_answer(turn))
            if turn.output is None:
                break
            pieces.append(Piece(PieceKind.TEXT, turn.output + self.answer_suffix, supervised=True))
            after_eos = not self.answer_suffix
            if after_eos:
                pieces.append(Piece(PieceKind.EOS, supervised=True))
            pieces.append(Piece(PieceKind.TEXT, self.sep))
        return [piece for piece in pieces if piece.kind is not PieceKind.TEXT or piece.text]

    def _before_answer(self, turn: Turn) -> str:
        # replace, not str.format: a template may hold braces of its own
        system = self.system.replace("{system}", turn.system) if turn.system else ""
        return system + self.input.replace("{input}", turn.input)


def _split_pictures(text: str) -> list[Piece]:
    """Cuts `text` at every ``<image>``."""
    pieces: list[Piece] = []
    for number, part in enumerate(text.split(IMAGE_TOKEN)):
        if number:
            pieces.append(Piece(PieceKind.IMAGE))
        pieces.append(Piece(PieceKind.TEXT, part))
    return pieces


_CHATML = PromptTemplate(
    name="chatml",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    input="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    answer_suffix="<|im_end|>",
    sep="\n",
    stop_words=("<|im_end|>",),
)

TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(name="default", system="<|System|>:{system}\n", input="<|User|>:{input}\n<|Bot|>:", sep="\n"),
        PromptTemplate(name="plain", input="{input}", sep="\n"),
        PromptTemplate(
            name="vicuna",
            system="A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. {system}\n ",
            input="USER: {input} ASSISTANT:",
            sep="\n",
        ),
        PromptTemplate(
            name="llama3_chat",
            system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
            input="<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            answer_suffix="<|eot_id|>",
            stop_words=("<|eot_id|>",),
        ),
        PromptTemplate(
            name="phi3_chat",
            system="<|system|>{system}<|end|>\n",
            input="<|user|>{input}<|end|>\n<|assistant|>\n",
            answer_suffix="<|end|>",
            sep="\n",
            stop_words=("<|end|>",),
        ),
        _CHATML,
        PromptTemplate(
            name="qwen_chat",
            system=_CHATML.system,
            input=_CHATML.input,
            answer_suffix=_CHATML.answer_suffix,
            sep=_CHATML.sep,
            stop_words=("<|im_end|>", "<|endoftext|>"),
        ),
        PromptTemplate(name="mistral", system="[INST] {system} [/INST]\n", input="[INST] {input} [/INST]", sep="\n"),
    )
}
"""The shipped templates by name."""


def get_template(template: str | PromptTemplate | Mapping[str, Any]) -> PromptTemplate:
    """Returns the template of that name, or the one that a config node (``dict(type=PromptTemplate, ...)``)
    describes.

    Raises:
        XTunerError: there is no template of that name.
    """
    if isinstance(template, PromptTemplate):
        return template
    if is_node(template):
        return get_template(build(template))
    if isinstance(template, str) and template in TEMPLATES:
        return TEMPLATES[template]
    raise XTunerError(
        f"unknown prompt template {template!r}.{nearest(str(template), TEMPLATES)} "
        f"Known: {', '.join(sorted(TEMPLATES))}; "
        "or use dict(type=PromptTemplate, name=..., input='...{input}...')."
    )

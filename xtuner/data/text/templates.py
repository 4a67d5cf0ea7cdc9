"""Prompt templates: how turns become the pieces of text that are tokenised.

Training, chat and evaluation call the same `PromptTemplate.render`, so a prompt is always the beginning of
what was trained.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

from xtuner.constants import IMAGE_TOKEN, VIDEO_TOKEN
from xtuner.errors import XTunerError, perhaps
from xtuner.registry import build, is_node


class PieceKind(enum.Enum):
    """What stands at one place of a rendered conversation."""

    TEXT = "text"
    """Tokenised on its own, without special tokens added."""
    IMAGE = "image"
    """Place of one picture: `IMAGE_TOKEN_INDEX`."""
    FRAME = "frame"
    """Place of one frame of a video: `FRAME_TOKEN_INDEX`."""
    VIDEO = "video"
    """Place of a video whose frames are not known yet: `VIDEO_TOKEN_INDEX`; of rendered conversations alone."""
    BOS = "bos"
    """The tokenizer's bos token, where it has one and the text that follows does not begin with it."""
    EOS = "eos"
    """The tokenizer's eos token."""

    # members are compared by identity; Enum's own hash is a Python function, slow where each piece is looked up
    __hash__ = object.__hash__


@dataclass(slots=True)
class Piece:
    """One piece of a rendered conversation.

    Attributes:
        kind: what it is.
        text: of a TEXT.
        supervised: it carries loss.
        words: `text` cut into words of the template and of others by turns, the template's first; empty = all of it is
            the template's.
    """

    kind: PieceKind
    text: str = ""
    supervised: bool = False
    words: tuple[str, ...] = field(default=(), compare=False)


# the same in every conversation, so made once
_BOS, _PICTURE, _EOS = Piece(PieceKind.BOS), Piece(PieceKind.IMAGE), Piece(PieceKind.EOS, supervised=True)
_FRAME = Piece(PieceKind.FRAME)
_EOS_WITHOUT_LOSS = Piece(PieceKind.EOS)


class Place(enum.Enum):
    """What can stand in a question beside text."""

    PICTURE = IMAGE_TOKEN
    VIDEO = VIDEO_TOKEN
    """Of a video whose frames are not known yet; `xtuner.data.text.turns.with_frames` puts their places there."""
    FRAME = "<frame>"
    """Of a frame of a video: a picture. No text stands for it."""


Words: TypeAlias = "str | tuple[str | Place, ...]"


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        input: the user's words. In a string each ``<image>`` is the place of a picture; in a tuple only
            `Place.PICTURE` is, and ``<image>`` is text; places of videos and frames stand in tuples alone.
            `user_words` makes whichever is needed.
        output: the assistant's text; None only in the last turn of a prompt to be answered.
        system: system prompt that stands before this turn, or "".
        supervised: whether the answer carries loss.
    """

    input: Words
    output: str | None = None
    system: str = ""
    supervised: bool = True

    @property
    def parts(self) -> tuple[str | Place, ...]:
        """Texts and places of pictures and videos, in order."""
        return self.input if isinstance(self.input, tuple) else split_pictures(self.input)

    @property
    def num_pictures(self) -> int:
        """Places of pictures in the question, those of frames among them."""
        if isinstance(self.input, str):
            return self.input.count(IMAGE_TOKEN)
        return self.input.count(Place.PICTURE) + self.input.count(Place.FRAME)

    @property
    def num_videos(self) -> int:
        """Places of videos whose frames are not known yet."""
        return 0 if isinstance(self.input, str) else self.input.count(Place.VIDEO)


def split_pictures(text: str, place: Place = Place.PICTURE) -> tuple[str | Place, ...]:
    """Returns texts and places, one for each ``<image>`` (or the word of another `place`) of `text`; no text is
    empty.
    """
    if place.value not in text:
        return (text,) if text else ()
    parts: list[str | Place] = []
    for number, part in enumerate(text.split(place.value)):
        if number:
            parts.append(place)
        if part:
            parts.append(part)
    return tuple(parts)


def user_words(parts: Sequence[str | Place]) -> Words:
    """Returns `parts` as `Turn.input` takes them: a string, unless a text holds ``<image>``, or a video or a frame
    stands there.
    """
    joined: list[str | Place] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    if any(IMAGE_TOKEN in part if isinstance(part, str) else part is not Place.PICTURE for part in joined):
        return tuple(joined)
    return "".join(part if isinstance(part, str) else IMAGE_TOKEN for part in joined)


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
        default_system: system prompt of a conversation that has none of its own before its first turn.
    """

    name: str
    input: str
    answer_suffix: str = ""
    sep: str = ""
    system: str = "{system}\n"
    stop_words: tuple[str, ...] = ()
    default_system: str = ""

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
            if number == 0 and not turn.system and self.default_system:
                turn = replace(turn, system=self.default_system)
            open_turn = add_generation_prompt and number == len(turns) - 1
            if (turn.output is None) != open_turn:
                found = "has no answer" if turn.output is None else "is already answered"
                raise XTunerError(
                    f"turn {number + 1} of {len(turns)} {found}: only the last turn of a prompt may lack one."
                )
            if after_eos:
                pieces.append(_BOS)
            pieces += self._question(turn)
            if turn.output is None:
                break
            if answer := turn.output + self.answer_suffix:
                pieces.append(Piece(PieceKind.TEXT, answer, turn.supervised, ("", turn.output, self.answer_suffix)))
            after_eos = not self.answer_suffix
            if after_eos:
                pieces.append(_EOS if turn.supervised else _EOS_WITHOUT_LOSS)
            if self.sep:
                pieces.append(self._sep_piece)
        return pieces

    def _question(self, turn: Turn) -> Iterator[Piece]:
        before, after = self.around_input
        if type(turn.input) is str and turn.input and not turn.system and IMAGE_TOKEN not in turn.input:
            # what most turns are
            yield Piece(PieceKind.TEXT, before + turn.input + after, False, (before, turn.input, after))
            return
        words: tuple[str, ...] = (before,)
        if turn.system:
            before_system, after_system = self.around_system
            words = (before_system, turn.system, after_system + before)
        for part in turn.parts:
            if isinstance(part, str):
                words = (*words, part, "")
            elif part is Place.VIDEO:
                raise XTunerError("a video stands in the conversation without its frames: give the frames with it.")
            else:
                if text := "".join(words):
                    yield Piece(PieceKind.TEXT, text, False, words)
                yield _PICTURE if part is Place.PICTURE else _FRAME
                words = ("",)
        words = (*words[:-1], words[-1] + after)
        if text := "".join(words):
            yield Piece(PieceKind.TEXT, text, False, words)

    @cached_property
    def _sep_piece(self) -> Piece:
        return Piece(PieceKind.TEXT, self.sep)

    @cached_property
    def around_input(self) -> tuple[str, str]:
        """What stands before and after the user's words."""
        before, after = self.input.split("{input}")
        return before, after

    @cached_property
    def around_system(self) -> tuple[str, str]:
        """What stands before and after a system prompt."""
        before, after = self.system.split("{system}")
        return before, after

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """The template's words that look like tokens (``<|end|>``, ``[INST]``), by which turns could be forged."""
        texts = (self.input, self.system, self.answer_suffix, self.sep, *self.stop_words)
        return tuple(dict.fromkeys(marker for text in texts for marker in _MARKER.findall(text)))


_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


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
        PromptTemplate(name="bare", input="{input}", sep="\n"),
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
    if template == "auto":
        raise XTunerError(
            "prompt_template='auto' is made from the LLM's tokenizer: set it for the run, not for a source."
        )
    if template == "plain":
        raise XTunerError(
            "the prompt template 'plain' is called 'bare': the words alone; XTuner's 'plain' is another one: "
            "dict(type=PromptTemplate, name='plain', input='USER: {input} ASSISTANT:')."
        )
    raise XTunerError(
        f"unknown prompt template {template!r}{perhaps(str(template), TEMPLATES)}: expected "
        f"{', '.join(sorted(TEMPLATES))}, or dict(type=PromptTemplate, name=..., input='...{{input}}...')."
    )

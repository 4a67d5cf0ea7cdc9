"""A prompt template made from a tokenizer's chat template, by rendering conversations of known words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import PieceKind, PromptTemplate, Turn
from xtuner.errors import XTunerError, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTIONS, _ANSWERS, _SYSTEM = ("Qone", "Qtwo"), ("Aone", "Atwo"), "Sone"


class NoTemplate(XTunerError):
    """A chat template that cannot be written as a `PromptTemplate`; the message says why."""


@dataclass(frozen=True)
class _Renderings:
    """What the chat template makes of a question, an answered one, a second question, both answered."""

    asked: str
    answered: str
    asked_again: str
    answered_again: str
    with_system: str | None
    """Of a system prompt and a question; None where the chat template takes no system prompt."""


def own_rendering(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> str:
    """Returns what the tokenizer's own chat template makes of messages.

    Raises:
        NoTemplate: it has none, or its template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise NoTemplate("the tokenizer has no chat template")
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)
    # jinja2's errors, those that templates raise, and whatever their code runs into
    except Exception as error:
        raise NoTemplate(
            f"its chat template cannot be rendered: {str(error).strip() or type(error).__name__}"
        ) from error


def messages_of(turns: Sequence[Turn], picture: str = IMAGE_TOKEN) -> list[dict[str, str]]:
    """Returns turns as messages of roles system, user and assistant; `picture` stands at the place of each picture."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages += [{"role": "system", "content": turn.system}] if turn.system else []
        words = (part if isinstance(part, str) else picture for part in turn.parts)
        messages.append({"role": "user", "content": "".join(words)})
        messages += [{"role": "assistant", "content": turn.output}] if turn.output is not None else []
    return messages


def as_text(template: PromptTemplate, turns: Sequence[Turn], bos: str, eos: str) -> str:
    """Returns a conversation as `template` renders it, special tokens written out; it is open if its last turn is."""
    text = ""
    pending = ""
    for piece in template.render(turns, add_generation_prompt=turns[-1].output is None):
        words = {PieceKind.BOS: bos, PieceKind.EOS: eos}.get(piece.kind, piece.text)
        if piece.kind is PieceKind.BOS:
            pending = words
            continue
        text += ("" if words.startswith(pending) else pending) + words
        pending = ""
    return text


def probe_template(tokenizer: PreTrainedTokenizerBase, name: str = "auto") -> PromptTemplate:
    """Makes a template that renders as the tokenizer's own chat template does, its default system prompt included.

    bos stands first even where the chat template leaves it out, as with every template.

    Args:
        tokenizer: with a chat template.
        name: of the template.

    Raises:
        NoTemplate: the chat template is not of the form of a `PromptTemplate`, with the reason.
    """
    bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    found = _render_all(tokenizer)
    head, after = _cut(found.asked, _QUESTIONS[0], "the question")
    opened = found.asked + _ANSWERS[0]
    if not found.asked_again.startswith(opened):
        raise NoTemplate("an answered question does not begin with the question as it is asked")
    between, after_again = _cut(found.asked_again[len(opened) :], _QUESTIONS[1], "the second question")
    ending = found.answered.removeprefix(opened)
    # some write the last answer in another way (Qwen3's <think>) or always open the next one (Llama 3)
    closed = found.answered.startswith(opened) and between.startswith(ending)
    if not closed:
        common = head if bos and bos in between else head.removeprefix(bos)
        ending = between[: len(between) - len(commonprefix([common[::-1], between[::-1]]))]
    if not ending.strip():
        raise NoTemplate("nothing marks the end of an answer")
    if after_again != after:
        raise NoTemplate("a second question is written in another way than the first")
    before = between[len(ending) :]
    suffix, sep = _split_ending(tokenizer, ending)
    # bos stands again after each eos; or it is a role's marker, with which every question begins
    again = bool(bos) and head == before and before.startswith(bos) and suffix == eos
    before = before[len(bos) :] if again else before
    if not head.endswith(before):
        raise NoTemplate("the second question begins with other words than the first")
    by_eos = suffix == eos and (again or not bos)
    alone = "" if bos and before.startswith(bos) else bos
    lead = head[: len(head) - len(before)].removeprefix(alone)
    system, default = _system_form(found.with_system, lead, before + _QUESTIONS[0] + after, alone)
    template = PromptTemplate(
        name=name,
        input=before + "{input}" + after,
        answer_suffix="" if by_eos else suffix,
        sep=sep,
        system=system,
        stop_words=() if by_eos else (suffix,),
        default_system=default,
    )
    _verify(template, found, closed, bos, eos)
    return template


def _render_all(tokenizer: PreTrainedTokenizerBase) -> _Renderings:
    turns = [Turn(question, answer) for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True)]
    messages = messages_of(turns)
    try:
        question = [{"role": "system", "content": _SYSTEM}, messages[0]]
        with_system = own_rendering(tokenizer, question, True)
    except NoTemplate:
        with_system = None
    return _Renderings(
        asked=own_rendering(tokenizer, messages[:1], True),
        answered=own_rendering(tokenizer, messages[:2], False),
        asked_again=own_rendering(tokenizer, messages[:3], True),
        answered_again=own_rendering(tokenizer, messages, False),
        with_system=with_system if with_system and _SYSTEM in with_system else None,
    )


def _cut(text: str, word: str, what: str) -> tuple[str, str]:
    if text.count(word) != 1:
        raise NoTemplate(f"{what} appears {counted(text.count(word), 'times')} in its rendering")
    before, after = text.split(word)
    return before, after


def _split_ending(tokenizer: PreTrainedTokenizerBase, ending: str) -> tuple[str, str]:
    """What ends an answer, with loss, and what stands after it: up to the last special token, else to white space."""
    stops = [ending.rfind(token) + len(token) for token in tokenizer.all_special_tokens if token in ending]
    cut = max(stops) if stops else len(ending.rstrip())
    return ending[:cut], ending[cut:]


def _system_form(with_system: str | None, lead: str, question: str, bos: str) -> tuple[str, str]:
    """The template's ``system``, and the system prompt that stands there without being asked for."""
    plain = PromptTemplate.system
    if with_system is None:
        if lead:
            raise NoTemplate(f"{lead!r} stands before the first question and is no system prompt")
        return plain, ""
    start, rest = _cut(with_system, _SYSTEM, "the system prompt")
    if not rest.endswith(question):
        raise NoTemplate("its system prompt does not stand before the first question")
    end = rest[: len(rest) - len(question)]
    start = start.removeprefix(bos)
    if not lead:
        return start + "{system}" + end, ""
    if not (lead.startswith(start) and lead.endswith(end) and len(lead) > len(start) + len(end)):
        raise NoTemplate(f"{lead!r} stands before the first question and is no system prompt")
    return start + "{system}" + end, lead[len(start) : len(lead) - len(end)]


def _verify(template: PromptTemplate, found: _Renderings, closed: bool, bos: str, eos: str) -> None:
    """Renders all probes anew, those that end with an answer where this ends as the others do."""
    first, second = (Turn(q, a) for q, a in zip(_QUESTIONS, _ANSWERS, strict=True))
    open_first, open_second = Turn(_QUESTIONS[0]), Turn(_QUESTIONS[1])
    probes = [
        ([open_first], found.asked),
        ([first, open_second], found.asked_again),
    ]
    if closed:
        probes += [([first], found.answered), ([first, second], found.answered_again)]
    if found.with_system is not None:
        probes.append(([Turn(_QUESTIONS[0], None, _SYSTEM)], found.with_system))
    for turns, wanted in probes:
        ours = as_text(template, turns, bos, eos)
        if wanted not in (ours, ours.removeprefix(bos)):
            raise NoTemplate(f"it renders {wanted!r}, which no template of this form does (nearest: {ours!r})")

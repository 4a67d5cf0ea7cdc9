"""The template of a run, and how it differs from the chat format that the language model was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from xtuner.data.text.probing import NoTemplate, messages_of, own_rendering, probe_template
from xtuner.data.text.templates import TEMPLATES, Place, PromptTemplate, Turn, get_template
from xtuner.data.text.tokenizer_files import backend_ids
from xtuner.data.text.tokenizing import encode_prompt
from xtuner.errors import XTunerError
from xtuner.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONVERSATION = (Turn("What is in the picture?", "A red bus."), Turn("And what else?"))
_CONTEXT = 24
"""Characters told on either side of a difference."""
_PICTURE = "\U000f8a11\U000fc3d7\U000f1e59"
"""Place of a picture in what a chat template renders: private characters, which no text holds."""


def build_template(
    template: str | PromptTemplate | Mapping[str, Any], tokenizer: Any = None, system_prompt: str | None = None
) -> PromptTemplate:
    """Returns the template of a run.

    Args:
        template: a shipped one's name, a template, its config node, or "auto": made from the tokenizer's chat template.
        tokenizer: the language model's, or its config node; needed for "auto" only.
        system_prompt: default system prompt; "" = none, None = the template's own, which only "auto" may have.

    Raises:
        XTunerError: there is no such template, or none can be made from the chat template.
    """
    if template == "auto" and tokenizer is not None:
        built = build(tokenizer)
        try:
            found = probe_template(built)
        except NoTemplate as error:
            raise XTunerError(
                f"prompt_template='auto': no template can be made for '{built.name_or_path}': {error}; "
                f"choose one of {', '.join(sorted(TEMPLATES))}, or give dict(type=PromptTemplate, ...)."
            ) from error
    else:
        found = get_template(template)
    return found if system_prompt is None else replace(found, default_system=system_prompt)


def misfits(template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns a sentence for each way in which `template` differs from what the tokenizer's model was trained with.

    Compared are the ids of a conversation of two questions with those of the tokenizer's own chat template. Empty where
    they are equal, or where nothing is known of the model.
    """
    encode = backend_ids(tokenizer)
    # words like <|user|>, not [INST], which Mistral's models read as pieces
    cut = [marker for marker in template.markers if marker.startswith("<") and len(encode(marker)) > 1]
    problems = []
    if cut:
        problems.append(f"prompt template '{template.name}': the tokenizer cuts its marker {cut[0]} into pieces")
    try:
        wanted = own_ids(_CONVERSATION, tokenizer)
    except NoTemplate:
        return problems
    ours = encode_prompt(_CONVERSATION, tokenizer, template)
    if wanted != ours:
        told = _difference(tokenizer, ours, wanted) + "." + _better(template, tokenizer, wanted)
        problems.append(f"prompt template '{template.name}': {told}")
    return problems


def own_ids(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that the tokenizer's own chat template gives a conversation, open where its last turn is.

    `IMAGE_TOKEN_INDEX` (of frames `FRAME_TOKEN_INDEX`) stands at the place of each picture. What a text holds becomes
    whatever it becomes there.

    Raises:
        NoTemplate: it has none, or its template refuses the conversation.
    """
    encode = backend_ids(tokenizer)
    text = own_rendering(tokenizer, messages_of(turns, _PICTURE), turns[-1].output is None)
    places = [part for turn in turns for part in turn.parts if not isinstance(part, str)]
    first, *others = text.split(_PICTURE)
    ids = encode(first) if first else []
    # a template may drop or repeat a picture
    for part, place in zip_longest(others, places[: len(others)], fillvalue=Place.PICTURE):
        ids.append(FRAME_TOKEN_INDEX if place is Place.FRAME else IMAGE_TOKEN_INDEX)
        ids += encode(str(part)) if part else []
    return ids


def _difference(tokenizer: PreTrainedTokenizerBase, ours: list[int], wanted: list[int]) -> str:
    same = next((n for n, (a, b) in enumerate(zip(ours, wanted, strict=False)) if a != b), min(len(ours), len(wanted)))
    here, there = (tokenizer.decode(ids[same:])[:_CONTEXT] for ids in (ours, wanted))
    before = tokenizer.decode(ours[:same])[-_CONTEXT:]
    return f"after {before!r} it writes {here!r}, the LLM's own chat format {there!r} (token {same})"


def _better(template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, wanted: list[int]) -> str:
    """The shipped template whose ids are most like those wanted, or "auto"."""
    likeness = {
        other.name: SequenceMatcher(
            None, encode_prompt(_CONVERSATION, tokenizer, other), wanted, autojunk=False
        ).ratio()
        for other in TEMPLATES.values()
    }
    best = max(likeness, key=likeness.__getitem__)
    told = "" if likeness[best] <= likeness.get(template.name, 0.0) else f" The nearest shipped template is '{best}'."
    try:
        made = probe_template(tokenizer)
    except NoTemplate:
        return told
    return told if made == replace(template, name=made.name) else f"{told} prompt_template='auto' takes the LLM's own."

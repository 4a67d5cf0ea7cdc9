"""A prompt template as Jinja, for servers and tokenizers that render messages themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence

from xtuner.constants import IMAGE_TOKEN
from xtuner.data.records.messages import IMAGE_PARTS, ROLES, TEXT_PARTS, VIDEO_PARTS
from xtuner.data.text.rendered import BOUNDARY, VIDEO_PLACE
from xtuner.data.text.templates import PromptTemplate
from xtuner.data.text.turns import PARTS_JOINT

# vLLM takes a template that loops over message.content itself as one that wants parts, not joined texts
_MACROS = """
{%- macro refuse(word) -%}
  {{ raise_exception('The text holds ' + word + ', and a rendered string cannot show who wrote it: '
     + 'use apply_chat_template with tokenize=True.') }}
{%- endmacro -%}
{%- macro checked(text) -%}
  {%- for word in SPECIAL if word in text -%}{{ refuse(word) }}{%- endfor -%}
  {{ text }}
{%- endmacro -%}
{%- macro words(message) -%}
  {%- set content = message.content -%}
  {%- if content is string -%}
    {{ checked(content) }}
  {%- elif content is mapping or content is not iterable -%}
    {{ raise_exception('The content of a message is neither a text nor a list of parts.') }}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if not loop.first -%}{{ JOINT }}{%- endif -%}
      {%- if part.type in TEXTS and part.text is string -%}
        {{ checked(part.text) }}
      {%- elif part.type in IMAGES and message.role in USERS -%}
        {{ IMAGE }}
      {%- elif part.type in VIDEOS and message.role in USERS -%}
        {{ VIDEO }}
      {%- else -%}
        {{ raise_exception('A message of ' + message.role + ' has a part that cannot be read: ' + part.type) }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro asked(message) -%}
  {%- set text = words(message) -%}
  {%- if text.split(IMAGE) | length + text.split(VIDEO) | length == 3 -%}
    {%- set place = IMAGE if IMAGE in text else VIDEO -%}
    {{ (place + NEWLINE + (text | replace(place, '') | trim)) | trim }}
  {%- else -%}
    {{ text }}
  {%- endif -%}
{%- endmacro -%}
{%- macro opened(state) -%}
  {%- set said = state.system or ('' if state.is_answered else DEFAULT_SYSTEM) -%}
  {%- set system = SYSTEM_BEFORE + said + SYSTEM_AFTER if said else '' -%}
  {%- set text = system + BEFORE + state.question + AFTER -%}
  {%- set own = [SYSTEM_BEFORE, SYSTEM_AFTER + BEFORE, AFTER] if said else [BEFORE, AFTER] -%}
  {%- for word in SPECIAL if word in text -%}
    {%- set count = namespace(own=state.pictures if word == IMAGE else state.videos if word == VIDEO else 0) -%}
    {%- for piece in own -%}
      {%- set count.own = count.own + piece.split(word) | length - 1 -%}
    {%- endfor -%}
    {%- if text.split(word) | length - 1 != count.own -%}{{ refuse(word) }}{%- endif -%}
  {%- endfor -%}
  {{ BOS + text if state.bos and not (BOS and text.startswith(BOS)) else text }}
{%- endmacro -%}
"""
_MESSAGES = """
{%- set state = namespace(
  bos=true, system='', has_system=false, question='', pictures=0, videos=0,
  is_asked=false, is_started=false, is_answered=false
) -%}
{%- for message in messages -%}
  {%- if message.role in SYSTEMS -%}
    {%- set state.system = (state.system + NEWLINE if state.has_system else '') + words(message) -%}
    {%- set state.has_system = true -%}
  {%- elif message.role in USERS -%}
    {%- set text = asked(message) -%}
    {%- set state.question = state.question + text -%}
    {%- set state.pictures = state.pictures + text.split(IMAGE) | length - 1 -%}
    {%- set state.videos = state.videos + text.split(VIDEO) | length - 1 -%}
    {%- set state.is_asked = true -%}
    {%- set state.is_started = true -%}
  {%- elif message.role not in ASSISTANTS -%}
    {{ raise_exception('A message has the role ' + message.role + ': expected system, user or assistant.') }}
  {%- elif state.is_started -%}
    {%- set turn = opened(state) -%}
    {%- if AFTER and ((state.question + AFTER).split(AFTER)[0] != state.question or AFTER in state.system) -%}
      {{ raise_exception('The text holds ' + AFTER + ', by which a rendered string shows where an answer begins: '
         + 'use apply_chat_template with tokenize=True.') }}
    {%- endif -%}
    {{ turn + BOUNDARY + words(message) + END + SEP }}
    {%- set state.bos = BOS_AGAIN -%}
    {%- set state.is_answered = true -%}
    {%- set state.system = '' -%}
    {%- set state.has_system = false -%}
    {%- set state.question = '' -%}
    {%- set state.pictures = 0 -%}
    {%- set state.videos = 0 -%}
    {%- set state.is_asked = false -%}
  {%- endif -%}
{%- endfor -%}
{%- if state.is_asked -%}
  {{ opened(state) }}
{%- elif not state.is_started -%}
  {{ raise_exception('There is no user message to answer: send one.') }}
{%- elif add_generation_prompt -%}
  {{ raise_exception('The messages end with an answer: add a question, or let it be continued.') }}
{%- endif -%}
"""


def to_jinja(template: PromptTemplate, bos: str | None, eos: str | None, special: Sequence[str] = ()) -> str:
    """Returns the Jinja template that renders messages as `read_turns` and `PromptTemplate.render` do, special tokens
    as text.

    It raises where the string could not be told apart again: where a text holds a special token or ``<image>``, or an
    answered question the template's own words; and where there is no question, or none is left for an answer that is
    asked for. A template without words after the question has `BOUNDARY` there.

    Args:
        template: words around the turns.
        bos: the tokenizer's bos token, which stands first and after every eos, but not before a text that begins with
            it; None = it has none.
        eos: the tokenizer's eos token.
        special: what may not stand in a text, beside these.
    """
    before, after = template.around_input
    before_system, after_system = template.around_system
    end = template.answer_suffix or eos or ""
    boundary = "" if after else BOUNDARY
    words = {IMAGE_TOKEN, VIDEO_PLACE, bos, end, eos, boundary, *special} - {None, ""}
    constants = {
        "BOS": bos or "",
        "BEFORE": before,
        "AFTER": after,
        "SYSTEM_BEFORE": before_system,
        "SYSTEM_AFTER": after_system,
        "END": end,
        "SEP": template.sep,
        "DEFAULT_SYSTEM": template.default_system,
        "BOUNDARY": boundary,
        "IMAGE": IMAGE_TOKEN,
        "VIDEO": VIDEO_PLACE,
        "NEWLINE": "\n",
        "JOINT": PARTS_JOINT,
        "SPECIAL": sorted(map(str, words)),
        "TEXTS": TEXT_PARTS,
        "IMAGES": IMAGE_PARTS,
        "VIDEOS": VIDEO_PARTS,
        "SYSTEMS": _named("system"),
        "USERS": _named("user"),
        "ASSISTANTS": _named("assistant"),
    }
    head = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in constants.items())
    # bos stands again after an eos only
    head += f"{{%- set BOS_AGAIN = {'false' if template.answer_suffix else 'true'} -%}}"
    return head + _without_indents(_MACROS + _MESSAGES)


def _named(role: str) -> list[str]:
    return [name for name, meaning in ROLES.items() if meaning == role]


def _without_indents(text: str) -> str:
    """The template on one line, so that no white space of its layout can be taken for text."""
    return "".join(line.strip() for line in text.splitlines())

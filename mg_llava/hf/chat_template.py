"""A prompt template as Jinja, for servers and tokenizers that render messages themselves."""

from __future__ import annotations

import json

from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import PromptTemplate

_MACROS = (
    "{%- macro words(content) -%}"
    "{%- if content is string -%}{{ content | trim }}"
    "{%- else -%}"
    "{%- for part in content if part.type in ['image', 'image_url', 'input_image'] -%}"
    "{{ IMAGE + NEWLINE }}{%- endfor -%}"
    "{%- set texts = content | selectattr('text', 'defined') | map(attribute='text') | list -%}"
    "{{ texts | join(NEWLINE) | trim }}"
    "{%- endif -%}{%- endmacro -%}"
)
_OPENED = (
    "{%- macro opened(text) -%}"
    "{{ BOS + text if state.bos and not (BOS and text.startswith(BOS)) else text }}"
    "{%- endmacro -%}"
)


def to_jinja(template: PromptTemplate, bos: str | None, eos: str | None) -> str:
    """Returns the Jinja template that renders messages as `PromptTemplate.render` renders turns, special tokens as
    text.

    Args:
        template: words around the turns.
        bos: the tokenizer's bos token, which stands first and after every eos, but not before a text that begins with
            it; None = it has none.
        eos: the tokenizer's eos token.
    """
    before, after = template.input.split("{input}")
    before_system, after_system = template.system.split("{system}")
    end = json.dumps(template.answer_suffix or eos or "")
    # bos stands again after an eos only
    again = json.dumps(not template.answer_suffix)
    text = {
        "BOS": json.dumps(bos or ""),
        "BEFORE": json.dumps(before),
        "AFTER": json.dumps(after),
        "SYSTEM_BEFORE": json.dumps(before_system),
        "SYSTEM_AFTER": json.dumps(after_system),
        "SEP": json.dumps(template.sep),
    }
    head = "".join(f"{{%- set {name} = {value} -%}}" for name, value in text.items())
    constants = f"{{%- set IMAGE = {json.dumps(IMAGE_TOKEN)} -%}}{{%- set NEWLINE = {json.dumps(chr(10))} -%}}"
    return (
        constants
        + _MACROS
        + head
        + "{%- set state = namespace(bos=true) -%}"
        + _OPENED
        + "{%- for message in messages -%}"
        + "{%- if message.role in ['system', 'developer'] -%}"
        + "{{ opened(SYSTEM_BEFORE + words(message.content) + SYSTEM_AFTER) }}{%- set state.bos = false -%}"
        + "{%- elif message.role == 'user' -%}"
        + "{{ opened(BEFORE + words(message.content) + AFTER) }}{%- set state.bos = false -%}"
        + "{%- else -%}"
        + f"{{{{ words(message.content) + {end} + SEP }}}}"
        + f"{{%- set state.bos = {again} -%}}"
        + "{%- endif -%}"
        + "{%- endfor -%}"
    )

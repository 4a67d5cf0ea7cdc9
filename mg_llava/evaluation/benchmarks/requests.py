"""The sentence after a question that says how to answer, by the name of whose wording it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from xtuner.errors import XTunerError

SHORT_ANSWER_REQUEST = "Answer the question using a single word or phrase."
LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
CHINESE_LETTER_REQUEST = "请直接回答选项字母。"
OWN = "own"
"""Name of a wording that a config gives as a sentence."""

Requests = Mapping[str, str]
"""Sentences by name, the default first; "" asks the question as the file has it."""

AS_IN_FILE: Requests = {"file": ""}
LLAVA_FILE: Requests = {"file": "", "original": "", "llava": "", "vlmevalkit": SHORT_ANSWER_REQUEST}
"""For question files that LLaVA made: the request stands in the text already."""
SHORT_ANSWER: Requests = dict.fromkeys(("original", "llava", "vlmevalkit", "lmms-eval"), SHORT_ANSWER_REQUEST)
VIZ_WIZ_REQUEST = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT_ANSWER_REQUEST}"
VIZ_WIZ: Requests = {
    **dict.fromkeys(("original", "llava", "lmms-eval"), VIZ_WIZ_REQUEST),
    "vlmevalkit": SHORT_ANSWER_REQUEST,
}
CHART: Requests = {**SHORT_ANSWER, "lmms-eval": "Answer the question with a single word."}
LETTER: Requests = {
    **dict.fromkeys(("original", "llava", "lmms-eval"), LETTER_REQUEST),
    "vlmevalkit": "Please select the correct answer from the options above.",
}
POPE: Requests = {
    "original": "Please answer the question with yes or no.",
    "llava": SHORT_ANSWER_REQUEST,
    "lmms-eval": SHORT_ANSWER_REQUEST,
    "vlmevalkit": "Please answer yes or no.",
}
MME: Requests = {
    "original": "Please answer the question only a single word yes or no.",
    "llava": SHORT_ANSWER_REQUEST,
    "for_llava_prompt": SHORT_ANSWER_REQUEST,
    "lmms-eval": SHORT_ANSWER_REQUEST,
    "vlmevalkit": "Please answer yes or no.",
}
"""In place of the "Please answer yes or no." that MME's questions end with."""
HALLUSION: Requests = {
    "original": "Please answer the question with yes or no.",
    "llava": SHORT_ANSWER_REQUEST,
    "vlmevalkit": "",
    "lmms-eval": "",
}

BOX: Requests = {"llava": "Please provide the bounding box coordinate of the region this sentence describes:"}
"""In front of the phrase."""


def find_request(request: str | None, requests: Requests, benchmark: str) -> tuple[str, str]:
    """Returns the name and the sentence of a wording.

    Args:
        request: a name of `requests`, a sentence of one's own, or None for the default.
        requests: of the kind of benchmark.
        benchmark: its name, for the message.

    Raises:
        XTunerError: `request` is a single word that names no wording.
    """
    name = next(iter(requests)) if request is None else request
    if name in requests:
        return name, requests[name]
    if re.fullmatch(r"[\w-]*", name, re.ASCII):
        raise XTunerError(
            f"benchmark '{benchmark}': request is {name!r}, expected one of {', '.join(requests)}, or a whole sentence."
        )
    return OWN, name

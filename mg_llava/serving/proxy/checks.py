"""Whether a vLLM server is the one for a folder: by the names it serves, and by the ids that it makes of a question."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.proxy.prompts import PromptSender
from mg_llava.serving.proxy.upstream import Upstream
from xtuner.errors import XTunerError

_SIDE = 32
_BOXES = [[2, 3, 20, 25]]
_QUESTION = "What is this?"


def find_model(upstream: Upstream, folder: Path, named: str | None = None) -> tuple[str, int]:
    """Returns how a server calls the model of a folder, and most tokens of prompt and answer there.

    Args:
        upstream: the server.
        folder: exported; its name is looked for.
        named: what the server calls it, where that is another name.

    Raises:
        XTunerError: the server does not answer, is no vLLM, or serves another model.
    """
    listed = _listed(upstream)
    wanted = {folder.resolve().name} if named is None else {named}
    for model in listed:
        names = {model["id"]} if named is not None else {Path(str(model.get(key))).name for key in ("id", "root")}
        if names & wanted:
            return str(model["id"]), int(model["max_model_len"])
    served = ", ".join(repr(model["id"]) for model in listed) or "nothing"
    raise XTunerError(
        f"{upstream.url} serves {served}, not {named or folder.resolve().name!r}: pass the folder that it serves, and "
        "--backend-model NAME where it has another name there."
    )


def check_reading(upstream: Upstream, model: str, sender: PromptSender) -> None:
    """Asks one question about a picture with a box, and compares the ids that the model was given.

    Raises:
        XTunerError: they are others than the folder's own, or the question is refused.
    """
    messages, expected = example(sender)
    body = {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    try:
        answer = upstream.post(body)
    except XTunerError as error:
        raise XTunerError(
            f"{upstream.url} does not answer a question about a picture with a box ({error}): expected vLLM with this "
            f"package, serving '{sender.folder}'."
        ) from error
    read = answer.get("prompt_token_ids") if isinstance(answer, dict) else None
    if not isinstance(read, list) or not _are_the_same(read, expected, sender.processor.image_token_id):
        count = len(read) if isinstance(read, list) else "no"
        raise XTunerError(
            f"{upstream.url} makes {count} ids of a question of which '{sender.folder}' makes {len(expected)}, or "
            "others: it serves another model, or a vLLM without this package."
        )


def example(sender: PromptSender) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns a question about a picture with a box, as it is sent, and the ids that the folder makes of it."""
    picture = Image.new("RGB", (_SIDE, _SIDE), (200, 30, 30))
    file = io.BytesIO()
    picture.save(file, "PNG")
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    found = as_picture_boxes(_BOXES)
    asked = read_messages([{"role": "user", "content": content}], lambda _: (picture, found))
    batch = sender.processor(images=[picture], text=sender.render(asked), boxes=[found])
    return sender.prepare(asked, [file.getvalue()]).messages, batch["input_ids"][0].tolist()


def _are_the_same(read: list[Any], expected: list[int], place: int) -> bool:
    """Whether ids are those of a folder; where a picture is any will do, since vLLM goes by positions there."""
    pairs = list(zip(read, expected, strict=True)) if len(read) == len(expected) else []
    return bool(pairs) and all(one == wanted or wanted == place for one, wanted in pairs)


def _listed(upstream: Upstream) -> list[dict[str, Any]]:
    content = upstream.get("/v1/models")
    try:
        listed = json.loads(content)["data"]
        # a list of objects, or nothing that is known
        return [{**model, "id": model["id"], "max_model_len": int(model["max_model_len"])} for model in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise XTunerError(
            f"{upstream.url}/v1/models is not as vLLM has it (it names no max_model_len): expected the address of a "
            "vLLM server."
        ) from error

"""Random and half-right inputs for every reader, and the readers: each may raise `XTunerError` and nothing else.

`tests/test_fuzz.py` runs a few hundred at each door, `abuse.py fuzz` a hundred thousand.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.store import BoxStore
from mg_llava.evaluation import (
    GQA,
    MME,
    DocVQA,
    HallusionBench,
    MathVista,
    MMVet,
    MultipleChoice,
    RefCOCO,
    ShortAnswer,
    TextVQA,
    YesNo,
)
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.inference.history import read_history
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.pictures.open import FORMATS, open_picture
from mg_llava.serving.requests.body import read_body
from mg_llava.serving.requests.fields import read_fields
from mg_llava.serving.requests.pictures import read_picture_url
from mg_llava.serving.requests.settings import Limits
from xtuner.config import load_config, parse_overrides
from xtuner.data.records.messages import picture_address
from xtuner.data.records.records import read_records
from xtuner.data.text.conversations import iter_conversations
from xtuner.errors import XTunerError

RECORD = {
    "id": "1",
    "image": "a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bus."}],
}
OPENAI = {
    "id": 7,
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "Yes.", "weight": 1},
    ],
}
BOXES = {"image": "a.jpg", "boxes": [[0, 0, 5.5, 9]], "labels": ["bus"], "scores": [0.9], "width": 10, "height": 10}
ROW = {
    "question_id": 1,
    "id": "1",
    "image": "a.jpg",
    "text": "Is it?",
    "question": "Is it?",
    "answer": "yes",
    "label": "yes",
    "sent": "a bus",
    "width": 10,
    "height": 10,
    "bbox": [0, 0, 5, 5],
    "question_type": "free_form",
    "answer_type": "integer",
    "choices": None,
    "imageId": "a",
}
TABLE_ROW = {
    "question": "Is it?", "hint": "", "A": "a", "B": "b", "answer": "A", "category": "x", "l2-category": "y",
    "figure_id": "1", "question_id": "0", "set_id": "1", "subcategory": "z", "visual_input": "1",
}  # fmt: skip
CONFIG = """lr = 1e-3
schedule = dict(lr='${lr}')
items = [1, 2]
model = dict(llm='a')
"""
REQUEST = {
    "model": "tiny",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}, "boxes": [[0, 0, 5, 5]]},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ],
    "temperature": 0.5,
    "top_p": 1,
    "max_tokens": 5,
    "stop": ["."],
    "seed": 1,
    "stream": False,
    "stream_options": None,
}
_LIMITS = Limits()
_BENCHMARKS: tuple[tuple[type[Benchmark], Any, bool], ...] = (
    (GQA, [ROW, ROW], True),
    (MMVet, [ROW, ROW], True),
    (RefCOCO, [ROW, ROW], True),
    (TextVQA, [ROW, ROW], True),
    (YesNo, [ROW, ROW], True),
    (ShortAnswer, [ROW, ROW], False),
    (MathVista, {"1": ROW}, False),
)
"""With the content of their files, and whether each row of it stands on a line of its own."""
_TABLES: tuple[type[Benchmark], ...] = (MultipleChoice, MME, HallusionBench, DocVQA)
_CELLS = (
    "", "nan", "0", "1", "-1", "7.0", "1e400", "9" * 5000, "[", "[]", "['a']", "['a', None]", "[" * 500, "None", "\x00",
    "<image 1>", "<image 9>", "Yes", "no", "../../etc/passwd", "/dev/zero", "[1, 2]", "{", "{'a': 1}", "A",
    "é", "🚌", "=1",
)  # fmt: skip
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "a", "\x00", "../../etc/passwd", "/dev/zero", "<image>", "\u2028", "🚌",
    [], {}, [[]], [None], {"a": {}}, [[1, 2, 3, 4]] * 3, float("inf"), float("nan"), "x" * 5000,
)  # fmt: skip
_TEXTS = (
    b"[" * 500,
    b"9" * 5000,
    b'"\\ud83d"',
    b'{"a":1,"a":2}',
    b"\xff\xfe",
    b"\x00",
    b"}",
    b"]",
    b",",
    b"\xef\xbb\xbf",
)


def odd_json(draw: random.Random, examples: list[Any], lines: bool | None = None) -> bytes:
    """Returns JSON, or nearly JSON, like one of `examples` with a few things in it changed.

    Args:
        draw: chooses.
        examples: to begin with.
        lines: write a list as JSONL; None = now and then.
    """
    value: Any = deepcopy(draw.choice(examples))
    for _ in range(draw.randrange(4)):
        value = _changed(draw, value)
    lines = isinstance(value, list) and (draw.random() < 0.3 if lines is None else lines)
    dumped = "\n".join(map(json.dumps, value)) if lines else json.dumps(value, ensure_ascii=draw.random() < 0.5)
    text = bytearray(dumped.encode("utf-8", "surrogatepass"))
    if draw.random() < 0.1:
        return dumped.encode("utf-16")
    for _ in range(draw.choice((0, 0, 1, 2))):
        place = draw.randrange(len(text) + 1)
        text[place : place + draw.randrange(3)] = draw.choice(_TEXTS)
    return bytes(text[: draw.randrange(len(text) + 1)] if draw.random() < 0.1 else text)


def _changed(draw: random.Random, value: Any) -> Any:
    """Replaces, drops, repeats or adds something somewhere in `value`."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or draw.random() < 0.15:
        return deepcopy(draw.choice(_ODD))
    key = draw.choice(inner)
    what = draw.random()
    if what < 0.7:
        value[key] = _changed(draw, value[key])
    elif what < 0.8:
        del value[key]
    elif isinstance(value, dict):
        value[draw.choice((*inner, "id", "image", "boxes", "weight"))] = deepcopy(draw.choice(_ODD))
    else:
        value.insert(key, deepcopy(value[key]))
    return value


@cache
def _pictures() -> list[bytes]:
    files = []
    for name in FORMATS:
        stream = io.BytesIO()
        Image.effect_noise((24, 18), 60).convert("RGB").save(stream, name)
        files.append(stream.getvalue())
    return files


def _encoded() -> str:
    return base64.b64encode(_pictures()[1]).decode()


_SAVED_PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
"""One pixel."""


def records(draw: random.Random, folder: Path) -> None:
    """Training records."""
    path = folder / "data.json"
    path.write_bytes(odd_json(draw, [[RECORD, RECORD], [OPENAI], RECORD]))
    for _ in iter_conversations(read_records(str(path)), []):
        pass


def box_file(draw: random.Random, folder: Path) -> None:
    """Box files."""
    path = folder / "boxes.json"
    path.write_bytes(odd_json(draw, [[BOXES, BOXES], {"a.jpg": BOXES}, [BOXES]]))
    BoxStore(path, check=False).find("a.jpg", "1")


def history(draw: random.Random, folder: Path) -> None:
    """Saved chats."""
    path = folder / "chat.json"
    picture = {"type": "image_url", "image_url": {"url": _SAVED_PICTURE}, "boxes": BOXES}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}
    chat = {"messages": [question, {"role": "assistant", "content": "A bus."}]}
    path.write_bytes(odd_json(draw, [chat]))
    read_history(path, max_pixels=1_000_000)


def benchmark(draw: random.Random, folder: Path) -> None:
    """Questions of benchmarks."""
    kind, example, lines = draw.choice(_BENCHMARKS)
    path = folder / "questions.json"
    path.write_bytes(odd_json(draw, [example], lines))
    bench = kind(name="odd", data_file=str(path), image_folder="")
    for question in bench.questions():
        bench.place_pictures(question, bench.prompt(question))


def table(draw: random.Random, folder: Path) -> None:
    """Benchmarks that are tables: odd cells, columns, quotes, encodings and ends."""
    rows = [dict(TABLE_ROW, index=str(number), image=_encoded()) for number in range(2)]
    for _ in range(draw.randrange(5)):
        row = draw.choice(rows)
        key = draw.choice([*row, "image_path", "split", "E"])
        row[key] = draw.choice(_CELLS)
        if draw.random() < 0.2:
            for one in rows:
                one.pop(key, None)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["\t".join(columns), *("\t".join(row.get(key, "") for key in columns) for row in rows)]
    text = bytearray("\n".join(lines).encode(draw.choice(("utf-8", "utf-8", "utf-8", "utf-16")), "replace"))
    for _ in range(draw.choice((0, 0, 1, 2))):
        place = draw.randrange(len(text) + 1)
        text[place : place + draw.randrange(3)] = draw.choice((*_TEXTS, b'"', b"\t", b"\n", b"\r"))
    path = folder / "table.tsv"
    path.write_bytes(bytes(text[: draw.randrange(len(text) + 1)] if draw.random() < 0.1 else text))
    bench = draw.choice(_TABLES)(name="odd", data_file=str(path))
    for question in bench.questions():
        for shown in bench.place_pictures(question, bench.prompt(question))[1]:
            open_picture(io.BytesIO(shown.content()))


def config(draw: random.Random, folder: Path) -> None:
    """Overrides of a config, up to the checked one."""
    path = folder / "odd_config.py"
    if not path.exists():
        path.write_text(CONFIG, encoding="utf-8")
    keys = ("lr", "model.llm", "schedule", "schedule.lr", "items.0", "items.9", "items", "a.b.c", "schedule.type", "x")
    text = odd_json(draw, [{"lr": 1}, [1, 2], "${lr}", "${x}", "${", "a.b.C"]).decode("utf-8", "surrogateescape")
    load_config(path, parse_overrides([f"{draw.choice(keys)}={text}"]), check=draw.random() < 0.5)


def picture(draw: random.Random, folder: Path) -> None:
    """Bytes changed in real files of every format."""
    content = bytearray(draw.choice(_pictures()))
    for _ in range(draw.randrange(1, 9)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    open_picture(io.BytesIO(bytes(content)))


def override(draw: random.Random, folder: Path) -> None:
    """Options of ``--cfg-options``."""
    key = draw.choice(("lr", "model.llm", "data_path", "", "a..b", "[0]", "lr.x", "\x00"))
    text = odd_json(draw, [[RECORD], {"lr": 1}, [1, 2]]).decode("utf-8", "surrogateescape")
    parse_overrides([f"{key}{draw.choice(('=', '', ' = '))}{text}"])


def odd_request(draw: random.Random) -> bytes:
    """Returns a body of ``/v1/chat/completions`` that is right but for a few things."""
    body = deepcopy(REQUEST)
    body["messages"][0]["content"][0]["image_url"]["url"] += _encoded()  # type: ignore[index]
    return odd_json(draw, [body])


def request(draw: random.Random, folder: Path) -> None:
    """Bodies of ``/v1/chat/completions``, up to the prompt."""

    def open_image(part: Mapping[str, Any]) -> tuple[Image.Image, PictureBoxes | None]:
        return read_picture_url(picture_address(part), _LIMITS), as_picture_boxes(part.get("boxes"))

    fields = read_fields(read_body(odd_request(draw), _LIMITS), _LIMITS)
    read_messages(fields.messages, open_image, bool(fields.continue_final_message))


DOORS: dict[str, Callable[[random.Random, Path], None]] = {
    door.__name__: door for door in (records, box_file, history, benchmark, table, config, picture, request, override)
}


def crash(door: str, seed: int, folder: Path) -> str | None:
    """Tries one input; returns what it raised beside `XTunerError`, None where nothing."""
    try:
        DOORS[door](random.Random(seed), folder)
    except XTunerError:
        pass
    except Exception as error:  # what is looked for
        return f"{door} {seed}: {type(error).__name__}: {str(error)[:200]}"
    return None

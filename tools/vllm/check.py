"""Asks an exported folder on vLLM in every way, and compares the token ids with transformers'.

    bash tools/check_vllm.sh                                    makes the environment, then runs this
    python tools/vllm/check.py FOLDER --world work_dirs/tiny_world [--count 240] [--speed] [--json OUT]

Everything in float32 but for one row, which decides nothing. The table goes to standard output as Markdown; the exit
code is 1 where an id differs.
``--speed`` measures answers per second of 16 clients instead, at vLLM, at ``xtuner serve`` with vLLM behind it, and at
``xtuner serve`` alone: let the machine be idle.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.vllm import questions as asked  # noqa: E402
from tools.vllm.questions import Question  # noqa: E402
from tools.vllm.server import CLIENTS, VLLM, Server, answers_per_second, ask_http  # noqa: E402

MOST_TOKENS = 16
CONTEXT = 1024
SEVEN = 7
_CHUNKS = {"max_num_batched_tokens": 32}
_NO_CACHES = {"mm_processor_cache_gb": 0, "enable_prefix_caching": False}


@dataclass(frozen=True)
class Row:
    """A way of asking, and how many answers were transformers' to the token; `decides` = all have to be."""

    way: str
    equal: int
    total: int
    seconds: float
    decides: bool = True


class Transformers:
    """Answers by transformers, one question at a time.

    Args:
        folder: exported.
        dtype: number format.
    """

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        import torch

        from mg_llava.hf import MGLLaVAProcessor, load_model

        self.processor = MGLLaVAProcessor.from_pretrained(folder)
        self.model = load_model(folder, dtype=getattr(torch, dtype)).eval()
        self._answered: dict[tuple[str, bool], list[int]] = {}

    def ids(self, question: Question, endless: bool = False) -> list[int]:
        """Returns the ids of the answer; `endless` = the text goes on behind its end."""
        key = (repr(question), endless)
        if key not in self._answered:
            self._answered[key] = self._generate(question, endless)
        return self._answered[key]

    def _generate(self, question: Question, endless: bool) -> list[int]:
        batch = self.processor.apply_chat_template(
            question.messages(asked.with_picture), tokenize=True, return_dict=True
        )
        options: dict[str, Any] = {"max_new_tokens": MOST_TOKENS, "do_sample": False}
        if endless:
            options["eos_token_id"] = None
        output = self.model.generate(**batch, **options)
        return output[0, batch["input_ids"].shape[1] :].tolist()

    def text(self, question: Question) -> str:
        """Returns the rendered question."""

        def part(*_: Any) -> dict[str, Any]:
            return {"type": "image"}

        return str(self.processor.apply_chat_template(question.messages(part), tokenize=False))


class Offline:
    """Answers by vLLM's ``LLM``.

    Args:
        folder: exported.
        render: a question's text.
        options: of ``LLM``.
    """

    def __init__(self, folder: Path, render: Callable[[Question], str], **options: Any) -> None:
        from vllm import LLM, SamplingParams

        values: dict[str, Any] = {
            "dtype": "float32",
            "max_num_batched_tokens": CONTEXT,
            "limit_mm_per_prompt": {"image": 4},
            **options,
        }
        self.llm = LLM(str(folder), enforce_eager=True, max_model_len=CONTEXT, max_num_seqs=SEVEN, seed=0, **values)
        self.render = render
        self.greedy = SamplingParams(temperature=0, max_tokens=MOST_TOKENS)
        self.endless = SamplingParams(temperature=0, max_tokens=MOST_TOKENS, ignore_eos=True)

    def close(self) -> None:
        """Ends the engine's processes, which hold the cores that the next one wants."""
        self.llm.llm_engine.engine_core.shutdown()

    def beside(self, questions: Sequence[Question], endless: bool = False) -> list[list[int]]:
        """Boxes in the data dict."""
        return self._generate(questions, [{"image": _pictures(question, True)} for question in questions], endless)

    def by_option(self, questions: Sequence[Question]) -> list[list[int]]:
        """Boxes in ``mm_processor_kwargs``."""
        data = [{"image": _pictures(question, False)} for question in questions]
        return self._generate(questions, data, False, [{"boxes": list(question.boxes)} for question in questions])

    def by_url(self, questions: Sequence[Question]) -> list[list[int]]:
        """Boxes in the pictures' URLs, by ``LLM.chat``."""
        messages: Any = [question.messages(url_part) for question in questions]
        return [list(o.outputs[0].token_ids) for o in self.llm.chat(messages, self.greedy, use_tqdm=False)]

    def texts(self, questions: Sequence[Question]) -> list[list[int]]:
        """No pictures at all."""
        return self._generate(questions, [None] * len(questions), False)

    def _generate(
        self, questions: Sequence[Question], data: Sequence[Any], endless: bool, options: Sequence[Any] = ()
    ) -> list[list[int]]:
        prompts: list[Any] = []
        for number, (question, pictures) in enumerate(zip(questions, data, strict=True)):
            prompt: dict[str, Any] = {"prompt": self.render(question)}
            if pictures is not None:
                prompt["multi_modal_data"] = pictures
            if options:
                prompt["mm_processor_kwargs"] = options[number]
            prompts.append(prompt)
        sampling = self.endless if endless else self.greedy
        return [list(o.outputs[0].token_ids) for o in self.llm.generate(prompts, sampling, use_tqdm=False)]


def url_part(picture: Path, boxes: Any) -> dict[str, Any]:
    """An image part of OpenAI's protocol whose URL names the boxes."""
    from mg_llava.boxes import with_boxes

    return {"type": "image_url", "image_url": {"url": with_boxes(asked.data_url(picture), boxes)}}


def _pictures(question: Question, with_boxes: bool) -> list[Any]:
    parts = [asked.with_picture(*pair) for pair in zip(question.pictures, question.boxes, strict=True)]
    return [{"image": part["image"], "boxes": part["boxes"]} if with_boxes else part["image"] for part in parts]


def offline_rows(transformers: Transformers, questions: list[Question], folder: Path) -> list[Row]:
    """Every way of asking vLLM in one process."""
    engine = Offline(folder, transformers.text)
    quarter = questions[: max(len(questions) // 4, 2)]
    plain = [asked.without_boxes(question) for question in questions]
    moved = [asked.other_boxes(question) for question in questions]
    two, texts, later = asked.pairs(questions), asked.texts(quarter), asked.later(quarter)
    rows = []

    def compare(way: str, ask: Callable[..., list[list[int]]], given: list[Question], **options: Any) -> None:
        wanted = [transformers.ids(question, **options) for question in given]
        start = time.monotonic()
        found = ask(given, **options)
        rows.append(_row(way, found, wanted, time.monotonic() - start))

    compare("boxes beside the picture", engine.beside, questions)
    compare("the same again: prefix and pictures cached", engine.beside, questions)
    compare("other boxes on the cached pictures", engine.beside, moved)
    engine.llm.reset_prefix_cache()
    compare("boxes in mm_processor_kwargs, prefix cache emptied", engine.by_option, questions)
    compare("boxes in the picture's URL (LLM.chat)", engine.by_url, questions)
    compare("no boxes", engine.by_option, plain)
    compare(asked.TWO, engine.beside, two)
    compare(asked.TEXT, engine.texts, texts)
    compare(asked.LATER, engine.beside, later)
    compare(f"{MOST_TOKENS} tokens, whatever ends the answer", engine.beside, quarter, endless=True)
    engine.close()
    return rows


def setting_rows(transformers: Transformers, questions: list[Question], folder: Path) -> list[Row]:
    """The engine with other settings, each an engine of its own."""
    half = Transformers(folder, "bfloat16")
    settings: list[tuple[str, Transformers, list[Question], dict[str, Any]]] = [
        ("two pictures, prefill in chunks of 32 tokens", transformers, asked.pairs(questions), _CHUNKS),
        ("both caches off", transformers, questions, _NO_CACHES),
        ("text only, no pictures allowed", transformers, asked.texts(questions), {"limit_mm_per_prompt": {"image": 0}}),
        ("bfloat16, against transformers in bfloat16", half, questions, {"dtype": "bfloat16"}),
    ]
    rows = []
    for way, reference, given, options in settings:
        engine = Offline(folder, transformers.text, **options)
        wanted = [reference.ids(question) for question in given]
        start = time.monotonic()
        found = (engine.beside if given[0].pictures else engine.texts)(given)
        row = _row(way, found, wanted, time.monotonic() - start)
        rows.append(replace(row, decides=reference is transformers))
        engine.close()
    return rows


def http_rows(transformers: Transformers, questions: list[Question], folder: Path) -> list[Row]:
    """``vllm serve`` over HTTP."""
    wanted = [transformers.ids(question) for question in questions]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEVEN)]
    options += ["--trust-request-mm-kwargs", "--limit-mm-per-prompt", '{"image": 4}']
    rows = []
    with Server([*VLLM, str(folder), *options]) as server:

        def compare(way: str, clients: int, by_option: bool, given: list[Question], expected: list[list[int]]) -> None:
            bodies = [_body(question, by_option) for question in given]
            start = time.monotonic()
            found = ask_http(server, bodies, clients)
            rows.append(_row(way, found, expected, time.monotonic() - start))

        compare("HTTP, boxes in the URL, one at a time", 1, False, questions, wanted)
        compare("HTTP, mm_processor_kwargs, seven at once, cached", SEVEN, True, questions, wanted)
        moved = [asked.other_boxes(question) for question in questions]
        expected = [transformers.ids(question) for question in moved]
        compare("HTTP, other boxes on cached pictures, seven at once", SEVEN, False, moved, expected)
    return rows


def _body(question: Question, by_option: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": MOST_TOKENS, "return_token_ids": True}
    if by_option:
        body["mm_processor_kwargs"] = {"boxes": list(question.boxes)}
        body["messages"] = question.messages(lambda picture, _: url_part(picture, None))
    else:
        body["messages"] = question.messages(url_part)
    return body


def _row(way: str, found: list[list[int]], wanted: list[list[int]], seconds: float) -> Row:
    equal = sum(one == other for one, other in zip(found, wanted, strict=True))
    for one, other in zip(found, wanted, strict=True):
        if one != other:
            print(f"{way}: vLLM {one}, transformers {other}", file=sys.stderr)
    print(f"{way}: {equal} of {len(wanted)}", file=sys.stderr, flush=True)
    return Row(way, equal, len(wanted), seconds)


def main() -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="exported folder")
    parser.add_argument("--world", type=Path, default=Path("work_dirs/tiny_world"))
    parser.add_argument("--count", type=int, default=240, help="questions of each way (default: 240)")
    parser.add_argument(
        "--speed", action="store_true", help="measure answers per second of vllm serve and xtuner serve instead"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    questions = asked.read_world(arguments.world, arguments.count)
    if arguments.speed:
        return measure_speed(arguments.folder, questions)
    transformers = Transformers(arguments.folder)
    rows = offline_rows(transformers, questions, arguments.folder)
    rows += setting_rows(transformers, questions[: max(arguments.count // 4, 2)], arguments.folder)
    rows += http_rows(transformers, questions[: max(arguments.count // 3, 1)], arguments.folder)
    print("| way of asking | token ids equal to transformers' |\n|---|---|")
    for row in rows:
        print(f"| {row.way} | {row.equal} of {row.total} |")
    print(f"| together | {sum(row.equal for row in rows)} of {sum(row.total for row in rows)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if all(row.equal == row.total for row in rows if row.decides) else 1


def measure_speed(folder: Path, questions: list[Question]) -> int:
    """Prints answers per second of 16 clients at each server."""
    bodies = [_body(question, False) for question in questions]
    speeds = answers_per_second(folder, bodies, [_boxes_field(body) for body in bodies], CONTEXT)
    print(f"| server | answers/s, {CLIENTS} clients |\n|---|---|")
    for name, speed in speeds.items():
        print(f"| `{name}` | {speed:.1f} |")
    return 0


def _boxes_field(body: dict[str, Any]) -> dict[str, Any]:
    """The same request as this project's own server takes it: boxes as a field of the image part."""
    from urllib.parse import unquote

    body = json.loads(json.dumps(body))
    body.pop("return_token_ids")
    for message in body["messages"]:
        for part in message["content"]:
            if part["type"] == "image_url":
                url, _, boxes = part["image_url"]["url"].partition("#boxes=")
                part["image_url"]["url"] = url
                if boxes:
                    part["boxes"] = json.loads(unquote(boxes))
    return body


if __name__ == "__main__":
    sys.exit(main())
